"""Writing the GPU part of a bundle: files, manifest entry, engines and their parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tigerfg.bundle import TOWERS, Bundle
from tigerfg.engines import sidecar
from tigerfg.engines.builder import build_engine
from tigerfg.engines.tail_plan import ELEMENTS
from tigerfg.engines.trt_library import Builder, current_gpu
from tigerfg.export.gpu import GpuGraphs, GpuRequest
from tigerfg.export.manifest import graph_file, record
from tigerfg.export.report import Report
from tigerfg.export.samples import Samples
from tigerfg.export.tail import check_arrays, model_shape, tail_kernels, tail_weights, unserved
from tigerfg.gpu_bundle import CUTS
from tigerfg.model import TigerFG


class GpuPartWriter:
    """Fills a bundle folder with what GPUs need; `entry` is its place in the manifest.

    Args:
        folder: the bundle being made.
        builder: of the engines; None builds none.
    """

    def __init__(
        self,
        folder: Path,
        model: TigerFG,
        request: GpuRequest,
        builder: Builder | None,
        say: Callable[[str], None],
    ) -> None:
        self.request = request
        self.entry: dict[str, Any] = {
            "shape": model_shape(model)._asdict(),
            "item_levels": model.config.item_levels,
            "profiles": request.profiles,
            "workspace": request.workspace,
            "graphs": {},
        }
        self._folder, self._model, self._builder, self._say = folder, model, builder, say
        gpu = current_gpu()
        self._sms = tuple(sorted(set(request.sms))) or ((gpu.sm,) if gpu else ())
        self._cuts = {name: self._cut(name) for name in request.precisions}

    def cuts(self) -> dict[str, str]:
        """Precision -> the cut that its engines are built from."""
        return self._cuts

    def graph_files(self, typed: GpuGraphs) -> dict[str, onnx.ModelProto]:
        """File name -> typed graph."""
        return {_file(*key): graph for key, graph in typed.graphs.items()}

    def fill(self, samples: Samples) -> None:
        """Write everything but the engines; the graphs are in the folder already."""
        for tower in TOWERS:
            self.entry["graphs"][tower] = {
                precision: {
                    cut: record(self._folder / _file(tower, precision, cut))
                    for cut in CUTS
                    if (self._folder / _file(tower, precision, cut)).is_file()
                }
                for precision in self.request.precisions
            }
        self.entry["tail"] = self._save("tail.npz", tail_weights(self._model))
        self.entry["check"] = self._save("check.npz", check_arrays(self._model, samples))
        fused = tuple(name for name, cut in self._cuts.items() if cut == "backbone")
        if fused:
            index, files = tail_kernels(
                self._folder, self._model, fused, self.request.sms, self._say
            )
            self.entry["kernels"] = {
                "index": record(index),
                "files": {name: record(file) for name, file in files.items()},
            }

    def build(self) -> None:
        """Build every precision's engines; needs the manifest of what `fill` wrote."""
        if self._builder is None:
            self._say("engines: none built; every machine builds its own at first use")
            return
        part = Bundle.open(self._folder).gpu
        self.entry["engines"] = []
        for precision, cut in self._cuts.items():
            for tower in TOWERS:
                out = self._folder / sidecar.file_name(
                    tower, precision, cut, self._sms, self._builder.name, self._builder.version
                )  # fmt: skip
                self._say(f"{tower} tower {precision}: building {out.name}")
                made = build_engine(
                    part.graph(tower, precision, cut),
                    out,
                    tower=tower,
                    precision=precision,
                    cut=cut,
                    onnx_sha256=part.identity(tower, precision, cut),
                    builder=self._builder,
                    profiles=self.request.profiles,
                    max_text_length=self._model.config.text.max_length,
                    sms=self.request.sms,
                    workspace=self.request.workspace,
                    progress=self._say,
                )
                details = {"tower": tower, "precision": precision, "cut": cut, "sms": made.sms}
                self.entry["engines"].append(
                    {**record(out), **details, "seconds": made.seconds, "parity": "not run"}
                )

    def measure(self, report: Report) -> None:
        """Parity of the engines on this machine's GPU, if there is one that they are for."""
        gpu = current_gpu()
        if self._builder is None or gpu is None or gpu.sm not in self._sms:
            self._say("engines: parity not run here; it is when they are first loaded")
            return
        from tigerfg.engines.tensorrt import TensorRtRunner

        bundle = Bundle.open(self._folder)
        for precision in self.request.precisions:
            runners = {}
            try:
                for tower in TOWERS:
                    runners[tower] = TensorRtRunner(
                        bundle, tower, precision, builder=self._builder.name,
                        fused_tail=self._cuts[precision] == "backbone",
                    )  # fmt: skip
                report.engines(precision, runners)
            finally:
                for runner in runners.values():
                    runner.close()
            for engine in self.entry["engines"]:
                if engine["precision"] == precision:
                    engine["parity"] = f"run with {runners[engine['tower']].version}"

    def _cut(self, precision: str) -> str:
        if not self.request.fused_tail:
            return "tower"
        reason = unserved(self._model, ELEMENTS[precision], self._sms)
        if reason is None:
            return "backbone"
        self._say(f"{precision}: no fused tail ({reason}); engines hold the whole tower")
        return "tower"

    def _save(self, name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        np.savez(self._folder / name, **arrays)
        return record(self._folder / name)


def _file(tower: str, precision: str, cut: str) -> str:
    # the int8 graph for CPUs is another one: unsigned activations, weights of 7 bits
    return graph_file(tower, "int8-symmetric" if precision == "int8" else precision, cut)
