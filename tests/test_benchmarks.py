"""The CPU benchmarks run: every contender once, without being measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = ("encode", "cold_start", "ingest", "search")


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
