"""The Triton Inference Server repository: its configurations, models, warm-up, README, refusals."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import runtime_version, text_format
from small_models import CONV, inputs

from tigerfg.bundle import MANIFEST_FILE, TOWERS, Bundle
from tigerfg.encoder import Encoder
from tigerfg.engines import open_engine
from tigerfg.engines.base import INPUTS, OUTPUTS
from tigerfg.errors import InputError, MissingExtraError, TigerfgError
from tigerfg.export import triton_repository
from tigerfg.export.manifest import record
from tigerfg.export.precision import typed_graph
from tigerfg.export.triton_repository import write_triton_repository
from tigerfg.export.weights import WEIGHTS, write_models
from tigerfg.records import Item
from tigerfg.text import item_text

pytest.importorskip("tritonclient", reason="needs tigerfg[triton-server]")

NUMPY = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_}
# the same float32 graph on other lengths and batches: sums in another order, norm-1 outputs
ATOL = 2e-6


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    return triton_repository._schema()


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture(scope="module")
def gpu_bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`small_bundle` with float16 towers for GPUs beside the float32 ones."""
    folder = tmp_path_factory.mktemp("gpu") / "small"
    shutil.copytree(small_bundle, folder)
    plain = {tower: onnx.load(small_bundle / f"{tower}.onnx") for tower in TOWERS}
    graphs = {f"{tower}.fp16.onnx": typed_graph(plain[tower], "fp16") for tower in TOWERS}
    write_models({**graphs, **{f"{tower}.onnx": plain[tower] for tower in TOWERS}}, folder)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["weights"] = record(folder / WEIGHTS)
    for tower in TOWERS:
        manifest["towers"][tower] = {"fp32": record(folder / f"{tower}.onnx")}
    manifest["gpu"] = {
        "profiles": [[1, 1, 1]],
        "workspace": None, "item_levels": 1,
        "graphs": {t: {"fp16": {"tower": record(folder / f"{t}.fp16.onnx")}} for t in TOWERS},
        "shape": {
            "width": 40, "heads": 5, "queries_per_head": 2, "embedding_dim": 32, "pool": "mean",
            "key_norm_eps": 1e-6, "norm_eps": 1e-6,
        },
    }  # fmt: skip
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triton_repository(bundle, tmp_path_factory.mktemp("triton") / "repository")


@pytest.fixture(scope="module")
def gpu_repository(gpu_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triton_repository(gpu_bundle, tmp_path_factory.mktemp("triton") / "repository")


def config_of(schema, repository: Path, tower: str):
    text = (repository / f"tigerfg_{tower}" / "config.pbtxt").read_text()
    return text_format.Parse(text, schema.ModelConfig())


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_layout(repository):
    files = ["1", "1/model.onnx", f"1/{WEIGHTS}", "config.pbtxt", "warmup", "warmup/patch_mask"]
    assert listing(repository / "tigerfg_query") == files
    assert listing(repository / "tigerfg_item") == sorted([*files, "warmup/token_mask"])
    assert sorted(os.listdir(repository)) == ["README.md", "tigerfg_item", "tigerfg_query"]
    assert os.listdir(repository.parent) == ["repository"]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("folder", ["repository", "gpu_repository"])
def test_config_agrees_with_the_graph(tower, folder, request, schema):
    repository = request.getfixturevalue(folder)
    config = config_of(schema, repository, tower)
    assert config.name == f"tigerfg_{tower}"  # the server wants the folder's name
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
    graph = onnx.load(repository / config.name / "1" / "model.onnx").graph
    for ours, theirs, names in (
        (config.input, graph.input, INPUTS[tower]),
        (config.output, graph.output, OUTPUTS[tower]),
    ):
        assert [entry.name for entry in ours] == [entry.name for entry in theirs] == list(names)
        for entry, value in zip(ours, theirs, strict=True):
            tensor = value.type.tensor_type
            kind = NUMPY[schema.DataType.Name(entry.data_type)]
            assert onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) == kind
            batch, *rest = tensor.shape.dim
            assert batch.dim_param == "batch"
            assert list(entry.dims) == [dim.dim_value or -1 for dim in rest]
            assert not getattr(entry, "allow_ragged_batch", False)


def test_dims_of_the_item_tower(repository, schema):
    config = config_of(schema, repository, "item")
    dims = {entry.name: list(entry.dims) for entry in (*config.input, *config.output)}
    assert dims == {
        "pixels": [3, 64, 64], "patch_mask": [64], "token_ids": [-1], "token_mask": [-1],
        "embedding": [32], "grounding_map": [64], "token_weights": [-1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(256, [8, 32, 128, 256]), (32, [8, 32]), (1, [1]), (100, [8, 32, 100])]
)
def test_batching(bundle, tmp_path, schema, max_batch, sizes):
    write_triton_repository(
        bundle, tmp_path / "r", max_batch=max_batch, queue_delay_us=0, instances=3
    )
    config = config_of(schema, tmp_path / "r", "item")
    assert config.max_batch_size == max_batch
    assert list(config.dynamic_batching.preferred_batch_size) == sizes
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (3, schema.ModelInstanceGroup.KIND_CPU)
    ]


def test_cpu_and_gpu_settings(repository, gpu_bundle, gpu_repository, tmp_path, schema):
    cpu = config_of(schema, repository, "query")
    assert not cpu.parameters
    assert not cpu.HasField("optimization")
    assert cpu.dynamic_batching.max_queue_delay_microseconds == 500
    fp16 = config_of(schema, gpu_repository, "query")
    assert fp16.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert fp16.parameters["cudnn_conv_algo_search"].string_value == "1"
    assert not fp16.HasField("optimization")
    write_triton_repository(gpu_bundle, tmp_path / "r", precision="fp32")
    fp32 = config_of(schema, tmp_path / "r", "query")
    (cuda,) = fp32.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})


def test_a_mistake_in_a_config_does_not_parse(repository, schema):
    text = (repository / "tigerfg_item" / "config.pbtxt").read_text()
    for wrong in ("max_batchsize: 1", 'input { data_type: TYPE_FLOAT32 name: "x" }'):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(f"{text}\n{wrong}\n", schema.ModelConfig())


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_model_gives_what_the_bundle_gives(bundle, tmp_path, tower, precision):
    write_triton_repository(bundle, tmp_path / "r", precision=precision)
    moved = shutil.move(tmp_path / "r", tmp_path / "elsewhere")
    feeds = inputs(CONV, tower)
    found = run(Path(moved) / f"tigerfg_{tower}" / "1" / "model.onnx", feeds)
    for name, expected in run(bundle.onnx(tower, precision), feeds).items():
        np.testing.assert_array_equal(found[name], expected)  # the same graph and weights


@pytest.mark.parametrize("tower", TOWERS)
def test_gpu_model_is_the_float16_graph(gpu_bundle, gpu_repository, tower):
    path = gpu_repository / f"tigerfg_{tower}" / "1" / "model.onnx"
    feeds = inputs(CONV, tower)
    found = run(path, feeds)
    for name, expected in run(gpu_bundle.gpu.graph(tower, "fp16", "tower"), feeds).items():
        np.testing.assert_array_equal(found[name], expected)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


@pytest.mark.parametrize("tower", TOWERS)
def test_weights_are_those_of_the_graph_alone(gpu_bundle, gpu_repository, tower):
    folder = gpu_repository / f"tigerfg_{tower}" / "1"
    file = folder / WEIGHTS
    assert file.stat().st_nlink == 1  # the onnx package refuses more
    assert file.stat().st_size < 0.5 * (gpu_bundle.path / WEIGHTS).stat().st_size
    used = np.zeros(file.stat().st_size, np.bool_)
    for tensor in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {pair.key: pair.value for pair in tensor.external_data}
            assert entry["location"] == WEIGHTS
            start = int(entry["offset"])
            used[start : start + int(entry["length"])] = True
    unused = np.flatnonzero(~used)
    assert not np.fromfile(file, np.uint8)[unused].any()
    assert len(unused) < 64 * len(onnx.load(folder / "model.onnx").graph.initializer)


@pytest.mark.parametrize("tower", TOWERS)
def test_warmup_requests_are_valid(gpu_repository, schema, tower):
    folder = gpu_repository / f"tigerfg_{tower}"
    config = config_of(schema, gpu_repository, tower)
    assert [sample.batch_size for sample in config.model_warmup] == [1, 256]
    sizes = {entry.name: entry for entry in config.input}
    for sample in config.model_warmup:
        assert set(sample.inputs) == set(sizes)
        feeds = {}
        for name, data in sample.inputs.items():
            kind = NUMPY[schema.DataType.Name(data.data_type)]
            assert data.data_type == sizes[name].data_type
            assert [24 if dim == -1 else dim for dim in sizes[name].dims] == list(data.dims)
            source = data.WhichOneof("input_data_type")
            # an all-false mask is no valid input, though this model gives some embedding for it
            assert source == ("input_data_file" if name.endswith("_mask") else "zero_data")
            if source == "zero_data":
                value = np.zeros(list(data.dims), kind)
            else:  # the server reads one request's raw bytes and repeats them batch_size times
                raw = (folder / "warmup" / data.input_data_file).read_bytes()
                assert raw == b"\1" * int(np.prod(data.dims))
                value = np.frombuffer(raw, kind).reshape(data.dims)
            feeds[name] = np.stack([value] * min(sample.batch_size, 2))
        embedding = run(folder / "1" / "model.onnx", feeds)["embedding"]
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)


def test_cpu_warms_up_with_one_request(repository, schema):
    config = config_of(schema, repository, "item")
    assert [sample.batch_size for sample in config.model_warmup] == [1]


def test_padding_as_the_readme_advises_changes_no_result(bundle, repository):
    path = repository / "tigerfg_item" / "1" / "model.onnx"
    feeds = inputs(CONV, "item", length=9)
    padded = dict(feeds)
    for name in ("token_ids", "token_mask"):
        padded[name] = np.pad(feeds[name], ((0, 0), (0, bundle.max_text_length - 9)))
    plain, found = run(path, feeds), run(path, padded)
    assert not found["token_weights"][:, 9:].any()
    found["token_weights"] = found["token_weights"][:, :9]
    for name, expected in plain.items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=ATOL)


class FakeServer:
    """Stands in for tritonclient.grpc: refuses what the configuration does not take."""

    def __init__(self, repository: Path, schema: ModuleType) -> None:
        self.repository, self.schema = repository, schema

    def module(self) -> ModuleType:
        module = ModuleType("tritonclient.grpc")
        module.InferInput, module.InferenceServerClient = FakeInput, lambda url: self
        return module

    def infer(self, model: str, entries: list[FakeInput]) -> SimpleNamespace:
        config = config_of(self.schema, self.repository, model.removeprefix("tigerfg_"))
        wanted = {entry.name: entry for entry in config.input}
        assert {entry.name for entry in entries} == set(wanted)
        feeds = {}
        for entry in entries:
            kind = self.schema.DataType.Name(wanted[entry.name].data_type)
            dims = wanted[entry.name].dims
            assert kind == f"TYPE_{entry.datatype}"
            assert NUMPY[kind] == entry.data.dtype
            assert entry.shape == list(entry.data.shape)
            assert len(entry.shape) == 1 + len(dims)
            assert all(d in (-1, s) for d, s in zip(dims, entry.shape[1:], strict=True))
            feeds[entry.name] = entry.data
        result = run(self.repository / model / "1" / "model.onnx", feeds)
        return SimpleNamespace(as_numpy=result.__getitem__)


class FakeInput:
    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.name, self.shape, self.datatype = name, shape, datatype

    def set_data_from_numpy(self, data: np.ndarray) -> None:
        self.data = data


def test_client_of_the_readme_runs(repository, bundle, schema, tmp_path, monkeypatch, make_image):
    readme = (repository / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    make_image(48, 32).save(tmp_path / "query.jpg")
    make_image(64, 40, seed=1).save(tmp_path / "item.jpg")
    (tmp_path / bundle.name).symlink_to(bundle.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", FakeServer(repository, schema).module())
    names: dict = {}
    exec(code, names)
    assert names["token_ids"].shape == (1, bundle.max_text_length)
    assert names["scores"].shape == (1, 1)
    assert abs(names["scores"]).max() <= 1 + 1e-5


def test_client_of_the_readme_takes_the_attention_crop_too(
    bundle, schema, tmp_path, monkeypatch, make_image
):
    folder = tmp_path / bundle.name
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["attention_crop"] = {"threshold": 0.9, "weight": 0.75}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    cropping = Bundle.open(folder)
    repository = write_triton_repository(cropping, tmp_path / "repository")
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    make_image(48, 32).save(tmp_path / "query.jpg")
    make_image(64, 40, seed=1).save(tmp_path / "item.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", FakeServer(repository, schema).module())
    names: dict = {}
    exec(code, names)
    item = Item("a", "item.jpg", title="red mug", category="kitchen", attributes={"colour": "red"})
    assert item_text(item) == "red mug . kitchen . colour: red"  # what the client sends
    again, once = encoded(cropping, item), encoded(bundle, item)
    np.testing.assert_allclose(names["items"][0], again, rtol=0, atol=ATOL)
    assert np.abs(again - once).max() > 0.01  # the crop does something


def encoded(bundle: Bundle, item: Item) -> np.ndarray:
    with (
        closing(open_engine(bundle, "onnx", "fp32", threads=1)) as engine,
        closing(Encoder(bundle, engine)) as encoder,
    ):
        return encoder.encode_items([item])[0].embedding


def test_readme_names_every_tensor_and_no_place(repository, schema):
    readme = (repository / "README.md").read_text()
    for row in (
        "| tigerfg_query | input | pixels | FP32 | (B, 3, 32, 32) |",
        "| tigerfg_item | input | token_mask | BOOL | (B, L) |",
        "| tigerfg_item | input | token_ids | INT64 | (B, L) |",
        "| tigerfg_item | output | grounding_map | FP32 | (B, 64) |",
    ):
        assert row in readme
    assert '-v "$PWD":/models:ro' in readme
    assert "--gpus" not in readme  # fp32 on the CPU
    assert str(repository) not in readme


def test_a_repository_is_replaced_and_nothing_else(bundle, tmp_path, schema):
    out = tmp_path / "r"
    out.mkdir()  # empty: taken
    write_triton_repository(bundle, out, max_batch=4)
    write_triton_repository(bundle, out, max_batch=2)
    assert config_of(schema, out, "query").max_batch_size == 2
    (out / "another_model").mkdir()
    with pytest.raises(InputError, match=r"out: .*another directory"):
        write_triton_repository(bundle, out)
    assert config_of(schema, out, "query").max_batch_size == 2
    with pytest.raises(InputError, match=r"out: .*another directory"):
        write_triton_repository(bundle, bundle.path)
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(InputError, match=r"out: .*no directory"):
        write_triton_repository(bundle, file)
    assert file.read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "r"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch: 0 is not between 1"),
        ({"max_batch": 2**31}, "max_batch"),
        ({"queue_delay_us": -1}, "queue_delay_us: -1 is not between 0"),
        ({"instances": 0}, "instances: 0"),
        ({"device": "tpu"}, "device: 'tpu' is unknown; choose gpu, cpu"),
        ({"precision": "fp16"}, "precision: no fp16 graph .* there is fp32, int8"),
        ({"precision": "int8", "device": "gpu"}, "precision: no int8 graph .* there is fp32:"),
    ],
)
def test_refusals_write_nothing(bundle, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write_triton_repository(bundle, tmp_path / "r", **options)
    assert not os.listdir(tmp_path)


def test_full_disk_keeps_what_was_there(bundle, tmp_path, monkeypatch):
    out = write_triton_repository(bundle, tmp_path / "r", max_batch=4)
    before = {name: (out / name).read_bytes() for name in listing(out) if (out / name).is_file()}

    def full(models, directory):
        if "item" in str(directory):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_models(models, directory)

    monkeypatch.setattr(triton_repository, "write_models", full)
    with pytest.raises(TigerfgError, match=r"cannot write .*No space left.*nothing was changed"):
        write_triton_repository(bundle, out, max_batch=2)
    assert os.listdir(tmp_path) == ["r"]
    assert before == {
        name: (out / name).read_bytes() for name in listing(out) if (out / name).is_file()
    }


def test_without_the_schema(bundle, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"pip install 'tigerfg\[triton-server\]'"):
            write_triton_repository(bundle, tmp_path / "r")

    def too_old(*arguments):
        raise runtime_version.VersionError("gencode 9 runtime 7")

    monkeypatch.setattr(runtime_version, "ValidateProtobufRuntimeVersion", too_old)
    with pytest.raises(TigerfgError, match="gencode 9 runtime 7: pip install -U"):
        write_triton_repository(bundle, tmp_path / "r")
    assert not os.listdir(tmp_path)
