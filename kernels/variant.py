"""What a kernel is compiled from: one description for the JIT, the tests and the native library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1: kernels run on the CPU

TRITON_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel.

    Attributes:
        name: unique among all variants of an architecture, a C identifier.
        kernel: the `triton.jit` function.
        arguments: argument -> Triton type ("*fp16", "i32", ...), in the kernel's order, without
            constexprs.
        constexprs: compile-time argument -> value.
        aligned: arguments that the caller promises to be multiples of 16 (pointers in bytes,
            integers in value), which lets the compiler move 16 bytes at a time.
        grid: the launch grid, x first, as rules in the names of the C API.
        num_warps, num_stages: as in Triton.
    """

    name: str
    kernel: Any
    arguments: dict[str, str]
    constexprs: dict[str, Any]
    aligned: frozenset[str]
    grid: tuple[str, ...]
    num_warps: int
    num_stages: int

    def launch(self, grid: tuple[int, ...], *arguments: Any) -> None:
        """Run it on the current stream of the device that the first argument, a tensor, lies on.

        Args:
            arguments: in the order of `self.arguments`.
        """
        with torch.cuda.device_of(arguments[0]):
            self.kernel[grid](
                *arguments, **self.constexprs, num_warps=self.num_warps, num_stages=self.num_stages
            )


def triton_type(dtype: torch.dtype, field: str) -> str:
    """The Triton name of a floating dtype; a ValueError names the field otherwise."""
    try:
        return TRITON_TYPES[dtype]
    except KeyError:
        raise ValueError(
            f"{field}: dtype {dtype} is not supported; use float16, bfloat16 or float32"
        ) from None


def dot_options(dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments of kernels with dots of operands of a dtype.

    PRECISION: three tf32 products give float32's accuracy on the matrix units. UPCAST: dots must
    see float32, because the interpreter multiplies bfloat16 bit patterns.
    """
    return {
        "PRECISION": "tf32x3" if dtype == torch.float32 and not INTERPRETED else "ieee",
        "UPCAST": INTERPRETED and dtype == torch.bfloat16,
    }
