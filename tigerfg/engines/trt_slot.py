"""What one call at a time runs in: an execution context with its stream and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tigerfg.engines.base import (
    BACKBONE_OUTPUTS,
    INPUTS,
    OUTPUTS,
    Arrays,
    TowerShapes,
)
from tigerfg.engines.cuda import Arena, Cuda, Pinned
from tigerfg.engines.tail import Tail
from tigerfg.engines.tail_plan import ELEMENTS
from tigerfg.engines.trt_engine import BatchRange, LoadedEngine, Tensor
from tigerfg.errors import EngineError
from tigerfg.levels import level_sides

ALIGN = 256  # bytes; TensorRT and the kernels ask for less
_TRT_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
_NUMPY_TYPES = {"FLOAT": np.float32, "INT64": np.int64, "BOOL": np.bool_}


class Tensors(NamedTuple):
    """All of a tower: what the caller gives, what the engine gives, what the caller gets."""

    inputs: dict[str, Tensor]
    engine: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def of(cls, tower: str, precision: str, shapes: TowerShapes, part: Any, cut: str) -> Tensors:
        """Of a tower of these sizes; `part` is the bundle's GpuPart.

        Behind a backbone patches are those of all item levels.
        """
        side, patches = shapes.sides[tower], shapes.patches(tower)
        if (tower, cut) == ("item", "backbone"):
            fine = side // shapes.patch
            patches = sum(n * n for n in level_sides(fine, part.item_levels))
        low, width = _TRT_TYPES[ELEMENTS[precision]], part.shape.width
        queries = part.shape.heads * part.shape.queries_per_head
        every = {
            "pixels": Tensor("FLOAT", (3, side, side)),
            "patch_mask": Tensor("BOOL", (patches,)),
            "token_ids": Tensor("INT64", (-1,)),
            "token_mask": Tensor("BOOL", (-1,)),
            "patches": Tensor(low, (patches, width)),
            "queries": Tensor(low, (queries + (part.shape.pool == "attention"), width)),
            "text": Tensor(low, (width,)),
            "embedding": Tensor("FLOAT", (shapes.embedding_dim,)),
            "grounding_map": Tensor("FLOAT", (patches,)),
            "token_weights": Tensor("FLOAT", (-1,)),
        }
        given = (BACKBONE_OUTPUTS if cut == "backbone" else OUTPUTS)[tower]
        groups = (INPUTS[tower], given, OUTPUTS[tower])
        return cls(*({name: every[name] for name in names} for names in groups))


class Layout(NamedTuple):
    """Where every buffer of a batch range lies: offsets by name; the host has the first ones."""

    offsets: dict[str, int]
    host: int  # bytes that the host has too
    size: int


class Slot:
    """One execution context. One thread at a time.

    Args:
        tail: launched behind the engine; None for an engine of the whole tower.
    """

    def __init__(
        self, cuda: Cuda, engine: LoadedEngine, tensors: Tensors, tail: Tail | None
    ) -> None:
        self._cuda, self._engine, self._tensors, self._tail = cuda, engine, tensors, tail
        self._shared = {**tensors.inputs, **tensors.outputs}  # what the host has a copy of
        self._patches = tensors.inputs["patch_mask"].row[0]
        self._largest = max(entry.largest for entry in engine.ranges)
        self._layouts: dict[BatchRange, Layout] = {}
        self._range: BatchRange | None = None
        self._addresses: dict[str, int] = {}
        self._pinned: Pinned | None = None
        self._counters = None
        self._arena = Arena(cuda, f"a batch of up to {self._largest} pictures")
        self._context = self._stream = None
        try:
            with cuda.active():
                self._context = engine.context()
                self._stream = cuda.stream()
                if tail is not None:
                    size = 4 * tail.plan(self._largest, self._patches).counters
                    self._counters = cuda.buffer(size, "the tail's counters")
                    self._stream.clear(self._counters.address, size)
        except BaseException:
            self.free()
            raise

    def run(self, entry: BatchRange, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """One batch that lies in the range, or below it: it is then filled up with its last row."""
        count = len(feeds["pixels"])
        batch = max(count, entry.smallest)
        length = feeds["token_ids"].shape[1] if "token_ids" in feeds else 0
        with self._cuda.active():
            try:
                self._enter(entry)
                for name in self._tensors.inputs:
                    staged = self._staged(name, batch, length)
                    staged[:count] = feeds[name]
                    staged[count:] = feeds[name][-1]
                    self._stream.upload(self._addresses[name], staged)
                self._infer(batch, length)
                staged = {name: self._staged(name, batch, length) for name in self._tensors.outputs}
                for name, array in staged.items():
                    self._stream.download(array, self._addresses[name])
                self._stream.synchronize()
            except BaseException:
                with contextlib.suppress(Exception):  # what failed is being reported
                    self._stream.synchronize()  # the device must be done with these buffers
                raise
            return {name: array[:count].copy() for name, array in staged.items()}

    def free(self) -> None:
        """Free the context, the stream and all memory."""
        with self._cuda.active():
            if self._stream is not None:
                with contextlib.suppress(Exception):  # a device that failed frees nothing else
                    self._stream.synchronize()
            self._context = None
            for resource in (self._counters, self._pinned, self._arena, self._stream):
                if resource is not None:
                    resource.free()

    def _infer(self, batch: int, length: int) -> None:
        context = self._context
        for name in self._engine.inputs:
            shape = self._tensors.inputs[name].shape(batch, length)
            self._require(context.set_input_shape(name, shape), f"refuses {name} {shape}")
        for name, tensor in self._tensors.engine.items():
            shape, wanted = tuple(context.get_tensor_shape(name)), tensor.shape(batch, length)
            self._require(shape == wanted, f"gives {name} {shape}, wanted {wanted}")
        for name in (*self._engine.inputs, *self._tensors.engine):
            accepted = context.set_tensor_address(name, self._addresses[name])
            self._require(accepted, f"refuses the memory of {name}")
        self._require(context.execute_async_v3(self._stream.handle), "failed")
        if self._tail is not None:
            self._tail.run(self._stream, batch, self._patches, self._addresses)

    def _require(self, fine: bool, what: str) -> None:
        if not fine:
            raise EngineError(f"the engine {what}{self._engine.problem()}")

    def _enter(self, entry: BatchRange) -> None:
        """Make the range's profile the current one, with enough memory."""
        if self._range == entry:
            return
        self._range = None  # unless all of it succeeds
        if entry not in self._layouts:
            self._layouts[entry] = self._lay_out(entry)
        layout = self._layouts[entry]
        base = self._arena.reserve(layout.size)
        if self._pinned is None or self._pinned.array.nbytes < layout.host:
            if self._pinned is not None:
                self._pinned.free()
                self._pinned = None
            self._pinned = self._cuda.pinned(layout.host)
        self._addresses = {name: base + offset for name, offset in layout.offsets.items()}
        if self._counters is not None:
            self._addresses["counters"] = self._counters.address
        accepted = self._context.set_optimization_profile_async(entry.profile, self._stream.handle)
        self._require(accepted, f"refuses its profile {entry.profile}")
        self._range = entry

    def _lay_out(self, entry: BatchRange) -> Layout:
        tensors, largest, longest = self._tensors, entry.largest, self._engine.max_text_length
        sizes = {name: tensor.bytes(largest, longest) for name, tensor in self._shared.items()}
        offsets, host = _place(sizes, 0)
        sizes = {
            name: tensor.bytes(largest, longest)
            for name, tensor in tensors.engine.items()
            if name not in self._shared
        }
        if self._tail is not None:
            batches = range(entry.smallest, largest + 1)
            sizes |= self._tail.workspace(batches, self._patches)
        rest, size = _place(sizes, host)
        return Layout({**offsets, **rest}, host, size)

    def _staged(self, name: str, batch: int, length: int) -> np.ndarray:
        """The host's copy of a buffer, as an array."""
        tensor = self._shared[name]
        start = self._layouts[self._range].offsets[name]
        part = self._pinned.array[start : start + tensor.bytes(batch, length)]
        return part.view(_NUMPY_TYPES[tensor.kind]).reshape(tensor.shape(batch, length))


def _place(sizes: Mapping[str, int], start: int) -> tuple[dict[str, int], int]:
    """Offsets of buffers one after the other, and where the last one ends."""
    offsets = {}
    for name, size in sizes.items():
        offsets[name] = start
        start += -(-size // ALIGN) * ALIGN
    return offsets, start
