"""A pytest plugin that runs bench/test_kernels.py without a GPU: tiny inputs, invented times."""

from __future__ import annotations

from dataclasses import replace

import bench_fakes
import gpu_timing
import kernel_shapes
import peers
import pytest

SMALL = bench_fakes.SMALL
TIMES = {"ms": 0.004, "p20": 0.004, "p80": 0.004}


def pytest_configure() -> None:
    """Before test_kernels.py is imported."""
    gpu_timing.CudaClock = bench_fakes.FakeClock
    gpu_timing.device_conditions = lambda: bench_fakes.RUN
    gpu_timing.copy_bandwidth = lambda clock: 1000.0
    gpu_timing.replays = lambda clock, call: (call() and TIMES) or TIMES
    gpu_timing.launch_empty = lambda: None
    kernel_shapes.SHAPES[:] = [SMALL]
    kernel_shapes.TOWER = replace(SMALL, tower=True)
    kernel_shapes.EMBEDDINGS[:] = [SMALL]
    kernel_shapes.PHOTOS[:] = [bench_fakes.SMALL_PHOTOS]
    peers.MAX_AUTOTUNE = {"backend": "eager", "fullgraph": True}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.module.DEVICE = "cpu"
        module = item.getparent(pytest.Module)
        module.own_markers[:] = [mark for mark in module.own_markers if mark.name != "skipif"]
