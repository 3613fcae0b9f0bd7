"""The shipped architectures in every precision through the real builder, for GPUs not here.

`base` is a DINOv3 ViT-B/16 with random weights: its rotary embedding once cost TensorRT a cosine of
0.018. `python bench/build_engines.py` prints time and size of every engine.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from tigerfg.engines.base import INPUTS
from tigerfg.engines.builder import PROFILES, build_engine, find_builder
from tigerfg.engines.tail_plan import ELEMENTS
from tigerfg.export.gpu import FIRST_FP8
from tigerfg.export.graph import example_inputs, tower_graph
from tigerfg.export.precision import typed_graph
from tigerfg.export.quantize import gpu_fp8_graph, gpu_int8_graph
from tigerfg.export.weights import write_models
from tigerfg.model import TigerFG
from tigerfg.model.config import preset

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no builder")

SMS = (80, 89, 120)
NAMES = ("tiny", "lite", "base")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {name: TigerFG(preset(name)).eval().requires_grad_(False) for name in NAMES}


@pytest.fixture(scope="module", params=[f"{name}-{tower}" for name in NAMES for tower in INPUTS])
def traced(request, models):
    """Name, tower, model, float32 graph, and two pictures that ranges are taken from."""
    name, tower = request.param.split("-")
    model = models[name]
    rng = np.random.default_rng(0)
    feeds = {key: value.numpy() for key, value in example_inputs(model, tower).items()}
    feeds["pixels"] = rng.normal(size=feeds["pixels"].shape).astype(np.float32)
    feeds["token_ids"] = rng.integers(0, 3000, feeds["token_ids"].shape)
    feeds = {key: feeds[key] for key in INPUTS[tower]}
    return name, tower, model, tower_graph(model, tower), feeds


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_parsed_and_built(traced, precision, tmp_path):
    name, tower, model, proto, feeds = traced
    sms = tuple(sm for sm in SMS if precision != "fp8" or sm >= FIRST_FP8)
    graph = onnx.ModelProto()
    graph.CopyFrom(proto)
    if precision in ("int8", "fp8"):
        graph = gpu_int8_graph(graph, feeds)
        if precision == "fp8":
            graph = gpu_fp8_graph(graph, proto)
    if precision != "fp32":
        graph = typed_graph(graph, ELEMENTS[precision])
    write_models({"graph.onnx": graph}, tmp_path)
    made = build_engine(
        tmp_path / "graph.onnx",
        tmp_path / "x.engine",
        tower=tower,
        precision=precision,
        cut="tower",
        onnx_sha256="0",
        builder=find_builder("tensorrt-rtx"),
        max_text_length=model.config.text.max_length,
        sms=sms,
    )
    print(f"{name} {tower} {precision}: {made.seconds:.1f} s, {made.bytes / 1e6:.1f} MB")
    assert made.sms == sms
    assert made.profiles == tuple(map(tuple, PROFILES))
    weights = (tmp_path / "weights.bin").stat().st_size
    assert made.bytes > 0.9 * weights  # nothing is stripped
