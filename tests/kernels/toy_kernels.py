"""Kernels with known faults, for the tests of the compile gate.

python toy_kernels.py OUT     compiles them for sm_80 into OUT/<name>.cubin
"""

from __future__ import annotations

import sys
from pathlib import Path

import triton
import triton.language as tl

from tigerfg.kernels.aot import compile_variant
from tigerfg.kernels.variant import Variant


@triton.jit
def normalize_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):  # noqa: N803
    """y = x / Σ|x| of one row: all of the row must be kept while it is summed."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index)
    tl.store(y_ptr + index, x / tl.sum(tl.abs(x), 0))


def toy(name: str, block: int, num_warps: int, aligned: bool) -> Variant:
    """normalize_kernel; a thread keeps block / (32 · num_warps) values in registers."""
    pointers = ("x_ptr", "y_ptr")
    return Variant(
        name=name,
        kernel=normalize_kernel,
        arguments=dict.fromkeys(pointers, "*fp32"),
        constexprs={"BLOCK": block},
        aligned=frozenset(pointers if aligned else ()),
        grid=("rows",),
        num_warps=num_warps,
        num_stages=1,
    )


TOYS = (
    toy("good", 1024, 4, True),
    toy("spilling", 16384, 1, True),  # 512 registers a thread, of 255 there are
    toy("narrow", 1024, 4, False),
)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for variant in TOYS:
        (folder / f"{variant.name}.cubin").write_bytes(compile_variant(variant, 80).cubin)
