"""Typed graphs: what is low, what stays float32, names, weights, Q/DQ pairs, and the emulation."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import CONFIGS, graph
from onnx import TensorProto, helper, numpy_helper
from small_models import CONV, build, inputs, tensors

from tigerfg.engines.base import INPUTS
from tigerfg.errors import EngineError, InputError
from tigerfg.export.emulate import EmulatedRunner, emulated
from tigerfg.export.fold import LARGEST, fold_constants
from tigerfg.export.precision import DTYPES, element_types, typed_graph
from tigerfg.export.quantize import gpu_fp8_graph, gpu_int8_graph

FLOAT = TensorProto.FLOAT
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}

both = pytest.mark.parametrize("dtype", ["fp16", "bf16"])


def toy(nodes: list, constants: dict[str, np.ndarray], y: int = FLOAT) -> onnx.ModelProto:
    """x float32 (batch, 8) -> y (batch, 8), in the encoder's scope."""
    for i, node in enumerate(nodes):
        node.name = node.name or f"vision.toy/{node.op_type}.{i}"
    body = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", y, ["batch", 8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def toy_chain(*steps: tuple[str, np.ndarray]) -> onnx.ModelProto:
    """x -> one node per (operator, its constant) -> y."""
    names = ["x", *(f"v{i}" for i in range(1, len(steps))), "y"]
    nodes = [
        helper.make_node(step[0], [names[i], f"c{i}"], [names[i + 1]])
        for i, step in enumerate(steps)
    ]
    return toy(nodes, {f"c{i}": np.asarray(step[1], np.float32) for i, step in enumerate(steps)})


def types_of(proto: onnx.ModelProto, name: str) -> set[int]:
    """The types that the float outputs of the node have."""
    types = element_types(proto)
    node = next(node for node in proto.graph.node if node.name == name)
    return {types[output] for output in node.output}


# What is low


@both
@pytest.mark.parametrize(("tower", "cut"), [("item", "tower"), ("item", "backbone")])
def test_encoders_are_low_and_all_else_is_float32(dtype, tower, cut):
    source = graph("hf", tower, cut)
    before = source.SerializeToString(deterministic=True)
    typed = typed_graph(source, dtype)
    assert source.SerializeToString(deterministic=True) == before
    old, types, low = element_types(source), element_types(typed), DTYPES[dtype]
    names = [node.name for node in source.graph.node]
    assert [node.name for node in typed.graph.node if node.name in set(names)] == names
    for node in source.graph.node:
        floats = [name for name in node.output if old[name] == FLOAT]
        encoder = node.name.startswith(("vision", "text"))
        if node.op_type in ("LayerNormalization", "Softmax", "ReduceMean", "Div") or not encoder:
            exact = node.op_type not in ("Split", "Transpose", "Reshape")  # moves, and where it is
            assert all(types[name] == FLOAT for name in floats) or not exact, node.name
        elif node.op_type in ("MatMul", "Gemm", "Conv", "Gelu"):
            assert [types[name] for name in floats] == [low], node.name
    for entry in (*typed.graph.input, *typed.graph.output):
        assert entry.type.tensor_type.elem_type == old[entry.name]
    tail = [node for node in typed.graph.node if node.name.startswith("grounding")]
    assert all(types[name] != low for node in tail for name in node.output)


@both
def test_one_cast_a_value_named_after_it(dtype):
    source, typed = graph("hf", "item"), typed_graph(graph("hf", "item"), dtype)
    names = {node.name for node in source.graph.node}
    casts = [node for node in typed.graph.node if node.name not in names]
    assert {node.op_type for node in casts} == {"Cast"}
    assert max(Counter(node.input[0] for node in casts).values()) == 1
    assert all(node.output[0] == node.name for node in casts)
    assert {node.name.rpartition(".")[2] for node in casts} == {"fp32", dtype}
    assert all(node.input[0] == node.name.rpartition(".")[0] for node in casts)
    assert set(element_types(source)) <= set(element_types(typed))
    # 2 + 1 layers: norm in and out of low (2 each), softmax likewise, and the ends
    assert len(casts) <= 25


@both
def test_scores_and_masks_are_float32_up_to_the_softmax(dtype):
    typed = typed_graph(graph("hf", "item"), dtype)
    types = element_types(typed)
    softmaxes = [node for node in typed.graph.node if node.op_type == "Softmax"]
    makers = {name: node for node in typed.graph.node for name in node.output}
    seen = Counter()
    for node in softmaxes:
        if not node.name.startswith(("vision", "text")):
            continue
        pending = [node.input[0]]
        while pending:
            name = pending.pop()
            maker = makers.get(name)
            if maker is None or types[name] == TensorProto.BOOL:
                continue
            seen[maker.op_type] += 1
            assert types[name] == FLOAT or maker.op_type == "MatMul", maker.name
            if maker.op_type != "MatMul":
                pending += maker.input
    assert seen["MatMul"] == 3  # the score products of two vision layers and a text layer
    assert seen["Where"] == 1  # the text's mask
    assert seen["Cast"] == 3


def test_data_movement_follows_what_it_moves():
    constants = {"shape": np.array([-1, 4, 2]), "back": np.array([-1, 8]), "w": np.eye(8)}
    constants["w"] = constants["w"].astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"], "tower/Reshape"),
        helper.make_node("Reshape", ["b", "back"], ["c"], "tower/Reshape.2"),
        helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("Softmax", ["d"], ["e"]),
        helper.make_node("Reshape", ["e", "back"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["g"]),
        helper.make_node("Softmax", ["g"], ["h"]),
        helper.make_node("Reshape", ["h", "back"], ["y"]),
    ]
    types = element_types(typed_graph(toy(nodes, constants), "fp16"))
    low = [name for name in "abcdefghy" if types[name] != FLOAT]
    assert low == ["a", "b", "c", "d", "f", "g"]


@both
def test_low_outputs_are_rounded_only(dtype):
    source = graph("hf", "item", "backbone")
    outputs = ["patches", "queries", "text"]
    typed = typed_graph(source, dtype, low_outputs=outputs)
    found = {entry.name: entry.type.tensor_type.elem_type for entry in typed.graph.output}
    assert found == {**dict.fromkeys(outputs, DTYPES[dtype]), "token_weights": FLOAT}
    feeds = inputs(CONFIGS["hf"], "item")
    low = EmulatedRunner(typed, 1).run(feeds)
    full = EmulatedRunner(typed_graph(source, dtype), 1).run(feeds)
    for name in outputs:
        np.testing.assert_array_equal(
            low[name], full[name].astype(NUMPY[dtype]).astype(np.float32), err_msg=name
        )


def test_kept_nodes_stay_float32():
    source = graph("conv", "query")
    name = "vision.blocks.1.up/MatMul"
    typed = typed_graph(source, "fp16", keep=[name, "absent"])
    assert types_of(typed, name) == {FLOAT}
    assert types_of(typed, "vision.blocks.1.up/Add") == {TensorProto.FLOAT16}
    table = typed_graph(graph("hf", "item"), "fp16", keep=["text.model.embeddings/Add"])
    gathers = ["text.model.embeddings.word_embeddings/Gather", "text.model.embeddings/Add"]
    assert [types_of(table, name) for name in gathers] == [{FLOAT}, {FLOAT}]  # not rounded either
    all_kept = typed_graph(source, "fp16", keep=[node.name for node in source.graph.node])
    assert list(all_kept.graph.node) == list(source.graph.node)
    assert list(all_kept.graph.initializer) == list(source.graph.initializer)


@pytest.mark.parametrize(
    ("constant", "fp16", "bf16"),
    [
        (65504.0, True, True),
        (7e4, False, True),
        (-3.4028235e38, False, False),  # the least float32: masks
        (-np.inf, False, False),
        (1e-12, False, True),  # an epsilon that must not become zero
        ([1e-12] * 7 + [1.0], True, True),  # a weight may lose small elements
        ([1.0] * 7 + [7e4], False, True),
    ],
)
def test_constants_beyond_the_range_keep_their_node_float32(constant, fp16, bf16):
    proto = toy_chain(("Add", constant), ("Mul", 1.0))
    for dtype, low in (("fp16", fp16), ("bf16", bf16)):
        typed = typed_graph(proto, dtype)
        assert types_of(typed, "vision.toy/Add.0") == {DTYPES[dtype] if low else FLOAT}


@both
def test_weights_are_rounded_to_nearest_even_and_stored_once_a_type(dtype):
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["d"], "grounding/MatMul"),
        helper.make_node("MatMul", ["d", "w"], ["y"], "tower/MatMul"),
    ]
    typed = typed_graph(toy(nodes, {"w": weight, "v": weight, "unused": weight}), dtype)
    stored = {tensor.name: tensor for tensor in typed.graph.initializer}
    assert set(stored) == {"w", f"w.{dtype}", "v"}
    np.testing.assert_array_equal(numpy_helper.to_array(stored["w"]), weight)
    rounded = torch.from_numpy(weight).to(TORCH[dtype]).float().numpy()
    for name in (f"w.{dtype}", "v"):
        assert stored[name].data_type == DTYPES[dtype]
        found = numpy_helper.to_array(stored[name]).astype(np.float32)
        np.testing.assert_array_equal(found, rounded)


def test_refusals():
    proto = toy_chain(("Add", 1.0))
    with pytest.raises(InputError, match=r"dtype: 'fp8' is unknown; choose fp16, bf16"):
        typed_graph(proto, "fp8")
    with pytest.raises(InputError, match="low_outputs: the graph has no 'patches'; it has y"):
        typed_graph(proto, "fp16", low_outputs=["y", "patches"])
    with pytest.raises(EngineError, match="emulation: onnxruntime"):
        EmulatedRunner(proto, 1).run({"x": np.zeros((2, 9), np.float32)})


# Constant folding


def test_rotary_angles_are_constants_of_float32_accuracy():
    angles = np.random.default_rng(0).uniform(-300, 300, (4, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Concat", ["angles", "angles"], ["both"], axis=0),
        helper.make_node("Slice", ["both", "zero", "four"], ["part"]),
        helper.make_node("Cos", ["part"], ["cos"]),
        helper.make_node("Split", ["cos", ""], ["top", "rest"], num_outputs=2),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceMax", ["top"], ["turn"]),
        helper.make_node("Mul", ["a", "turn"], ["y"]),
    ]
    constants = {"angles": angles, "zero": np.array([0]), "four": np.array([4])}
    proto = toy(nodes, {**constants, "w": np.eye(8, dtype=np.float32)})
    folded = fold_constants(proto)
    onnx.checker.check_model(folded, full_check=True)
    assert [node.output[0] for node in folded.graph.node] == ["a", "y"]
    stored = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer}
    assert set(stored) == {"w", "turn"}
    # one rounding of the result, and numpy's own half unit
    np.testing.assert_allclose(
        stored["turn"].item(), np.cos(angles[:2].astype(np.float64)).max(), rtol=1.2e-7
    )
    assert len(proto.graph.node) == 7


def test_dinov3_computes_no_cosines_at_run_time():
    operators = Counter(node.op_type for node in graph("hf", "item").graph.node)
    assert not {"Cos", "Sin", "Constant"} & set(operators)


def test_what_is_no_constant_is_not_folded():
    side = int((LARGEST // 4) ** 0.5) + 1
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Expand", ["s", "large"], ["e"]),
        helper.make_node("ReduceMax", ["e"], ["m"], keepdims=0),
        helper.make_node("RandomNormal", [], ["r"], shape=[8, 8]),
        helper.make_node("MatMul", ["x", "d"], ["a"]),
        helper.make_node("MatMul", ["a", "r"], ["b"]),
        helper.make_node("Mul", ["b", "m"], ["y"]),
    ]
    constants = {
        "w": np.eye(8, dtype=np.float32),
        "s": np.array(0.5, np.float32),
        "z": np.array(0, np.int8),
        "large": np.array([side, side]),
    }
    proto = toy(nodes, constants)
    assert list(fold_constants(proto).graph.node) == list(proto.graph.node)


# Emulation


@both
def test_emulation_rounds_after_every_node_exactly(dtype):
    # Few, coarse numbers: their products' float32 sums are exact in any order, and fine enough that
    # most results of the product are not low numbers.
    rng = np.random.default_rng(0)
    x, w, b = (
        rng.integers(-100, 100, shape).astype(np.float32) / 64 for shape in ((50, 8), (8, 8), (8,))
    )
    proto = toy_chain(("MatMul", w), ("Add", b), ("Mul", b))
    kind = TORCH[dtype]
    low = [torch.from_numpy(value).to(kind) for value in (x, w, b)]
    expected = (low[0] @ low[1] + low[2]) * low[2]
    found = EmulatedRunner(typed_graph(proto, dtype), 1).run({"x": x})["y"]
    np.testing.assert_array_equal(found, expected.float().numpy())
    once = ((x @ w + b) * b).astype(NUMPY[dtype]).astype(np.float32)
    assert not np.array_equal(found, once)  # rounding once, at the end, is something else


def test_emulated_float16_overflows_and_underflows():
    x = np.full((1, 8), 300, np.float32)
    proto = toy_chain(("Mul", 300.0), ("Mul", 2.0))
    assert np.isinf(EmulatedRunner(typed_graph(proto, "fp16"), 1).run({"x": x})["y"]).all()
    assert np.isfinite(EmulatedRunner(typed_graph(proto, "bf16"), 1).run({"x": x})["y"]).all()
    proto = toy_chain(("Mul", 1e-4), ("Mul", 1e4))
    found = EmulatedRunner(typed_graph(proto, "fp16"), 1).run({"x": x * 1e-7})["y"]
    np.testing.assert_array_equal(found, np.zeros((1, 8)))


def test_emulation_of_a_float32_graph_changes_nothing():
    proto = graph("conv", "query")
    assert list(emulated(proto).graph.node) == list(proto.graph.node)


@both
@pytest.mark.parametrize(("config", "tower"), [("conv", "query"), ("hf", "item")])
def test_typed_towers_lose_no_more_than_torch_does(config, tower, dtype):
    feeds = inputs(CONFIGS[config], tower, 6)
    arguments = tensors(feeds)
    model = build(CONFIGS[config])

    def encode(pixels: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            if tower == "query":
                return model.encode_query(pixels, arguments[1]).float().numpy()
            return model.encode_item(pixels, *arguments[1:]).embedding.float().numpy()

    expected = encode(arguments[0])
    model.to(TORCH[dtype])
    torch_error = np.abs(encode(arguments[0].to(TORCH[dtype])) - expected).max()
    typed = typed_graph(graph(config, tower), dtype)
    found = EmulatedRunner(typed, 1).run(feeds)["embedding"]
    # torch rounds norms, softmaxes and the head too; twice its error leaves room for chance
    assert 0 < np.abs(found - expected).max() <= 2 * torch_error


# Q/DQ


@pytest.fixture(scope="module")
def quantised():
    """The small convolutional query tower by kind of quantisation, with its calibration inputs."""
    source, feeds = graph("conv", "query"), inputs(CONV, "query", 16)
    int8 = gpu_int8_graph(source, feeds)
    return {"int8": int8, "fp8": gpu_fp8_graph(int8, source)}, feeds


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@both
def test_pairs_take_and_give_the_low_type(quantised, kind, dtype):
    graphs, _ = quantised
    typed = typed_graph(graphs[kind], dtype)
    types, low = element_types(typed), DTYPES[dtype]
    quantise = [node for node in typed.graph.node if node.op_type == "QuantizeLinear"]
    restore = [node for node in typed.graph.node if node.op_type == "DequantizeLinear"]
    assert quantise
    assert len(restore) > len(quantise)  # the weights' too
    assert {types[name] for node in quantise for name in node.input[:2]} == {low}
    assert {types[name] for node in restore for name in (node.input[1], node.output[0])} == {low}
    stored = {TensorProto.INT8} if kind == "int8" else {TensorProto.FLOAT8E4M3FN}
    assert {types[node.output[0]] for node in quantise} == stored


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_emulated_pairs_saturate_and_match_onnxruntime(quantised, kind):
    graphs, feeds = quantised
    typed = typed_graph(graphs[kind], "fp16")
    options = onnxruntime.SessionOptions()  # optimised, its float8 products are wrong by 0.1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(typed.SerializeToString(), options)  # its own float16
    named = {name: feeds[name] for name in INPUTS["query"]}
    named["pixels"] = named["pixels"] * 4  # far beyond the calibrated range
    expected = session.run(["embedding"], named)[0]
    found = EmulatedRunner(typed, 1).run(named)["embedding"]
    assert np.isfinite(found).all()
    full = EmulatedRunner(graphs[kind], 1).run(named)["embedding"]
    # A rounding error of float16 now and then moves a value to the next quantisation step.
    step = np.abs(full - EmulatedRunner(graph("conv", "query"), 1).run(named)["embedding"]).max()
    assert np.abs(found - expected).max() < step / 2
    assert np.abs(found - full).max() < step / 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("int8", [63.5, -64.0, 0.0, 0.5, 1.0]), ("fp8", [224.0, -224.0, 0.25, 0.40625, 0.75])],
)
def test_emulated_saturation_and_rounding_of_one_pair(kind, expected):
    number = np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Mul", ["d", "one"], ["y"]),
    ]
    constants = {"s": np.array(0.5, np.float32), "z": np.zeros((), number)}
    typed = typed_graph(toy(nodes, {**constants, "one": np.ones(8, np.float32)}), "fp16")
    x = np.array([[9999, -9999, 0.25, 0.4, 0.75, 0, 0, 0]], np.float32)  # ties go to even
    found = EmulatedRunner(typed, 1).run({"x": x})["y"]
    np.testing.assert_array_equal(found[0, :5], np.array(expected, np.float32))


def test_scales_too_small_for_float16():
    constants = {
        "w": np.full((8, 8), 127, np.int8),
        "s": np.array([1e-12] + [1e-2] * 7, np.float32),
        "z": np.zeros(8, np.int8),
        "xs": np.array(1e-12, np.float32),
        "xz": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"], "x/Q"),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"], "x/DQ"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["e"], "w/DQ", axis=1),
        helper.make_node("MatMul", ["d", "e"], ["y"]),
    ]
    typed = typed_graph(toy(nodes, constants), "fp16")
    assert types_of(typed, "x/DQ") == {FLOAT}  # all activations would become infinite
    assert types_of(typed, "w/DQ") == {TensorProto.FLOAT16}
    scales = {t.name: numpy_helper.to_array(t) for t in typed.graph.initializer}["s"]
    assert scales.min() > 0  # TensorRT refuses a scale of zero


# TensorRT-RTX


def trt_build(proto: onnx.ModelProto) -> str:
    """Parse and build for one architecture; no GPU needed. Returns what went wrong, or ""."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(proto.SerializeToString()):
        return "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        entry = network.get_input(i)
        rest = tuple(entry.shape)[1:]
        shapes = [(size, *(5 if d < 0 else d for d in rest)) for size in (1, 2, 4)]
        profile.set_shape(entry.name, *shapes)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return "" if builder.build_serialized_network(network, config) else "the build failed"


@both
@pytest.mark.parametrize(
    ("config", "tower", "cut"),
    [("conv", "query", "tower"), ("hf", "item", "tower"), ("hf", "item", "backbone")],
)
def test_tensorrt_rtx_builds_typed_graphs(config, tower, cut, dtype):
    low = ["patches", "queries", "text"] if cut == "backbone" else []
    assert trt_build(typed_graph(graph(config, tower, cut), dtype, low)) == ""


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_tensorrt_rtx_builds_quantised_graphs(quantised, kind):
    assert trt_build(typed_graph(quantised[0][kind], "fp16")) == ""
