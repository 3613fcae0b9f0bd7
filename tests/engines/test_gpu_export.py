"""The GPU part of an export: graphs, kernels and engines in the bundle, and every refusal."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from cuda_fakes import engine_content, pretended_cuda, trt_module
from small_models import CONV, LEVELS, build, inputs, tokenizer_file

import tigerfg.export.gpu as gpu_module
from tigerfg.bundle import Bundle
from tigerfg.engines import sidecar, tensorrt, trt_files
from tigerfg.engines.accuracy import THRESHOLDS, cosines
from tigerfg.engines.builder import PROFILES, Profile
from tigerfg.engines.onnx import OnnxRunner
from tigerfg.engines.tensorrt import TensorRtRunner
from tigerfg.engines.trt_library import Builder, current_gpu
from tigerfg.errors import BundleError, EngineError, InputError
from tigerfg.export import GpuRequest, export_bundle
from tigerfg.export.gpu import GpuGraphs
from tigerfg.export.graph import tower_graph
from tigerfg.export.samples import Samples
from tigerfg.kernels.model_kernels import ModelKernels
from tigerfg.model import save_checkpoint
from tigerfg.model.config import GroundingConfig, VisionConfig

# A width that the kernels take (they load 16 values at a time).
SERVED = replace(
    LEVELS,  # what the kernels see is not what callers see
    name="served",
    vision=VisionConfig(width=48, depth=2),
    grounding=GroundingConfig(heads=3, queries_per_head=2),
)
LOW = ("fp16", "bf16", "int8", "fp8")

without_gpu = pytest.mark.skipif(current_gpu() is not None, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tokenizer_file(folder / "tokenizer.json")
    return save_checkpoint(build(SERVED), tokenizer, folder / "served")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, checkpoint, parity_folder):
    """All precisions with the tail's kernels for one architecture, no engines."""
    out = tmp_path_factory.mktemp("bundle") / "served"
    request = GpuRequest(precisions=LOW, engine="none", sms=(89,))
    export_bundle(checkpoint, out, ["fp32"], parity_folder, gpu=request)
    return Bundle.open(out)


def test_bundle_has_every_file_and_verifies(bundle):
    bundle.verify()
    part = bundle.gpu
    assert part.precisions == list(LOW)
    assert part.shape == (48, 3, 2, 32, "mean", 1e-6, 1e-6)
    for tower in ("query", "item"):
        for precision in LOW:
            assert part.cuts(tower, precision) == ["tower", "backbone"]
            graph = onnx.load(part.graph(tower, precision, "backbone"), load_external_data=False)
            types = {entry.name: entry.type.tensor_type.elem_type for entry in graph.graph.output}
            low = onnx.TensorProto.BFLOAT16 if precision == "bf16" else onnx.TensorProto.FLOAT16
            assert types.pop("patches") == low
            assert types.pop("token_weights", 1) == onnx.TensorProto.FLOAT
            assert set(types.values()) <= {low}
    names = {entry["name"].split("_fp16")[0].split("_bf16")[0] for entry in part.kernels()}
    assert names == {
        *("grounding_whole", "grounding_split", "tail_whole", "tail_split"),
        "pooled_embedding_mean_masked",
    }
    assert all(entry["path"].is_file() and entry["arch"] == 89 for entry in part.kernels())
    assert part.engines() == []
    assert (part.profiles, part.workspace) == (tuple(map(tuple, PROFILES)), None)
    assert part.identity("query", "fp16", "tower") != part.identity("query", "fp16", "backbone")


def test_parity_is_recorded_for_every_precision(bundle):
    parity = bundle.manifest["parity"]
    for tower in ("query", "item"):
        for precision in LOW:
            entry = parity["gpu"][tower][precision]
            assert THRESHOLDS[precision] <= entry["cosine_min"] <= entry["cosine_mean"] <= 1.000001
            assert set(entry["batches"]) == {"1", "3", "16"}
            assert entry["kept"] == []
    assert set(parity["recall_at_1"]) >= {f"gpu {precision}" for precision in LOW}
    assert parity["recall_at_1"]["gpu fp16"]["queries"] > 1


def test_check_arrays_hold_what_the_model_gives(bundle):
    arrays = bundle.gpu.check()
    assert arrays["query_pixels"].dtype == np.float16
    for tower in ("query", "item"):
        names = ["pixels", "patch_mask", *(["token_ids", "token_mask"] if tower == "item" else [])]
        feeds = {name: arrays[f"{tower}_{name}"] for name in names}
        feeds["pixels"] = feeds["pixels"].astype(np.float32)
        found = OnnxRunner(bundle.onnx(tower, "fp32"), tower, "fp32", 1).run(feeds)
        assert cosines(found["embedding"], arrays[f"{tower}_embedding"]).min() > 0.99999


def test_tail_weights_are_the_models(bundle):
    model, weights = build(SERVED), bundle.gpu.tail_weights()
    np.testing.assert_array_equal(weights["w_v"], model.grounding.w_v.numpy())
    np.testing.assert_array_equal(weights["projection"], model.head.projection.weight.numpy())
    assert "pool_query" not in weights


def test_a_damaged_gpu_part_is_refused(bundle, tmp_path):
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "tail.npz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"tail.npz: 0 bytes"):
        Bundle.open(copy)
    del manifest["gpu"]["graphs"]["item"]["fp16"]["tower"]["sha256"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"gpu.graphs.item.fp16.tower.sha256"):
        Bundle.open(copy)
    del manifest["gpu"]["graphs"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="gpu is incomplete"):
        Bundle.open(copy)


def test_missing_precisions_name_the_option(bundle, small_bundle):
    with pytest.raises(BundleError, match=r"no fp32 graph .* export it with --fp32"):
        bundle.gpu.graph("query", "fp32", "tower")
    assert Bundle.open(small_bundle).gpu is None


@without_gpu
def test_refusals_come_before_any_work(checkpoint, tmp_path):
    def refused(match: str, error: type[Exception], **request: object) -> None:
        with pytest.raises(error, match=match):
            export_bundle(checkpoint, tmp_path / "out", gpu=GpuRequest(**request))
        assert list(tmp_path.iterdir()) == []

    refused("'fp12' is unknown", InputError, precisions=("fp12",))
    refused("none given", InputError, precisions=())
    refused("'caffe' is unknown", InputError, engine="caffe")
    refused("sm: 999 is none that kernels", InputError, engine="none", sms=(999,))
    refused("sm: 80 has no float8", InputError, precisions=("fp16", "fp8"), sms=(89, 80))
    pytest.importorskip("tensorrt_rtx")
    refused("no GPU here.*--sm 89.*--engine none", EngineError, engine="tensorrt-rtx")


@pytest.mark.slow
def test_engines_are_built_into_the_bundle(checkpoint, parity_folder, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no builder")
    profiles = (Profile(1, 1, 1), Profile(2, 3, 4))
    request = GpuRequest(("fp16",), "tensorrt-rtx", (80, 89), profiles)
    out = export_bundle(checkpoint, tmp_path / "b", ["fp32"], parity_folder, gpu=request)
    opened = Bundle.open(out)
    opened.verify()
    assert len(opened.gpu.engines()) == 2
    for entry, file in zip(opened.manifest["gpu"]["engines"], opened.gpu.engines(), strict=True):
        beside = sidecar.read(file)
        assert (beside.sms, beside.cut, beside.parity) == ((80, 89), "backbone", None)
        assert entry["parity"] == "not run"
        identity = opened.gpu.identity(beside.tower, "fp16", "backbone")
        assert beside.onnx_sha256 == identity
        assert beside.profiles == tuple(map(tuple, profiles))


def test_a_layer_that_loses_too_much_stays_finer(checkpoint, parity_folder, tmp_path, monkeypatch):
    """One layer with a hundredfold scale would sink int8; it is left out and named."""
    original = gpu_module.gpu_int8_graph

    def spoiled(proto, feeds, keep=()):
        graph = original(proto, feeds, keep)
        for tensor in graph.graph.initializer:
            if tensor.name == "vision.stem.2.weight_scale":
                values = onnx.numpy_helper.to_array(tensor) * 0.01
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return graph

    monkeypatch.setattr(gpu_module, "gpu_int8_graph", spoiled)
    lines: list[str] = []
    request = GpuRequest(("int8",), "none", fused_tail=False)
    out = export_bundle(
        checkpoint, tmp_path / "b", ["fp32"], parity_folder, lines.append, gpu=request
    )
    kept = Bundle.open(out).manifest["parity"]["gpu"]["query"]["int8"]["kept"]
    assert "vision.stem.2/Conv" in kept
    assert any("layers finer" in line for line in lines)


@pytest.fixture(scope="module")
def overflowing():
    """A model with hidden values of some 1e5 in one block, its query tower, and pictures."""
    model, scale = build(CONV), 2.0**17
    block = model.vision.blocks[1]
    for parameter in (block.up.weight, block.up.bias):
        parameter.mul_(scale)
    block.down.weight.div_(scale)
    feeds = [inputs(CONV, tower, 8) for tower in ("query", "item")]
    samples = Samples(*feeds, (frozenset(),) * 8, tuple("01234567"), "")
    return model, tower_graph(model, "query"), samples


@pytest.mark.parametrize("precisions", [("fp16",), ("int8",), ("fp8",), ("int8", "fp16", "bf16")])
def test_what_float16_does_not_hold_stays_float32(overflowing, precisions):
    """The nodes around the large values, whichever precisions are asked for, in any order."""
    model, proto, samples = overflowing
    graphs = GpuGraphs(model, samples, lambda line: None)
    graphs.add("query", proto, precisions)
    block = "vision.blocks.1"
    large = [f"{block}.down/MatMul", f"{block}.up/Add", f"{block}.up/MatMul", f"{block}/Gelu"]
    for precision in precisions:
        assert graphs.kept["query", precision] == ([] if precision == "bf16" else large)


def test_a_tower_that_cannot_be_saved_is_refused_with_its_worst_layers(
    checkpoint, parity_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu_module, "THRESHOLDS", {**THRESHOLDS, "fp8": 1.1})
    with pytest.raises(EngineError, match=r"query tower in fp8 .* 1.1 is needed.*lose most"):
        export_bundle(
            checkpoint, tmp_path / "b", ["fp32"], parity_folder,
            gpu=GpuRequest(("fp8",), "none", fused_tail=False),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_an_exported_bundle_runs(bundle, monkeypatch, tmp_path):
    """From the exported files alone, on a pretended GPU, up to the stored float32 results."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels = ModelKernels("fp16", **bundle.gpu.shape._asdict())
    entries = [entry for entry in bundle.gpu.kernels() if "_fp16_" in entry["name"]]
    for entry in entries:  # the pretended device knows a kernel by its name, not by its code
        entry["path"] = tmp_path / entry["name"]
        entry["path"].write_text(entry["name"])
    monkeypatch.setattr(type(bundle.gpu), "kernels", lambda part: entries)
    with pretended_cuda(monkeypatch) as device:
        for operator in ("grounding", "tail", "pooling"):
            named = {variant.name: variant for variant in kernels.variants(operator, 89)}
            device.variants.update(named)
        library = Builder("tensorrt-rtx", "1.7.1", trt_module(device))
        monkeypatch.setattr(tensorrt, "find_builder", lambda name: library)
        monkeypatch.setattr(trt_files, "build_engine", pretended_build)
        for tower in ("query", "item"):
            with TensorRtRunner(bundle, tower, "fp16") as runner:  # proves itself first
                feeds = inputs(SERVED, tower, 5)
                found = runner.run(feeds)
            wanted = OnnxRunner(bundle.onnx(tower, "fp32"), tower, "fp32", 1).run(feeds)
            assert cosines(found["embedding"], wanted["embedding"]).min() > THRESHOLDS["fp16"]
            if tower == "item":
                gap = np.abs(found["grounding_map"] - wanted["grounding_map"]).sum(axis=1)
                assert gap.max() < 0.01
    assert len(list((tmp_path / "cache").rglob("*.engine"))) == 2


def pretended_build(graph, out, **options):
    """An engine of the pretended library: it runs the graph in ONNX Runtime."""
    content = engine_content(graph, ((1, 1, 1), (2, 4, 8)), options["max_text_length"], "HALF")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(content)
    made = sidecar.Sidecar(
        builder=options["builder"].name,
        version=options["builder"].version,
        sms=(89,),
        driver=None,
        profiles=((1, 1, 1), (2, 4, 8)),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        seconds=0.1,
        workspace=None,
        **{
            name: options[name]
            for name in ("onnx_sha256", "tower", "precision", "cut", "max_text_length")
        },
    )
    sidecar.write(out, made)
    return made
