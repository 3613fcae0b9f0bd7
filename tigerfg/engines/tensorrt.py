"""One tower in TensorRT or TensorRT-RTX on a GPU, its end in our own kernels."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tigerfg.engines.base import OUTPUTS, Arrays, TowerShapes
from tigerfg.engines.cuda import Cuda
from tigerfg.engines.gpu import gpu_part
from tigerfg.engines.tail import Tail, unserved
from tigerfg.engines.trt_engine import BatchRange
from tigerfg.engines.trt_files import Wanted, open_engine
from tigerfg.engines.trt_library import find_builder
from tigerfg.engines.trt_proof import prove
from tigerfg.engines.trt_slot import Slot, Tensors
from tigerfg.errors import EngineError, InputError
from tigerfg.levels import fold_map, level_mask

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle
    from tigerfg.gpu_bundle import GpuPart

logger = logging.getLogger("tigerfg")


class TensorRtRunner:
    """One tower on a GPU; calls from several threads run side by side in `workers` slots.

    An engine that fits this machine is taken from the bundle or the user's cache, or else built
    from the bundle's graph. Before its first use on a machine it must reproduce the float32 model.

    Args:
        bundle: one exported with a precision for GPUs.
        tower: "query" or "item".
        precision: one of `bundle.gpu.precisions`.
        builder: "tensorrt", "tensorrt-rtx", or "auto": the first of them that is installed.
        fused_tail: whether the tower ends in our compiled kernels; None: where they serve the model
            and this GPU, else a warning says why not.
        cuda: the device, which the caller closes; None for the first one.
        workers: slots, each with an execution context and memory of its own.

    Raises:
        InputError: `workers` is no count.
        MissingExtraError: pycuda or TensorRT is not installed.
        EngineError: no GPU, nothing for GPUs in the bundle, an engine that cannot be built or
            loaded, too little memory, or results that are not those of the float32 model.
    """

    def __init__(
        self,
        bundle: Bundle,
        tower: str,
        precision: str,
        *,
        builder: str = "auto",
        fused_tail: bool | None = None,
        cuda: Cuda | None = None,
        workers: int = 2,
    ) -> None:
        part = gpu_part(bundle, precision)
        if workers < 1:
            raise InputError(f"workers: {workers}; give 1 or more")
        library = find_builder(builder)
        shapes = TowerShapes.of(bundle)
        self.engine, self.precision = library.name, precision
        self._tower = tower
        self._slots: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._workers, self._closed = workers, False
        self._lock = threading.Lock()
        with contextlib.ExitStack() as stack:
            if cuda is None:
                cuda = Cuda.open()
                stack.callback(cuda.close)
            cut = _cut(part, tower, precision, cuda.sm, fused_tail)
            # our kernels see all item levels, callers those of the full-size picture
            self._levels = part.item_levels if (tower, cut) == ("item", "backbone") else 1
            self._side = shapes.sides[tower] // shapes.patch
            tail = None
            if cut == "backbone":
                tail = Tail(cuda, part, precision, tower)
                stack.callback(tail.free)
            with cuda.active():
                engine, file = open_engine(
                    part,
                    Wanted(tower, precision, cut),
                    builder=library,
                    cuda=cuda,
                    max_text_length=bundle.max_text_length,
                )
                stack.callback(engine.free)
                tensors = Tensors.of(tower, precision, shapes, part, cut)
                engine.check(tensors.inputs, tensors.engine)
            self._ranges = engine.ranges
            for _ in range(workers):
                slot = Slot(cuda, engine, tensors, tail)
                stack.callback(slot.free)
                self._slots.put(slot)
            if file.parity is None:
                parity = prove(self.run, tower, precision, self._ranges, part.check())
                file.note(parity)
                engine.save_kernels()
                logger.info(
                    "%s on %s: worst cosine with the float32 model %.5f",
                    file.path.name, cuda.name, parity["cosine_min"],
                )  # fmt: skip
            stack.callback(engine.save_kernels)
            self.version = str(library)
            if tail is not None:
                self.version += f" with fused tail sm_{tail.arch}"
            self._resources = stack.pop_all()

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Named inputs to named outputs; a batch beyond the largest profile runs in parts."""
        if self._levels > 1:
            feeds = {**feeds, "patch_mask": level_mask(feeds["patch_mask"], self._levels)}
        count, most = len(feeds["pixels"]), self._ranges[-1].largest
        slot = self._take()
        try:
            parts = []
            for start in range(0, count, most):
                rows = {name: value[start : start + most] for name, value in feeds.items()}
                parts.append(slot.run(self._range(len(rows["pixels"])), rows))
        finally:
            self._slots.put(slot)
        outputs = parts[0]
        if len(parts) > 1:
            names = OUTPUTS[self._tower]
            outputs = {name: np.concatenate([part[name] for part in parts]) for name in names}
        if self._levels > 1:
            outputs["grounding_map"] = fold_map(outputs["grounding_map"], self._side, self._levels)
        return outputs

    def close(self) -> None:
        """Wait for calls that run, then free the engine and its memory. Later calls fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for _ in range(self._workers):
            self._slots.get()
        self._slots.put(None)  # wakes who still waits
        self._resources.close()

    def __enter__(self) -> TensorRtRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take(self) -> Slot:
        """A free slot; waits for one."""
        if not self._closed:
            slot = self._slots.get()
            if slot is not None:
                return slot
            self._slots.put(None)  # for the next who waits
        raise EngineError("the engine is closed; open it again")

    def _range(self, batch: int) -> BatchRange:
        """The profile for a batch: the narrowest that is large enough."""
        return next(entry for entry in self._ranges if entry.largest >= batch)


def _cut(part: GpuPart, tower: str, precision: str, sm: int, fused_tail: bool | None) -> str:
    """Which graph runs: the backbone, where our kernels end the tower, or all of the tower."""
    if fused_tail is False:
        return "tower"
    if "backbone" in part.cuts(tower, precision):
        reason = unserved(part, precision, sm, tower)
    else:
        reason = f"the bundle has no {precision} backbone graph of the {tower} tower"
    if reason is None:
        return "backbone"
    if fused_tail:
        raise EngineError(f"fused_tail: {reason}")
    logger.warning("the %s tower runs without its fused tail: %s", tower, reason)
    return "tower"
