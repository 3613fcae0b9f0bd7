"""What is exported for GPUs, and the typed graphs of both cuts that engines are built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from tigerfg.engines.accuracy import THRESHOLDS, cosines
from tigerfg.engines.builder import PROFILES, Profile, targets_of
from tigerfg.engines.tail_plan import ELEMENTS
from tigerfg.engines.trt_library import Builder, current_gpu, find_builder
from tigerfg.errors import EngineError, InputError
from tigerfg.export.emulate import EmulatedRunner
from tigerfg.export.graph import interface, tower_graph
from tigerfg.export.layers import compare_layers, format_layers, large_layers
from tigerfg.export.parity import reference
from tigerfg.export.precision import ELEMENTWISE, ENCODERS, PRODUCTS, typed_graph
from tigerfg.export.quantize import gpu_fp8_graph, gpu_int8_graph, quantised_nodes
from tigerfg.export.samples import Samples
from tigerfg.gpu_bundle import PRECISIONS
from tigerfg.kernels.tuning import ARCHITECTURES
from tigerfg.model import TigerFG

GPU_ENGINES = ("auto", "tensorrt", "tensorrt-rtx", "none")
# Layers of a quantised or float16 tower that may go back to a finer type before it is refused:
# so many rounds, each with the worst quarter of those left.
FALL_BACK_ROUNDS, FALL_BACK_SAMPLES = 4, 8
# Values that layers in float16 may have on those pictures; others may have larger ones.
FLOAT16_LIMIT = float(np.finfo(np.float16).max) / 2

FIRST_FP8 = 89  # compute capability
_TAIL_READS = {"patches", "queries", "text"}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class GpuRequest:
    """What is exported for GPUs.

    Attributes:
        precisions: of PRECISIONS.
        engine: "tensorrt", "tensorrt-rtx", "auto" (the one that is installed), or "none": graphs
            and kernels only, every machine builds its engines when it first needs them.
        sms: compute capabilities to build for, 89 for 8.9; none: this machine's GPU.
        profiles: batch ranges that engines are made for.
        fused_tail: build engines up to our fused tail where its kernels take the model.
        workspace: bytes that a build may use on the device; None: as much as it likes.
    """

    precisions: tuple[str, ...] = ("fp16",)
    engine: str = "auto"
    sms: tuple[int, ...] = ()
    profiles: tuple[Profile, ...] = PROFILES
    fused_tail: bool = True
    workspace: int | None = None

    def builder(self) -> Builder | None:
        """The builder of the engines; None for "none". Refuses what cannot be built here.

        Raises:
            InputError: an unknown precision, engine or compute capability, or none.
            MissingExtraError: no builder is installed.
            EngineError: no GPU here and no `sms` given, or some that the builder cannot build for.
        """
        for name in self.precisions:
            if name not in PRECISIONS:
                raise InputError(f"precision: {name!r} is unknown; choose {', '.join(PRECISIONS)}")
        if not self.precisions:
            raise InputError(f"precision: none given; choose {', '.join(PRECISIONS)}")
        if self.engine not in GPU_ENGINES:
            raise InputError(f"engine: {self.engine!r} is unknown; choose {', '.join(GPU_ENGINES)}")
        if "fp8" in self.precisions and (old := [sm for sm in self.sms if sm < FIRST_FP8]):
            raise InputError(
                f"sm: {old[0]} has no float8 products, {FIRST_FP8} is the first that has: leave it "
                "or --fp8 out"
            )
        if self.engine == "none":
            known = ", ".join(map(str, ARCHITECTURES))
            if unknown := [sm for sm in self.sms if sm not in ARCHITECTURES]:
                raise InputError(f"sm: {unknown[0]} is none that kernels exist for: {known}")
            return None
        builder = find_builder(self.engine)
        if self.sms:
            targets_of(builder, self.sms, current_gpu())
        elif current_gpu() is None:
            raise EngineError(
                "no GPU here: say which GPUs the engines are for (--sm 89), or --engine none to "
                "export graphs only and let every machine build its own engines"
            )
        return builder


class GpuGraphs:
    """Typed graphs of one model, by (tower, precision, cut), and what was kept finer in them."""

    def __init__(self, model: TigerFG, calibration: Samples, say: Progress) -> None:
        self.graphs: dict[tuple[str, str, str], onnx.ModelProto] = {}
        self.kept: dict[tuple[str, str], list[str]] = {}
        self._large: list[str] = []  # layers of the current tower that float16 does not hold
        self._calibrated: dict[tuple[str, ...], onnx.ModelProto] = {}
        self._model, self._calibration, self._say = model, calibration, say
        self._expected = reference(model, calibration.part(slice(FALL_BACK_SAMPLES)))

    def add(self, tower: str, proto: onnx.ModelProto, precisions: tuple[str, ...]) -> None:
        """Convert a tower's float32 graph, and its backbone, to every precision.

        A layer that float16 does not hold, or that loses too much, stays in a finer type: named in
        `kept`.

        Raises:
            EngineError: even with those the tower is below its threshold; names the layers that
                lose most.
        """
        protos = {"tower": proto}
        if self._model.config.fused_tail:
            protos["backbone"] = tower_graph(self._model, tower, "backbone")
        if "fp16" in map(ELEMENTS.get, precisions):
            self._large = sorted(_too_large(proto, self._feeds(tower)))
            if self._large:
                self._say(f"{tower} tower: {len(self._large)} layers are too large for float16")
        for precision in precisions:
            self._say(f"{tower} tower: converting to {precision}")
            graph, kept = self._accurate(tower, proto, precision)
            self.graphs[tower, precision, "tower"] = graph
            large = self._large if ELEMENTS[precision] == "fp16" else []
            self.kept[tower, precision] = sorted({*kept, *large})
            if "backbone" in protos:
                backbone = self._typed(protos["backbone"], tower, "backbone", precision, kept)
                self.graphs[tower, precision, "backbone"] = backbone
        self._calibrated.clear()

    def _accurate(
        self, tower: str, proto: onnx.ModelProto, precision: str
    ) -> tuple[onnx.ModelProto, list[str]]:
        """The typed tower, with as many layers kept finer as its threshold asks for."""
        feeds = self._feeds(tower)
        wanted = self._expected[tower]["embedding"]
        threshold = THRESHOLDS[precision]
        kept = [*self._large] if precision == "fp16" else []
        for round_ in range(FALL_BACK_ROUNDS + 1):
            graph = self._typed(proto, tower, "tower", precision, kept)
            worst = float(cosines(EmulatedRunner(graph).run(feeds)["embedding"], wanted).min())
            if worst >= threshold:
                return graph, kept
            errors = compare_layers(proto, graph, feeds)
            movable = _movable(proto, precision) - set(kept)
            bad = [entry.node for entry in errors if entry.node in movable]
            if not bad or round_ == FALL_BACK_ROUNDS:
                break
            kept += bad[: max(1, len(bad) // 4)]
            self._say(f"{tower} tower {precision}: cosine {worst:.4f}, {len(kept)} layers finer")
        raise EngineError(
            f"parity: the {tower} tower in {precision} reaches cosine {worst:.4f} with the "
            f"float32 model, {threshold} is needed; nothing was written: leave this precision "
            f"out. The layers that lose most:\n{format_layers(errors)}"
        )

    def _typed(
        self, proto: onnx.ModelProto, tower: str, cut: str, precision: str, kept: list[str]
    ) -> onnx.ModelProto:
        # what the tail's kernels read; the text's weights are for people
        low = [name for name in interface(tower, cut)[1] if name in _TAIL_READS]
        if precision in ("int8", "fp8"):
            int8 = self._int8(proto, tower, cut, kept)
            proto = int8 if precision == "int8" else gpu_fp8_graph(int8, proto)
            kept = self._large
        if precision == "fp32":
            return proto
        return typed_graph(proto, ELEMENTS[precision], low_outputs=low, keep=kept)

    def _feeds(self, tower: str) -> dict[str, np.ndarray]:
        return getattr(self._calibration.part(slice(FALL_BACK_SAMPLES)), tower)

    def _int8(
        self, proto: onnx.ModelProto, tower: str, cut: str, kept: list[str]
    ) -> onnx.ModelProto:
        """The int8 graph, calibrated once for int8 and fp8."""
        key = (tower, cut, *sorted(kept))
        if key not in self._calibrated:
            inputs = {entry.name for entry in proto.graph.input}
            feeds = getattr(self._calibration, tower)
            feeds = {name: value for name, value in feeds.items() if name in inputs}
            self._calibrated[key] = gpu_int8_graph(proto, feeds, kept)
        return self._calibrated[key]


def _movable(proto: onnx.ModelProto, precision: str) -> set[str]:
    """Nodes that may stay in a finer type."""
    if precision in ("int8", "fp8"):
        return set(quantised_nodes(proto))
    return {node.name for node in proto.graph.node if node.name.startswith(ENCODERS)}


def _too_large(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> set[str]:
    """Nodes that would be float16 and that read or give what it does not hold."""
    return {
        node.name
        for node in proto.graph.node
        if node.op_type in PRODUCTS | ELEMENTWISE and node.name.startswith(ENCODERS)
    } & large_layers(proto, feeds, FLOAT16_LIMIT)
