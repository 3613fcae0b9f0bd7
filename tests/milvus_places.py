"""Places for catalogues in tests: a directory, Milvus Lite, and a server where one is given.

`TIGERFG_TEST_MILVUS=host:port` names a Milvus server; `make test-milvus` starts one and sets it.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER = os.environ.get("TIGERFG_TEST_MILVUS", "")
MILVUS = [
    pytest.param(
        "milvus-lite",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("milvus_lite") is None, reason="milvus-lite is not installed"
        ),
    ),
    pytest.param(
        "milvus",
        marks=pytest.mark.skipif(
            not SERVER, reason="no Milvus server: TIGERFG_TEST_MILVUS names none"
        ),
    ),
]
PLACES = ["disk", *MILVUS]


def new_place(kind: str, folder: Path) -> Iterator[Path | str]:
    """Somewhere a catalogue can be made; a collection is dropped afterwards."""
    if kind == "disk":
        yield folder / "cat"
        return
    from tigerfg.index.milvus_address import MilvusAddress

    name = f"test_{uuid.uuid4().hex[:12]}"
    place = f"milvus://{SERVER if kind == 'milvus' else _lite_file()}/{name}"
    yield place
    client = MilvusAddress.parse(place).connect()
    client.drop_collection(name)
    client.close()


@functools.cache
def _lite_file() -> Path:
    """One file for all tests of this process: starting Milvus Lite takes a second."""
    folder = tempfile.mkdtemp(prefix="tigerfg-milvus-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder) / "lite.db"
