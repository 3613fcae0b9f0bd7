"""Building engines with the real TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import onnx
import pytest
from small_models import CONV, HF, build
from trt_fakes import WHAT, Script, fake_module

from tigerfg.engines import builder as builder_module
from tigerfg.engines import sidecar
from tigerfg.engines.builder import build_engine
from tigerfg.engines.trt_library import Builder, current_gpu, find_builder
from tigerfg.errors import EngineError


@pytest.fixture(scope="module")
def rtx() -> Builder:
    """The real TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    return find_builder("tensorrt-rtx")


def test_the_stand_in_has_no_name_that_the_real_one_lacks(rtx):
    for full in (True, False):
        for name, fake in vars(fake_module(Script(), rtx=not full)).items():
            real = getattr(rtx.module, name)
            public = {entry for entry in vars(fake) if not entry.startswith("_")}
            assert public <= set(dir(real)), name
    severities = set(fake_module(Script(), True).ILogger.Severity.__members__)
    assert severities <= set(rtx.module.ILogger.Severity.__members__)


@pytest.fixture(scope="module", params=["conv", "hf"])
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """query.onnx and item.onnx of a small model; they share no folder, each has weights.bin."""
    from tigerfg.export.graph import tower_graph

    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model = build({"conv": CONV, "hf": HF}[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    for tower in ("query", "item"):
        (folder / tower).mkdir()
        onnx.save(
            tower_graph(model, tower),
            folder / tower / "graph.onnx",
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=64,
        )
    return folder


def real_options(builder: Builder, tower: str) -> dict[str, Any]:
    return {**WHAT, "tower": tower, "precision": "fp32", "cut": "tower", "builder": builder}


@pytest.mark.parametrize("tower", ["query", "item"])
def test_towers_build_for_gpus_that_are_not_here(rtx, graphs, tmp_path, tower):
    lines: list[str] = []
    sms = (80, 89, 120)
    out = tmp_path / sidecar.file_name(tower, "fp32", "tower", sms, rtx.name, rtx.version)
    made = build_engine(
        graphs / tower / "graph.onnx",
        out,
        sms=sms,
        progress=lines.append,
        **real_options(rtx, tower),
    )
    assert made == sidecar.read(out)
    assert made.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert made.bytes == out.stat().st_size
    # the weights, which came from their own file, are in it
    assert made.bytes > (graphs / tower / "weights.bin").stat().st_size
    assert sorted(os.listdir(tmp_path)) == [out.name, f"{out.name}.json"]
    assert len(lines) > 4
    for sm in sms:
        wanted = {"tower": tower, "precision": "fp32", "cut": "tower", "onnx_sha256": "a" * 64}
        assert (
            sidecar.unfit(
                sidecar.read(out),
                builder=rtx.name,
                version=rtx.version,
                sm=sm,
                profiles=made.profiles,
                max_text_length=made.max_text_length,
                engine_bytes=out.stat().st_size,
                **wanted,
            )
            is None
        )


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The query tower of a small model."""
    from tigerfg.export.graph import tower_graph

    path = tmp_path_factory.mktemp("graph") / "query.onnx"
    onnx.save(tower_graph(build(CONV), "query"), path)
    return path


def test_the_real_library_refuses_a_damaged_graph(rtx, graph, tmp_path):
    (tmp_path / "half.onnx").write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(EngineError, match=r"query fp32 tower: tensorrt-rtx .*half\.onnx"):
        build_engine(
            tmp_path / "half.onnx",
            tmp_path / "x.engine",
            sms=(89,),
            **real_options(rtx, "query"),
        )
    assert os.listdir(tmp_path) == ["half.onnx"]


def test_the_real_library_names_the_node_it_does_not_know(rtx, graph, tmp_path):
    proto = onnx.load(graph)
    node = next(node for node in proto.graph.node if node.op_type == "MatMul")
    node.op_type = "NoSuchOperator"
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(EngineError) as caught:
        build_engine(
            tmp_path / "odd.onnx",
            tmp_path / "x.engine",
            sms=(89,),
            **real_options(rtx, "query"),
        )
    assert node.name in str(caught.value)
    assert "NoSuchOperator" in str(caught.value)


def test_the_real_library_says_which_workspace_is_too_small(rtx, graph, tmp_path):
    with pytest.raises(EngineError, match="workspace"):
        build_engine(
            graph,
            tmp_path / "x.engine",
            sms=(89,),
            workspace=4096,
            **real_options(rtx, "query"),
        )
    assert os.listdir(tmp_path) == []


def test_without_a_gpu_the_real_library_is_not_asked(rtx, graph, tmp_path, monkeypatch):
    if current_gpu() is not None:
        pytest.skip("there is a GPU")
    monkeypatch.setattr(builder_module, "run", None)
    with pytest.raises(EngineError, match=r"^no GPU here: say what to build for, e\.g\. --sm 89"):
        build_engine(graph, tmp_path / "x.engine", **real_options(rtx, "query"))
    with pytest.raises(EngineError, match=r"^sm 91: tensorrt-rtx 1.* builds for 75, 80, 86, 89,"):
        build_engine(graph, tmp_path / "x.engine", sms=(91,), **real_options(rtx, "query"))


def test_ctrl_c_stops_the_real_library(rtx, graph, tmp_path):
    def progress(line: str) -> None:
        if "step 2" in line:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engine(
            graph,
            tmp_path / "x.engine",
            sms=(89,),
            progress=progress,
            **real_options(rtx, "query"),
        )
    assert os.listdir(tmp_path) == []
    made = build_engine(graph, tmp_path / "x.engine", sms=(89,), **real_options(rtx, "query"))
    assert made.bytes > 0


def test_the_builder_loads_no_framework():
    from test_imports import FRAMEWORKS, run_python

    out = run_python(
        "import sys, tigerfg.engines.builder; print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert not (FRAMEWORKS | {"tensorrt", "tensorrt_rtx", "pycuda"}) & set(out.split())
