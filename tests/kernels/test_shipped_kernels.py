"""The kernels in the shipped bundles: as the tuning tables say, and through the compile gate."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from gate import expected, faults

from tigerfg.bundle import Bundle, shipped
from tigerfg.kernels.aot import OPERATORS, SCRATCH, variants_of
from tigerfg.kernels.model_kernels import ModelKernels
from tigerfg.kernels.resources import inspect
from tigerfg.kernels.tuning import ARCHITECTURES

pytestmark = pytest.mark.parametrize("name", shipped())


@pytest.mark.slow
def test_shipped_kernels_fit_their_architectures(name: str) -> None:
    kernels = Bundle.open(name).gpu.kernels()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        used = pool.map(inspect, (kernel["path"].read_bytes() for kernel in kernels))
        found = {
            kernel["file"]: faults(
                resources, expected(kernel["name"]), kernel["arch"], kernel["shared"]
            )
            for kernel, resources in zip(kernels, used, strict=True)
        }
    assert {file: wrong for file, wrong in found.items() if wrong} == {}


def test_shipped_kernels_are_those_of_the_tables(name: str) -> None:
    """Where a table or a kernel's parameters change, the bundles need new kernels."""
    gpu = Bundle.open(name).gpu
    model = ModelKernels("fp16", **gpu.shape._asdict())
    wanted = {
        (arch, variant.name): (
            variant.num_warps,
            [*variant.arguments, *SCRATCH],
            variant.constexprs,
        )
        for arch in ARCHITECTURES
        for operator in OPERATORS
        for variant in variants_of(operator, arch, model).values()
    }
    assert {
        (kernel["arch"], kernel["name"]): (
            kernel["num_warps"],
            [argument["name"] for argument in kernel["arguments"]],
            kernel["constexprs"],
        )
        for kernel in gpu.kernels()
    } == wanted
