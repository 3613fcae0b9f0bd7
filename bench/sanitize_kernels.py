"""Launches every operator, in all its forms, on small inputs, for compute-sanitizer to watch.

`compute-sanitizer --tool memcheck --error-exitcode 9 python bench/sanitize_kernels.py`, with
PYTORCH_NO_CUDA_MEMORY_CACHING=1: each tensor is then an allocation of its own, and reading behind
its end is seen. Inputs are made and results are checked on the CPU, so that little else runs on the
device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_timing import launched_kernels
from kernel_shapes import Photos, Shape
from peers import GroundingCase, Outputs
from torch import Tensor
from tower_peers import EmbeddingCase, PoolingCase, PreprocessCase

from tigerfg.kernels.grounding import grounding
from tigerfg.kernels.pooling_kernel import KINDS
from tigerfg.kernels.resample import SUPPORTS

# One item is split over many programs, 150 are not; 13 and 48 queries, 77 patches fill no tile.
PATCHES = [
    Shape(1, 77, 12, "float16"),
    Shape(3, 201, 48, "bfloat16", 192, 4),
    Shape(150, 33, 12, "float16", tower=True),
    Shape(2, 77, 12, "float32", 192, 4),
]
FORMS = [  # and those, on two of the shapes
    partial(EmbeddingCase, attention=True),
    *(partial(PoolingCase, kind=kind) for kind in KINDS if kind != "mean"),
]
PICTURES = [Photos(2, 37, 53, 32, "float16"), Photos(1, 240, 96, 48, "float32")]


def to_device(value: Any, device: str) -> Any:
    """A copy of a tensor with the same strides and storage offset; tuples by their fields."""
    if isinstance(value, tuple):
        fields = [to_device(field, device) for field in value]
        return type(value)(*fields) if hasattr(value, "_fields") else tuple(fields)
    if not isinstance(value, Tensor):
        return value
    stored = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    return stored.to(device).as_strided(value.size(), value.stride(), value.storage_offset())


def launches(device: str) -> Iterator[tuple[str, list[str], bool]]:
    """(what ran, kernels it launched, whether its results are right), operator by operator."""
    kinds = (GroundingCase, EmbeddingCase, PoolingCase)
    cases = [kind(shape, device="cpu") for kind in kinds for shape in PATCHES]
    cases += [form(shape, device="cpu") for form in FORMS for shape in PATCHES[:2]]
    cases += [PreprocessCase(photos, device="cpu") for photos in PICTURES]
    cases += [
        PreprocessCase(PICTURES[0], device="cpu", interpolation=name)
        for name in SUPPORTS
        if name != "bilinear"
    ]
    for case in cases:
        function, arguments = case.function("tigerfg")
        forms = {"": function}
        if case.op == "grounding":
            forms[" per query"] = ours_per_query
        for form, call in forms.items():
            with launched_kernels() as kernels:
                found = call(*to_device(arguments, device))
            found = {name: value.cpu() for name, value in found.items()}
            errors = case.errors("tigerfg", found)
            right = all(error < case.allowed_error for error in errors.values())
            yield f"{case.op} {case.label}{form}", kernels, right


def ours_per_query(x: Tensor, v: Tensor, mask: Tensor | None) -> Outputs:
    p, maps = grounding(x, v, mask, per_query=True)
    return {"p": p, "map": maps.mean(dim=1)}


def main() -> int:
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: there is nothing to watch")
    wrong = 0
    with torch.inference_mode():
        for title, kernels, right in launches("cuda"):
            good = right and bool(kernels)
            wrong += not good
            print("ok   " if good else "WRONG", title, kernels or "no kernel ran", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
