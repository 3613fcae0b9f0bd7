"""The parity report of an export: every tower in every runtime and precision, and Recall@1."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tigerfg.bundle import TOWERS
from tigerfg.engines.base import Arrays
from tigerfg.engines.cpu import cpu, thread_count
from tigerfg.engines.onnx import OnnxRunner
from tigerfg.engines.torch import shapes_of
from tigerfg.export.emulate import EmulatedRunner
from tigerfg.export.gpu import GpuGraphs
from tigerfg.export.manifest import graph_file
from tigerfg.export.parity import (
    BATCHES,
    EMULATED_BATCHES,
    ENGINE_BATCHES,
    check,
    check_recall,
    measure,
    measure_recall,
)
from tigerfg.export.samples import Samples
from tigerfg.export.tail import backbone_encoder
from tigerfg.model import TigerFG

EMULATED = "graph, rounded as a GPU rounds, on the CPU"

Encode = Callable[[Arrays], Arrays]


class Report:
    """Measures towers against the float32 model; `entries` is what the manifest records.

    entries: {"data": ..., "query": {"int8": {...}}, "item": ... (ONNX Runtime on the CPU),
    "openvino": {tower: {precision: ...}}, "gpu": likewise, "recall_at_1": {"gpu fp16": ...}}.
    """

    def __init__(
        self,
        model: TigerFG,
        samples: Samples,
        expected: Mapping[str, Arrays],
        say: Callable[[str], None],
    ) -> None:
        self.entries: dict[str, Any] = {"data": samples.source, "query": {}, "item": {}}
        self._model, self._samples, self._expected, self._say = model, samples, expected, say

    def cpu_runtimes(self, folder: Path, precisions: tuple[str, ...]) -> None:
        """The graphs for CPUs in ONNX Runtime, and in OpenVINO where it is installed."""
        threads = thread_count(None)
        for precision in precisions:
            encoders = {
                tower: OnnxRunner(folder / graph_file(tower, precision), tower, precision, threads)
                for tower in TOWERS
            }
            self._both("onnx", precision, {t: r.run for t, r in encoders.items()}, BATCHES, {})
        if not importlib.util.find_spec("openvino"):
            return
        from tigerfg.engines.openvino import OpenVinoRunner

        shapes = shapes_of(self._model)
        kinds = [*precisions, *(["bf16"] if "fp32" in precisions and cpu().has_bf16 else [])]
        for precision in kinds:
            source = "fp32" if precision == "bf16" else precision
            runners = {
                tower: OpenVinoRunner(
                    folder / graph_file(tower, source), tower, precision, threads, shapes
                )
                for tower in TOWERS
            }
            encode = {tower: runner.run for tower, runner in runners.items()}
            self._both("openvino", precision, encode, BATCHES, {})

    def emulated(
        self, graphs: GpuGraphs, precisions: tuple[str, ...], cuts: dict[str, str]
    ) -> None:
        """The typed graphs with a GPU's rounding, of the cut that engines are built from.

        Args:
            cuts: precision -> "tower" or "backbone", the latter with the tail's oracle behind it.
        """
        for precision in precisions:
            cut = cuts[precision]
            encode = {
                tower: self._emulated(tower, graphs.graphs[tower, precision, cut], cut)
                for tower in TOWERS
            }
            notes = {
                tower: {"runtime": EMULATED, "kept": graphs.kept[tower, precision]}
                for tower in TOWERS
            }
            self._both("gpu", precision, encode, EMULATED_BATCHES, notes)

    def engines(self, precision: str, runners: Mapping[str, Any]) -> None:
        """Both towers in engines on this machine's GPU; replaces the emulated figures."""
        kept = {tower: self.entries["gpu"][tower][precision]["kept"] for tower in TOWERS}
        notes = {
            tower: {"runtime": runners[tower].version, "kept": kept[tower]} for tower in TOWERS
        }
        encode = {tower: runner.run for tower, runner in runners.items()}
        self._both("gpu", precision, encode, ENGINE_BATCHES, notes)

    def _emulated(self, tower: str, graph: Any, cut: str) -> Encode:
        if cut == "backbone":
            return backbone_encoder(self._model, tower, graph)
        return EmulatedRunner(graph).run

    def _both(
        self,
        runtime: str,
        precision: str,
        encode: Mapping[str, Encode],
        batches: Mapping[int, int],
        notes: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Measure, report and check both towers of a runtime and precision."""
        entries = self.entries if runtime == "onnx" else self.entries.setdefault(runtime, {})
        found: dict[str, Arrays] = {}
        for tower in TOWERS:
            result, found[tower] = measure(
                encode[tower], tower, self._samples, self._expected, batches
            )
            self._say(
                f"{tower} tower {precision} ({runtime}): cosine mean {result['cosine_mean']:.5f}, "
                f"p1 {result['cosine_p1']:.5f}, min {result['cosine_min']:.5f}, "
                f"top-10 overlap {result['top10_overlap']:.3f}"
            )
            check(tower, precision, result)
            entries.setdefault(tower, {})[precision] = {**notes.get(tower, {}), **result}
        recall = measure_recall(self._samples, self._expected, found)
        check_recall(precision, recall)
        if recall is None:
            self._say(f"Recall@1 {precision} ({runtime}): no query's item is among the pictures")
        else:
            self.entries.setdefault("recall_at_1", {})[f"{runtime} {precision}"] = recall
