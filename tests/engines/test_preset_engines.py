"""The shipped architectures in every precision through the real builder, for GPUs not here.

`base` is a DINOv3 ViT-B/16 with random weights: its rotary embedding once cost TensorRT a cosine of
0.018. It has two of its twelve blocks here, which are all alike, and once, in the precision that
export takes by itself and for one GPU, all of them. `python bench/build_engines.py` prints time and
size of every engine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
from tigerfg.model.config import ModelConfig, preset

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no builder")

SMS = (80, 89, 120)
NAMES = ("tiny", "lite", "base")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
BLOCKS = 2


def config_of(name: str) -> ModelConfig:
    """The preset, `base` with fewer blocks."""
    config = preset(name)
    if name != "base":
        return config
    few = {**config.vision.hf_config, "num_hidden_layers": BLOCKS}
    return replace(
        config,
        vision=replace(config.vision, hf_config=few),
        text=replace(config.text, depth=BLOCKS),
    )


def random_model(config: ModelConfig) -> TigerFG:
    torch.manual_seed(0)
    return TigerFG(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models():
    return {name: random_model(config_of(name)) for name in NAMES}


@pytest.fixture(scope="module", params=[f"{name}-{tower}" for name in NAMES for tower in INPUTS])
def traced(request, models):
    """Tower, model, float32 graph, and two pictures that ranges are taken from."""
    name, tower = request.param.split("-")
    model = models[name]
    rng = np.random.default_rng(0)
    feeds = {key: value.numpy() for key, value in example_inputs(model, tower).items()}
    feeds["pixels"] = rng.normal(size=feeds["pixels"].shape).astype(np.float32)
    feeds["token_ids"] = rng.integers(0, 3000, feeds["token_ids"].shape)
    feeds = {key: feeds[key] for key in INPUTS[tower]}
    return tower, model, tower_graph(model, tower), feeds


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_parsed_and_built(traced, precision, tmp_path):
    tower, model, proto, feeds = traced
    sms = tuple(sm for sm in SMS if precision != "fp8" or sm >= FIRST_FP8)
    graph = onnx.ModelProto()
    graph.CopyFrom(proto)
    if precision in ("int8", "fp8"):
        graph = gpu_int8_graph(graph, feeds)
        if precision == "fp8":
            graph = gpu_fp8_graph(graph, proto)
    if precision != "fp32":
        graph = typed_graph(graph, ELEMENTS[precision])
    build(tmp_path, graph, model, tower, precision, sms)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_base_is_built_with_all_its_blocks(tmp_path):
    model = random_model(preset("base"))
    graph = typed_graph(tower_graph(model, "item"), ELEMENTS["fp16"])
    build(tmp_path, graph, model, "item", "fp16", (89,))


def build(
    folder: Path,
    graph: onnx.ModelProto,
    model: TigerFG,
    tower: str,
    precision: str,
    sms: tuple[int, ...],
) -> None:
    """An engine for these GPUs, with all its weights in it."""
    write_models({"graph.onnx": graph}, folder)
    made = build_engine(
        folder / "graph.onnx",
        folder / "x.engine",
        tower=tower,
        precision=precision,
        cut="tower",
        onnx_sha256="0",
        builder=find_builder("tensorrt-rtx"),
        max_text_length=model.config.text.max_length,
        sms=sms,
    )
    assert made.sms == sms
    assert made.profiles == tuple(map(tuple, PROFILES))
    weights = (folder / "weights.bin").stat().st_size
    assert made.bytes > 0.9 * weights  # nothing is stripped
