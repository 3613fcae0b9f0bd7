"""How long engines take to build and how large they are: every graph, for several GPUs, on a CPU.

`python bench/build_engines.py [--models tiny base] [--precisions fp16 fp8] [--sm 80 89 120]` writes
engine_builds.json to --out, to $RESULTS_DIR or to bench/results/, row by row, and prints a table.
Models have random weights; the engines are deleted. Only TensorRT-RTX builds without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from conditions import conditions
from engine_models import Say, pictures, random_model
from engine_report import Results, Row, markdown

from tigerfg.bundle import TOWERS
from tigerfg.engines.base import Arrays
from tigerfg.engines.builder import PROFILES, Builder, build_engine, find_builder
from tigerfg.engines.tail_plan import ELEMENTS
from tigerfg.errors import TigerfgError
from tigerfg.export.gpu import FIRST_FP8
from tigerfg.export.graph import interface, tower_graph
from tigerfg.export.manifest import graph_file, record
from tigerfg.export.precision import typed_graph
from tigerfg.export.quantize import gpu_fp8_graph, gpu_int8_graph
from tigerfg.export.weights import write_models
from tigerfg.gpu_bundle import CUTS, PRECISIONS
from tigerfg.model import ModelConfig, preset

HERE = Path(__file__).resolve().parent
FILE = "engine_builds.json"
MODELS, SMS = ("tiny", "base"), (80, 89, 120)
CALIBRATION = 8  # pictures
IDENTITY = ("model", "tower", "cut", "precision", "sm")
SAME_MACHINE = ("cpu", "threads", "builder")


def typed(
    proto: onnx.ModelProto, tower: str, cut: str, precisions: list[str], feeds: Arrays
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """A float32 graph in each precision, as an export makes it when no layer loses too much.

    Args:
        proto: not altered.
        feeds: pictures to calibrate int8 and fp8 on.
    """
    low = () if cut == "tower" else set(interface(tower, cut)[1]) - {"token_weights"}
    sources = {}
    if {"int8", "fp8"} & set(precisions):
        inputs = {entry.name for entry in proto.graph.input}
        given = {name: value for name, value in feeds.items() if name in inputs}
        sources["int8"] = gpu_int8_graph(proto, given)
        sources["fp8"] = gpu_fp8_graph(sources["int8"], proto)
    for precision in precisions:
        if precision == "fp32":
            copied = onnx.ModelProto()
            copied.CopyFrom(proto)
            yield precision, copied
        else:
            source = sources.get(precision, proto)
            yield precision, typed_graph(source, ELEMENTS[precision], low_outputs=low)


def build(
    config: ModelConfig, precisions: list[str], sms: list[int], builder: Builder, say: Say
) -> Iterator[Row]:
    """A row for every tower, cut, precision and GPU that has the precision.

    "error" says why one has no engine.
    """
    model = random_model(config)
    for tower in TOWERS:
        feeds = pictures(config, tower, CALIBRATION)
        for cut in CUTS:
            proto = tower_graph(model, tower, cut)
            for precision, graph in typed(proto, tower, cut, precisions, feeds):
                with tempfile.TemporaryDirectory() as temp:
                    file = Path(temp) / graph_file(tower, precision, cut)
                    names = {"tower": tower, "cut": cut, "precision": precision}
                    row = {"model": config.name, **names, "nodes": len(graph.graph.node)}
                    write_models({file.name: graph}, file.parent)
                    for sm in sms:
                        if precision == "fp8" and sm < FIRST_FP8:
                            continue
                        found = _one(file, names, config, sm, builder, say)
                        yield {**row, "sm": sm, **found}


def _one(
    file: Path, names: dict[str, str], config: ModelConfig, sm: int, builder: Builder, say: Say
) -> Row:
    try:
        made = build_engine(
            file,
            file.with_name(f"sm{sm}.engine"),
            **names,
            onnx_sha256=record(file)["sha256"],
            builder=builder,
            max_text_length=config.text.max_length,
            sms=(sm,),
        )
    except TigerfgError as error:
        reason = str(error).splitlines()[0]
        say(f"{config.name} {' '.join(names.values())} sm {sm}: {reason}")
        return {"seconds": None, "bytes": None, "error": reason}
    say(
        f"{config.name} {' '.join(names.values())} sm {sm}: {made.seconds:.1f} s, "
        f"{made.bytes / 1e6:.1f} MB"
    )
    return {"seconds": made.seconds, "bytes": made.bytes, "error": None}


def table(rows: list[Row]) -> list[str]:
    """A line for each graph: seconds and MB for each GPU."""
    sms = sorted({row["sm"] for row in rows})
    graphs: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        key = (row["model"], row["tower"], row["cut"], row["precision"], row["nodes"])
        graphs.setdefault(key, {})[row["sm"]] = row
    header = ["model", "tower", "cut", "precision", "nodes"]
    header += [f"sm {sm}: {unit}" for sm in sms for unit in ("s", "MB")]
    body = []
    for key, found in graphs.items():
        line = [str(value) for value in key]
        for sm in sms:
            row = found.get(sm)
            if row is None or row["error"] is not None:
                line += ["-" if row is None else "failed"] * 2
            else:
                line += [f"{row['seconds']:.1f}", f"{row['bytes'] / 1e6:.1f}"]
        body.append(line)
    failed = [
        f"{' '.join(str(row[field]) for field in IDENTITY)}: {row['error']}"
        for row in rows
        if row["error"] is not None
    ]
    return [*markdown(header, body), *failed]


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--sm", nargs="+", type=int, default=list(SMS), help="89 for 8.9")
    parser.add_argument("--out", type=Path, help="folder of engine_builds.json")
    options = parser.parse_args(arguments)
    try:
        builder = find_builder()
    except TigerfgError as error:
        print(f"no engine can be built: {error}")
        return 1
    folder = options.out or Path(os.environ.get("RESULTS_DIR") or HERE / "results")
    run = {**conditions(), "builder": str(builder), "profiles": [list(p) for p in PROFILES]}
    results = Results(folder / FILE, run, IDENTITY, SAME_MACHINE)
    failed = 0
    for name in options.models:
        for row in build(preset(name), options.precisions, options.sm, builder, say):
            results.add(row)
            failed += row["error"] is not None
    say(f"{run['cpu']}, {run['threads']} threads, {builder}, commit {run['commit']}")
    say("\n".join(table(results.rows)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
