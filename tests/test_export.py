"""Export: graphs, shared weights, int8, parity, and every refusal leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import CONV, HF, LEVELS, build, expected, inputs, tokenizer_file

import tigerfg.export.bundle as export_module
from tigerfg.bundle import Bundle
from tigerfg.engines.base import BACKBONE_OUTPUTS, INPUTS, OUTPUTS
from tigerfg.engines.onnx import OnnxRunner
from tigerfg.errors import BundleError, EngineError, InputError, TigerfgError
from tigerfg.export import export_bundle
from tigerfg.export.graph import tower_graph
from tigerfg.export.parity import check, encode_in_batches, measure
from tigerfg.export.quantize import quantised_nodes
from tigerfg.export.samples import Samples
from tigerfg.export.tail import backbone_encoder
from tigerfg.export.weights import WEIGHTS, write_models
from tigerfg.model import save_checkpoint

# float32 sums in another order: some 1e-7 per operation, norm-1 outputs, about 30 layers
ATOL = 5e-6


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [entry.dim_param or entry.dim_value for entry in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    """Both towers of the DINOv3 + BERT model as ONNX files."""
    folder = tmp_path_factory.mktemp("hf")
    model = build(HF)
    graphs = {f"{tower}.onnx": tower_graph(model, tower) for tower in ("query", "item")}
    write_models(graphs, folder)
    return folder


@pytest.fixture
def known_graphs(small_bundle, monkeypatch):
    """Let `export_bundle` take the graphs of `small_bundle` instead of tracing the model again."""
    monkeypatch.setattr(
        export_module, "tower_graph", lambda model, tower: onnx.load(small_bundle / f"{tower}.onnx")
    )


@pytest.mark.parametrize("tower", ["query", "item"])
@pytest.mark.parametrize("config", [CONV, HF], ids=["conv", "dinov3-bert"])
def test_graph_gives_what_the_model_gives(config, tower, small_bundle, hf_folder):
    model = build(config)
    folder = small_bundle if config is CONV else hf_folder
    runner = OnnxRunner(folder / f"{tower}.onnx", tower, "fp32", 1)
    for batch, length in [(1, 1), (2, 9), (5, 24)]:  # 1 is what exporters like to freeze
        feeds = inputs(config, tower, batch, length, seed=batch)
        found = runner.run(feeds)
        for name, value in expected(model, tower, feeds).items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=ATOL)


def test_item_graph_of_two_levels_gives_what_the_model_gives(tmp_path):
    model = build(LEVELS)
    onnx.save(tower_graph(model, "item"), tmp_path / "item.onnx")
    runner = OnnxRunner(tmp_path / "item.onnx", "item", "fp32", 1)
    for batch, length in [(1, 1), (5, 24)]:
        feeds = inputs(LEVELS, "item", batch, length, seed=batch)
        found = runner.run(feeds)
        for name, value in expected(model, "item", feeds).items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=ATOL)


@pytest.mark.parametrize("tower", ["query", "item"])
@pytest.mark.parametrize("pool", ["mean", "attention"])
@pytest.mark.parametrize("config", [CONV, LEVELS, HF], ids=["conv", "two-levels", "dinov3-bert"])
def test_backbone_and_tail_give_what_the_model_gives(config, pool, tower, tmp_path):
    model = build(config, pool=pool)
    graph = tower_graph(model, tower, "backbone")
    assert tuple(entry.name for entry in graph.graph.output) == BACKBONE_OUTPUTS[tower]
    encode = backbone_encoder(model, tower, graph)
    for batch, length in [(1, 1), (3, 9)]:
        feeds = inputs(config, tower, batch, length, seed=batch)
        found = encode(feeds)
        for name, value in expected(model, tower, feeds).items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=ATOL)


def test_graph_names_and_operators(small_bundle):
    graph = onnx.load(small_bundle / "item.onnx")
    assert [entry.name for entry in graph.graph.input] == list(INPUTS["item"])
    assert [entry.name for entry in graph.graph.output] == list(OUTPUTS["item"])
    shapes = {entry.name: dimensions(entry) for entry in graph.graph.input}
    assert shapes["pixels"] == ["batch", 3, 64, 64]
    assert shapes["patch_mask"] == ["batch", 64]
    assert shapes["token_ids"] == shapes["token_mask"] == ["batch", "length"]
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": 20}
    # two conv blocks and their end, one text block (2) and its end, text summary, keys, head
    assert Counter(node.op_type for node in graph.graph.node)["LayerNormalization"] == 9
    assert any(node.name == "vision.blocks.0.up/MatMul" for node in graph.graph.node)


def test_files_tell_nothing_about_the_machine(small_bundle):
    here = str(Path(__file__).resolve().parents[1]).encode()
    for file in small_bundle.iterdir():
        data = file.read_bytes()
        assert here not in data
        assert b"site-packages" not in data


def test_bundle_is_complete_and_verified(small_bundle, small_checkpoint):
    bundle = Bundle.open(small_bundle)
    bundle.verify()
    assert bundle.precisions == ["fp32", "int8"]
    assert bundle.preprocessing == CONV.preprocessing
    assert (bundle.embedding_dim, bundle.max_text_length) == (32, 24)
    assert bundle.manifest["vocab_size"] == 120
    assert bundle.tokenizer(["red mug"])[1].any()
    assert (bundle.path / "MODEL_CARD.md").read_text().startswith("# small")
    for tower in ("query", "item"):
        for precision, bar in (("fp32", 0.9999), ("int8", 0.99)):
            parity = bundle.manifest["parity"][tower][precision]
            assert parity["cosine_min"] >= bar
            assert set(parity["batches"]) == {"1", "3", "16"}
            assert 0.5 <= parity["top10_overlap"] <= 1
            onnx.checker.check_model(str(bundle.onnx(tower, precision)), full_check=True)
    assert bundle.manifest["parity"]["item"]["int8"]["map_distance"] < 0.05
    assert listing(small_bundle.parent) == ["small"]


def test_weights_of_the_shared_backbone_are_stored_once(small_bundle):
    places: dict[str, set[str]] = {}
    for file in ("query.onnx", "item.onnx"):
        for tensor in onnx.load(small_bundle / file, load_external_data=False).graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {pair.key: pair.value for pair in tensor.external_data}
                assert entry["location"] == WEIGHTS
                places.setdefault(file, set()).add(entry["offset"])
    assert places["query.onnx"] < places["item.onnx"]


def test_a_changed_weight_file_is_refused(small_bundle, tmp_path):
    copy = shutil.copytree(small_bundle, tmp_path / "copy")
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    with pytest.raises(TigerfgError, match=WEIGHTS):
        Bundle.open(copy).verify()
    (copy / WEIGHTS).write_bytes(data[:-1])
    with pytest.raises(TigerfgError, match=WEIGHTS):
        Bundle.open(copy)


def test_int8_covers_the_dense_layers_of_the_backbone_only(small_bundle):
    names = quantised_nodes(onnx.load(small_bundle / "item.onnx"))
    assert len(names) == 2 + 2 * 2  # two stem convolutions, up and down of two blocks
    assert all(name.startswith("vision.") and "depthwise" not in name for name in names)
    graph = onnx.load(small_bundle / "item.int8.onnx").graph
    weights = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    products = [tensor for tensor in weights if len(tensor.dims) >= 2]
    assert len(products) == len(names)
    # 7 bits: the sums of CPUs without VNNI saturate with 8
    assert (
        max(
            np.abs(onnx.numpy_helper.to_array(w, str(small_bundle)).astype(int)).max()
            for w in products
        )
        <= 64
    )


def test_int8_embedding_does_not_depend_on_the_batch(small_bundle):
    runner = OnnxRunner(small_bundle / "query.int8.onnx", "query", "int8", 1)
    feeds = inputs(CONV, "query", 4)
    feeds["pixels"][3] *= 10  # an outlier must not move the scales of its neighbours
    alone = runner.run({name: value[:1] for name, value in feeds.items()})["embedding"]
    together = runner.run(feeds)["embedding"][:1]
    np.testing.assert_allclose(alone, together, rtol=0, atol=ATOL)


def test_one_precision_and_replacing_a_bundle(
    small_checkpoint, parity_folder, tmp_path, known_graphs
):
    out = export_bundle(small_checkpoint, tmp_path / "b", ["fp32"], parity_folder)
    assert Bundle.open(out).precisions == ["fp32"]
    refused("would lose its float32 parameters; add --fp32", out, out, "int8")
    lines: list[str] = []
    export_bundle(small_checkpoint, out, "int8", parity_folder, lines.append)
    assert Bundle.open(out).precisions == ["int8"]
    assert not (out / "query.onnx").exists()
    assert any("cosine mean" in line for line in lines)
    assert listing(tmp_path) == ["b"]
    refused("no float32 parameters", out, tmp_path / "c", ["fp32"], error=BundleError)


def test_a_bundle_is_exported_anew(small_bundle, parity_folder, tmp_path, known_graphs):
    again = export_bundle(small_bundle, tmp_path / "again", ["fp32"], parity_folder)
    assert Bundle.open(again).fingerprint == Bundle.open(small_bundle).fingerprint
    assert (again / "MODEL_CARD.md").read_text().startswith("# small")


def refused(match: str, ckpt: Path, out: Path, *args: object, error=InputError) -> None:
    before = listing(out.parent)
    with pytest.raises(error, match=match) as caught:
        export_bundle(ckpt, out, *args)
    assert len(str(caught.value).splitlines()) == 1
    assert listing(out.parent) == before


def test_refusals_leave_nothing_behind(small_checkpoint, parity_folder, tmp_path):
    out = tmp_path / "out"
    refused("has no config.json", parity_folder, out)
    refused("int4.*fp32, int8", small_checkpoint, out, ["fp32", "int4"])
    refused("none given", small_checkpoint, out, [])
    refused("0 usable items", small_checkpoint, out, ["fp32"], empty_data(tmp_path / "data"))
    file = tmp_path / "file"
    file.write_text("keep me")
    refused("no directory", small_checkpoint, file)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("keep me")
    refused("no bundle", small_checkpoint, other)
    assert file.read_text() == (other / "notes.txt").read_text() == "keep me"
    with pytest.raises(TigerfgError, match=r"cannot write .*; nothing was changed"):
        export_bundle(small_checkpoint, file / "out", ["fp32"], parity_folder)


def test_files_of_others_in_a_bundle_are_not_replaced(
    small_checkpoint, small_bundle, parity_folder, tmp_path, known_graphs
):
    out = shutil.copytree(small_bundle, tmp_path / "out")
    (out / "catalogue").mkdir()
    refused("holds 'catalogue', which is not of that bundle", small_checkpoint, out, ["fp32"])
    (out / "catalogue").rmdir()
    link = tmp_path / "link"
    link.symlink_to(out)
    export_bundle(small_checkpoint, link, ["fp32"], parity_folder)
    assert link.is_symlink()
    assert Bundle.open(out).precisions == ["fp32"]


def empty_data(folder: Path) -> Path:
    folder.mkdir()
    (folder / "items.jsonl").write_text("")
    (folder / "queries.jsonl").write_text("")
    return folder


def test_damaged_checkpoints_are_refused(small_checkpoint, tmp_path):
    broken = shutil.copytree(small_checkpoint, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("damaged", broken, tmp_path / "out")
    (broken / "tokenizer.json").write_text("{}")
    weights.write_bytes((small_checkpoint / "model.safetensors").read_bytes())
    refused("tokenizer", broken, tmp_path / "out")


def test_low_parity_is_refused_and_the_old_bundle_stays(
    small_checkpoint, small_bundle, parity_folder, tmp_path, monkeypatch, known_graphs
):
    out = shutil.copytree(small_bundle, tmp_path / "out")
    digest = hashlib.sha256((out / "manifest.json").read_bytes()).digest()
    original = export_module.int8_graph

    def spoiled(graph, feeds):
        quantised = original(graph, feeds)
        for tensor in quantised.graph.initializer:
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2:
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), tensor.name))
        return quantised

    monkeypatch.setattr(export_module, "int8_graph", spoiled)
    refused(
        "query tower in int8.*cosine",
        small_checkpoint,
        out,
        ["int8"],
        parity_folder,
        error=EngineError,
    )
    assert hashlib.sha256((out / "manifest.json").read_bytes()).digest() == digest


def test_full_disk_is_one_line_and_nothing_is_left(
    small_checkpoint, parity_folder, tmp_path, monkeypatch, known_graphs
):
    def full(models, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "write_models", full)
    out = tmp_path / "out"
    refused("No space left", small_checkpoint, out, ["fp32"], parity_folder, error=TigerfgError)


@pytest.mark.parametrize("left", [0, -1000])
def test_a_graph_cut_off_by_a_full_disk_is_one_line(
    small_checkpoint, parity_folder, tmp_path, monkeypatch, known_graphs, left
):
    def cut(source, target, *_, **__):  # as ONNX Runtime leaves it, without an error
        Path(target).write_bytes(Path(source).read_bytes()[:left])

    monkeypatch.setattr("tigerfg.export.quantize.quantize_static", cut)
    out = tmp_path / "out"
    refused(
        "full disk: free some space",
        small_checkpoint,
        out,
        ["int8"],
        parity_folder,
        error=TigerfgError,
    )


def test_parity_check_names_tower_precision_and_batch():
    batches = {"1": {"cosine_min": 0.999}, "3": {"cosine_min": 0.5}}
    found = {"length_error": 0.0, "batches": batches}
    with pytest.raises(EngineError, match=r"item tower in int8 .*0\.5000.*batch 3"):
        check("item", "int8", {**found, "cosine_min": 0.5})
    with pytest.raises(EngineError, match="nan"):
        check("item", "int8", {**found, "cosine_min": float("nan")})
    check("item", "int8", {**found, "cosine_min": 0.99})
    for error in (0.002, float("nan")):
        with pytest.raises(EngineError, match="off the length 1"):
            check("item", "int8", {**found, "cosine_min": 0.99, "length_error": error})


def test_what_is_wrong_in_one_batch_alone_is_seen():
    """Outputs that only some batch spoils: maps, token weights, lengths."""
    rng = np.random.default_rng(0)
    feeds = inputs(CONV, "item", 16, 12)
    texts = feeds["token_mask"].shape[1]
    right = {
        "embedding": np.eye(16, 32, dtype=np.float32),
        "grounding_map": rng.dirichlet(np.ones(9), 16),
        "token_weights": rng.dirichlet(np.ones(texts), 16),
    }
    samples = Samples(feeds, feeds, (frozenset(),) * 16, ("x",) * 16, "")
    expected = dict.fromkeys(INPUTS, right)

    def measured(spoiled: str, value: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        rows = {array.tobytes(): number for number, array in enumerate(feeds["pixels"])}

        def encode(batch):
            own = [rows[array.tobytes()] for array in batch["pixels"]]
            found = {name: values[own] for name, values in right.items()}
            if len(own) == 3:
                found[spoiled] = value(found[spoiled])
            length = batch["token_ids"].shape[1]
            return {**found, "token_weights": found["token_weights"][:, :length]}

        return measure(encode, "item", samples, expected, {1: 1, 3: 12, 16: 16})[0]

    shares = {name: gap for name, gap in measured("embedding", lambda x: x).items() if "_" in name}
    assert shares["length_error"] == shares["map_distance"] == 0
    assert measured("grounding_map", lambda x: x[:, ::-1])["map_distance"] > 0.1
    assert measured("token_weights", lambda x: x[:, ::-1])["token_distance"] > 0.1
    assert measured("embedding", lambda x: 3 * x)["length_error"] == pytest.approx(2)


def test_nan_in_the_last_batch_alone_fails():
    feeds = {"pixels": np.ones((20, 1, 1, 1), np.float32)}
    samples = Samples(feeds, feeds, (frozenset(),) * 20, ("x",) * 20, "")
    expected = {tower: {"embedding": np.eye(20, 8, dtype=np.float32) + 1} for tower in INPUTS}

    def encode(rows):
        found = expected["query"]["embedding"][: len(rows["pixels"])].copy()
        if len(found) > 3:
            found[-1] = np.nan
        return {"embedding": found}

    result, _ = measure(encode, "query", samples, expected, {1: 1, 16: 20})
    with pytest.raises(EngineError, match="nan"):
        check("query", "fp32", result)


def test_a_map_that_is_off_fails():
    batches = {"1": {"cosine_min": 1.0}}
    result = {"cosine_min": 1.0, "length_error": 0.0, "batches": batches}
    for distance in (0.06, float("nan")):
        with pytest.raises(EngineError, match=r"grounding maps of the item tower in int8"):
            check("item", "int8", {**result, "map_distance": distance})
    with pytest.raises(EngineError, match=r"token weights of the item tower in int8"):
        check("item", "int8", {**result, "token_distance": 0.06})


def test_a_folder_with_a_manifest_of_its_own_is_no_bundle(small_checkpoint, tmp_path):
    app = tmp_path / "webapp"
    app.mkdir()
    (app / "manifest.json").write_text('{"name": "my pwa"}')
    refused("no bundle", small_checkpoint, app)
    assert (app / "manifest.json").is_file()


def test_batches_cover_everything_once_with_their_own_text_length():
    feeds = inputs(CONV, "item", 5, 12)
    seen = []

    def encode(rows):
        seen.append(rows["token_ids"].shape)
        return {"embedding": rows["pixels"][:, 0, 0, :4], "token_weights": rows["token_mask"]}

    found = encode_in_batches(encode, feeds, 2)
    assert list(found) == ["embedding", "token_weights"]
    np.testing.assert_array_equal(found["token_weights"], feeds["token_mask"])
    np.testing.assert_array_equal(found["embedding"], feeds["pixels"][:, 0, 0, :4])
    assert [shape[0] for shape in seen] == [2, 2, 1]
    lengths = feeds["token_mask"].sum(axis=1)
    assert [shape[1] for shape in seen] == [lengths[:2].max(), lengths[2:4].max(), lengths[4]]


@pytest.mark.slow
def test_hugging_face_checkpoint_becomes_a_bundle(parity_folder, hf_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        export_module, "tower_graph", lambda model, tower: onnx.load(hf_folder / f"{tower}.onnx")
    )
    tokenizer = tokenizer_file(tmp_path / "tokenizer.json")
    checkpoint = save_checkpoint(build(HF), tokenizer, tmp_path / "hf")
    out = export_bundle(checkpoint, tmp_path / "bundle", parity_data=parity_folder)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["vocab_size"] == 120
    assert manifest["parity"]["item"]["fp32"]["cosine_min"] >= 0.9999
