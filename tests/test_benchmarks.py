"""The CPU benchmarks run: every contender once, without being measured."""

# ruff: noqa: E402
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "bench"))  # scripts beside the package, not part of it

from index_vectors import real_embeddings

from tigerfg.benchmark.selection import Selection
from tigerfg.errors import InputError

FILES = ("encode", "cold_start", "ingest", "search")


def test_embeddings_of_another_suite_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the vectors that were made of them, which lie beside them."""
    monkeypatch.setattr(
        Selection, "read", lambda folder, split: SimpleNamespace(digest=lambda: str(folder))
    )
    digests = [str(tmp_path / "one" / layout) for layout in ("standard", "cluttered")]
    stored = {"items": np.ones((3, 2)), "queries": np.ones((1, 2))}
    np.savez(tmp_path / "real.npz", **stored, digests=digests)
    items, _ = real_embeddings(tmp_path / "one", tmp_path)
    assert items.shape == (3, 2)
    with pytest.raises(InputError, match=r"real.npz.* is not of .*other; name another"):
        real_embeddings(tmp_path / "other", tmp_path)
    np.savez(tmp_path / "real.npz", **stored)  # of before
    with pytest.raises(InputError, match="is not of"):
        real_embeddings(tmp_path / "one", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_contender_runs(tmp_path: Path) -> None:
    files = [f"bench/test_{name}.py" for name in FILES]
    options = ["-q", "--benchmark-disable", "-m", "not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, *options],
        cwd=REPOSITORY, env={**os.environ, "RESULTS_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
    assert list(tmp_path.iterdir()) == []
