"""Small directories in the layouts of the public benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty directory for a dataset, in one that has another file: outside.jpg."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "outside.jpg")
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def jpegs(root: Path) -> Callable[..., None]:
    """``jpegs("a/b.jpg", ...)``: tiny JPEGs below the root."""

    def make(*names: str) -> None:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), "blue").save(root / name, "JPEG")

    return make


@pytest.fixture
def write(root: Path) -> Callable[[str, str], Path]:
    """``write("a/b.txt", text)``: a UTF-8 file below the root."""

    def make(name: str, text: str) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))
        return path

    return make
