"""Kernel tests: every tensor that torch.empty makes is poisoned, so that gaps show.

Also the kernels compiled ahead of time, once a session, and the table of what they use.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from gate import GATED, USAGE, USAGE_HEADER
from launching import DEVICE


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN (floating), or all bits set (integers and bool)."""
    plain = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = plain(*args, **kwargs)
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        if tensor.numel():
            tensor.view(torch.uint8).fill_(0xFF)
        return tensor

    monkeypatch.setattr(torch, "empty", empty)


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: the GPU, or the CPU by Triton's interpreter."""
    return DEVICE


@pytest.fixture(scope="session")
def without_interpreter() -> dict[str, str]:
    """The environment of a process that compiles kernels, where this one may interpret them."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="session")
def compiled_kernels(
    tmp_path_factory: pytest.TempPathFactory, without_interpreter: dict[str, str]
) -> Path:
    """What `tigerfg.kernels.aot` writes for the GATED kernels; not to be altered.

    Compiled by whichever of pytest-xdist's workers is first.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    out = folder / "kernels"
    with FileLock(f"{out}.lock"):
        if not (out / "index.json").is_file():
            run = subprocess.run(
                [sys.executable, "-m", "tigerfg.kernels.aot", "--out", out, "--only", *GATED],
                env=without_interpreter,
                capture_output=True,
                text=True,
            )
            assert run.returncode == 0, run.stderr
    return out


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One table of all compiled kernels, from what their tests recorded."""
    reports = (report for group in terminalreporter.stats.values() for report in group)
    properties = (pair for report in reports for pair in getattr(report, "user_properties", ()))
    rows = {str(row) for name, row in properties if name == USAGE}
    if rows:
        terminalreporter.section("compiled kernels")
        terminalreporter.line(USAGE_HEADER)
        for row in sorted(rows):
            terminalreporter.line(row)
