"""The end of a tower in our own compiled kernels, launched behind an engine on the same stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tigerfg.engines.cuda import Buffer, Cuda, Kernel, Stream
from tigerfg.engines.tail_plan import (
    WEIGHTS,
    Description,
    Plan,
    Sizes,
    plan_item,
    plan_query,
    select,
)
from tigerfg.errors import EngineError

if TYPE_CHECKING:
    from tigerfg.gpu_bundle import GpuPart


def unserved(part: GpuPart, precision: str, sm: int, tower: str) -> str | None:
    """Why the kernels of a bundle cannot end a tower on a compute capability; None if they can."""
    try:
        select(part, precision, sm, tower)
    except LookupError as error:
        return str(error)
    return None


class Tail:
    """The end of one tower: its kernels and weights on a device.

    Raises:
        EngineError: the bundle's kernels do not serve this device or precision.
    """

    def __init__(self, cuda: Cuda, part: GpuPart, precision: str, tower: str) -> None:
        self._cuda, self._shape = cuda, part.shape
        self._plans: dict[tuple[int, int], Plan] = {}
        self._kernels: dict[str, Kernel] = {}
        self._weights: dict[tuple[str, str], Buffer] = {}
        try:
            selected = select(part, precision, cuda.sm, tower)
        except LookupError as error:
            raise EngineError(f"fused tail: {error}") from error
        self._selected = selected
        self._make, kernels = (
            (plan_item, list(selected)) if tower == "item" else (plan_query, [selected])
        )
        self.arch: int = kernels[0]["arch"]
        try:
            for kernel in kernels:
                self._kernels[kernel["name"]] = cuda.kernel(kernel, kernel["path"].read_bytes())
            self._upload(kernels, part.tail_weights())
        except BaseException:
            self.free()
            raise

    def plan(self, batch: int, patches: int) -> Plan:
        """How a batch is launched."""
        key = (batch, patches)
        if key not in self._plans:
            sizes = Sizes(batch, patches, self._cuda.multiprocessors)
            self._plans[key] = self._make(self._selected, self._shape, sizes)
        return self._plans[key]

    def workspace(self, batches: Sequence[int], patches: int) -> dict[str, int]:
        """Bytes of every buffer between the launches that are enough for any of these batches."""
        sizes: dict[str, int] = {}
        for batch in batches:
            for name, size in self.plan(batch, patches).workspace.items():
                sizes[name] = max(size, sizes.get(name, 0))
        return sizes

    def run(self, stream: Stream, batch: int, patches: int, buffers: Mapping[str, int]) -> None:
        """Put the launches on the stream; call it with the device active.

        Args:
            buffers: device addresses by name: what the backbone gave ("patches", and for items
                "queries" and "text"), "patch_mask", "embedding" and for items "grounding_map"
                (float32 results), the workspace, and "counters": `Plan.counters` int32 zeros,
                which are zero again afterwards.
        """
        for kernel, programs, names, integers in self.plan(batch, patches).launches:
            types = {argument["name"]: argument["type"] for argument in kernel["arguments"]}
            values = dict(integers)
            for argument, name in names.items():
                values[argument] = self._address(name, types[argument], buffers)
            self._kernels[kernel["name"]].launch(stream, programs, values)

    def free(self) -> None:
        """Unload the kernels and free the weights."""
        for resource in (*self._kernels.values(), *self._weights.values()):
            resource.free()

    def _address(self, name: str, kind: str, buffers: Mapping[str, int]) -> int:
        if name in buffers:
            return buffers[name]
        return self._weights[name, kind].address

    def _upload(self, kernels: Sequence[Description], weights: Mapping[str, np.ndarray]) -> None:
        """Every weight in each dtype that a kernel reads it in."""
        for kernel in kernels:
            for argument in kernel["arguments"]:
                name, kind = WEIGHTS.get(argument["name"]), argument["type"]
                if name is None or (name, kind) in self._weights:
                    continue
                if name == "pool_query" and self._shape.pool != "attention":
                    continue
                if name not in weights:
                    raise EngineError(f"fused tail: the bundle has no weight {name}: export again")
                values = convert(weights[name], kind[1:], name)
                self._weights[name, kind] = self._cuda.upload(values, f"the weight {name}")


def convert(values: np.ndarray, element: str, name: str) -> np.ndarray:
    """float32 weights in a kernel's type; bfloat16 as its bits, uint16. Rounds to nearest even.

    Raises:
        EngineError: a value is not finite in that type.
    """
    values = np.ascontiguousarray(values, np.float32)
    if element == "fp32":
        converted, finite = values, np.isfinite(values)
    elif element == "fp16":
        with np.errstate(over="ignore"):
            converted = values.astype(np.float16)
        finite = np.isfinite(converted)
    else:
        bits = values.view(np.uint32)
        converted = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        finite = np.isfinite(values) & ((converted & 0x7F80) != 0x7F80)
    if not finite.all():
        raise EngineError(f"fused tail: a value of {name} is not finite in {element}")
    return converted
