"""A model repository for NVIDIA's Triton Inference Server: both towers in its ONNX Runtime backend.

The graphs hold whole towers in standard operators, so the server needs nothing of ours. Engines are
left out: the server runs TensorRT's own, of exactly its version, and no TensorRT-RTX ones.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto

from tigerfg.bundle import TOWERS, Bundle
from tigerfg.errors import InputError, MissingExtraError, TigerfgError
from tigerfg.export.weights import write_models
from tigerfg.files import publish

# What the backend's providers serve well, best first: int8 and fp8 graphs for GPUs are made for
# TensorRT, and the CUDA provider registers convolutions of float16, float32 and float64 alone.
PRECISIONS = {"gpu": ("fp16", "fp32"), "cpu": ("fp32", "int8")}
CONFIG, MODEL, README = "config.pbtxt", "model.onnx", "README.md"
PREFERRED = (8, 32, 128)  # batch sizes, beside the largest
_TYPES = {
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.BOOL: "TYPE_BOOL",
}
_LARGEST = 2**31 - 1  # an int32 of the schema
_TEXTS = """\
# The server batches requests of equal shapes only; one with texts of another length ends the batch.
# allow_ragged_batch is no way out: the backend wants one-dimensional tensors for it.
# Let every client pad its texts to the same length, see README.md.
"""


def write_triton_repository(
    bundle: Bundle,
    out: str | os.PathLike,
    *,
    precision: str | None = None,
    max_batch: int = 256,
    queue_delay_us: int = 500,
    instances: int = 1,
    device: str | None = None,
) -> Path:
    """Write `out`/tigerfg_query, `out`/tigerfg_item and a README.md that says how to use them.

    Each model folder has config.pbtxt, 1/model.onnx with its weights beside it (the tensors that
    this graph uses and no others), and warmup/ with the masks of the warm-up requests.

    Args:
        out: a folder of its own; an earlier repository there is replaced, anything else refused.
        precision: of PRECISIONS[device]; None: the first of them that the bundle has.
        max_batch: largest batch of a request and of the dynamic batcher.
        queue_delay_us: how long a request may wait for others, in microseconds.
        instances: copies of a model, on every GPU of the server or on its CPU.
        device: "gpu" or "cpu"; None: "gpu" if the bundle has graphs for GPUs.

    Returns:
        The repository's path.

    Raises:
        InputError: a value out of range, a precision that the bundle lacks, an unusable `out`.
        MissingExtraError: the server's configuration schema is not installed.
        TigerfgError: the files cannot be written; nothing was changed then.
    """
    out = Path(out).resolve()
    for name, value, least in (
        ("max_batch", max_batch, 1),
        ("queue_delay_us", queue_delay_us, 0),
        ("instances", instances, 1),
    ):
        if not least <= value <= _LARGEST:
            raise InputError(f"{name}: {value} is not between {least} and {_LARGEST}")
    device = device or ("gpu" if bundle.gpu else "cpu")
    precision = _precision(bundle, precision, device)
    _check_target(out)
    schema = _schema()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temp:
            staged = Path(temp) / "repository"
            staged.mkdir()
            configs = {}
            for tower in TOWERS:
                folder = staged / f"tigerfg_{tower}"
                proto = _write_model(_source(bundle, tower, precision), folder)
                config = _config(schema, folder.name, proto, precision, device)
                _set_batching(schema, config, max_batch, queue_delay_us)
                config.instance_group.add(kind=f"KIND_{device.upper()}", count=instances)
                _add_warmup(config, folder, device, bundle.max_text_length)
                text = text_format.MessageToString(config)
                note = _TEXTS if tower == "item" else ""
                (folder / CONFIG).write_text(note + text, encoding="utf-8")
                configs[tower] = config
            readme = _readme(schema, bundle, configs, precision, device)
            (staged / README).write_text(readme, encoding="utf-8")
            publish(staged, out, Path(temp) / "old")
    except OSError as error:
        raise TigerfgError(
            f"triton repository: cannot write {out}: {error.strerror or error}; nothing was changed"
        ) from error
    return out


def _precision(bundle: Bundle, precision: str | None, device: str) -> str:
    if device not in PRECISIONS:
        raise InputError(f"device: {device!r} is unknown; choose {', '.join(PRECISIONS)}")
    typed = bundle.gpu.precisions if bundle.gpu and device == "gpu" else []
    present = [name for name in PRECISIONS[device] if name in (*bundle.precisions, *typed)]
    if not present or precision not in (None, *present):
        raise InputError(
            f"precision: no {precision or ' or '.join(PRECISIONS[device])} graph in {bundle.path} "
            f"that the server's ONNX Runtime serves on a {device}; there is "
            f"{', '.join(present) or 'none'}: export the bundle with --{PRECISIONS[device][0]}"
        )
    return precision or present[0]


def _source(bundle: Bundle, tower: str, precision: str) -> Path:
    if precision in bundle.precisions:
        return bundle.onnx(tower, precision)
    return bundle.gpu.graph(tower, precision, "tower")


def check_repository(out: Path) -> None:
    """Refuse early what `write_triton_repository` would refuse: a used folder, a missing schema."""
    _check_target(out)
    _schema()


def _check_target(out: Path) -> None:
    ours = {*(f"tigerfg_{tower}" for tower in TOWERS), README}
    if out.is_dir():
        names = {path.name for path in out.iterdir()}
        if names and not (names <= ours and (out / "tigerfg_query" / CONFIG).is_file()):
            raise InputError(
                f"out: {out} exists and is no repository of ours, or holds other files too; choose "
                "another directory (the server takes --model-repository several times)"
            )
    elif out.exists() or out.is_symlink():
        raise InputError(f"out: {out} is no directory; choose another path")


def _schema() -> ModuleType:
    """The server's model_config_pb2.

    Loaded by its file: importing it as tritonclient.grpc.model_config_pb2 needs gRPC as well.
    """
    feature = "a Triton Inference Server repository"
    package = importlib.util.find_spec("tritonclient")
    if package is None:
        raise MissingExtraError(feature, "tritonclient", "triton-server")
    file = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("tigerfg_model_config_pb2", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # protobuf's VersionError is a plain Exception
        raise TigerfgError(
            f"{feature}: the schema of tritonclient does not load: "
            f"{str(error).splitlines()[0]}: pip install -U tritonclient protobuf"
        ) from error
    return module


def _write_model(source: Path, folder: Path) -> onnx.ModelProto:
    """Write `source` as version 1 of a model, with the weights that it uses in a new file.

    A hard link to the bundle's weights would bring every precision and both towers along, and the
    onnx package refuses files with several links.
    """
    version = folder / "1"
    version.mkdir(parents=True)
    proto = onnx.load(source)
    write_models({MODEL: proto}, version)
    return proto


def _config(
    schema: ModuleType, name: str, proto: onnx.ModelProto, precision: str, device: str
) -> Any:
    """The ModelConfig of a graph, but for batching, instances and warm-up."""
    config = schema.ModelConfig(name=name, backend="onnxruntime", default_model_filename=MODEL)
    config.version_policy.latest.num_versions = 1
    for ours, theirs in ((proto.graph.input, config.input), (proto.graph.output, config.output)):
        for value in ours:
            tensor = value.type.tensor_type
            _, *dims = (dim.dim_value or -1 for dim in tensor.shape.dim)  # without the batch
            theirs.add(name=value.name, data_type=_TYPES[tensor.elem_type], dims=dims)
    if device == "gpu":
        # 1: a heuristic; the default measures every convolution anew for each new batch size.
        # The backend ignores this one among an accelerator's parameters.
        config.parameters["cudnn_conv_algo_search"].string_value = "1"
        if precision == "fp32":
            # matrix products in float32; the default is TF32 (as may be cuDNN's convolutions)
            cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
            cuda.add(name="cuda", parameters={"use_tf32": "0"})
    return config


def _set_batching(schema: ModuleType, config: Any, max_batch: int, queue_delay_us: int) -> None:
    config.max_batch_size = max_batch
    sizes = sorted({size for size in PREFERRED if size < max_batch} | {max_batch})
    config.dynamic_batching.CopyFrom(
        schema.ModelDynamicBatching(
            preferred_batch_size=sizes, max_queue_delay_microseconds=queue_delay_us
        )
    )


def _add_warmup(config: Any, folder: Path, device: str, length: int) -> None:
    """Warm-up requests of blank pictures and texts of `length` tokens: one, and on a GPU also a
    full batch, which reserves the memory. Masks must be true, and the schema's constants are zeros
    and random bytes, so they come from files: one byte per element, of one request.
    """
    (folder / "warmup").mkdir()
    shapes = {}
    for entry in config.input:
        shapes[entry.name] = [length if dim == -1 else dim for dim in entry.dims]
        if entry.name.endswith("_mask"):
            np.ones(shapes[entry.name], np.bool_).tofile(folder / "warmup" / entry.name)
    for size in sorted({1, config.max_batch_size} if device == "gpu" else {1}):
        sample = config.model_warmup.add(name=f"batch {size}", batch_size=size)
        for entry in config.input:
            data = sample.inputs[entry.name]
            data.data_type = entry.data_type
            data.dims.extend(shapes[entry.name])
            if entry.name.endswith("_mask"):
                data.input_data_file = entry.name
            else:
                data.zero_data = True


def _readme(
    schema: ModuleType, bundle: Bundle, configs: Mapping[str, Any], precision: str, device: str
) -> str:
    rows = []
    for config in configs.values():
        for kind, entries in (("input", config.input), ("output", config.output)):
            for entry in entries:
                dims = ", ".join("L" if dim == -1 else str(dim) for dim in entry.dims)
                name = schema.DataType.Name(entry.data_type).removeprefix("TYPE_")
                rows.append(f"| {config.name} | {kind} | {entry.name} | {name} | (B, {dims}) |")
    return Template(_README).substitute(
        name=bundle.name,
        fingerprint=bundle.fingerprint[:12],
        precision=precision,
        device=device.upper(),
        gpus=" --gpus all" if device == "gpu" else "",
        tensors="\n".join(rows),
        max_batch=configs["item"].max_batch_size,
        max_length=bundle.max_text_length,
        look_again=_LOOK_AGAIN if bundle.attention_crop else "",
        of_both=_OF_BOTH if bundle.attention_crop else "",
    )


_README = """\
# $name in the Triton Inference Server

Model $name, fingerprint $fingerprint..., $precision on the $device. Both towers are whole ONNX
graphs for the server's `onnxruntime` backend (ONNX Runtime 1.20 or newer).

## Start

With this folder at /models, and IMAGE one of NVIDIA's server images (25.03 or newer):

    docker run --rm$gpus -p 8001:8001 -v "$$PWD":/models:ro IMAGE \\
        tritonserver --model-repository /models

Move the folder as a whole: `weights.bin` belongs to the `model.onnx` beside it. The server takes
`--model-repository` several times, so other models can stay in folders of their own.

## Tensors

| model | | tensor | type | shape |
|---|---|---|---|---|
$tensors

B is at most $max_batch, L is 1 to $max_length. Pixels are letterboxed and normalised by
`tigerfg.images.preprocess`; a mask is true where the picture or the text is, at least once a row.
Embeddings have norm 1: their dot product is the score.$of_both

**Pad texts to one length.** The server batches requests whose shapes are equal, and a request with
another L ends the batch that was being collected. The masks hide padding from the result, so pad
every text to $max_length tokens, as below, or round lengths up to a few steps (16, 32, ...) if most
texts are short; cut `token_weights` back to the real length.

## Client

`pip install tigerfg 'tritonclient[grpc]'`, and the bundle that this repository was made from:

```python
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from tigerfg.bundle import Bundle
from tigerfg.images import preprocess

bundle = Bundle.open("./$name")  # or where it lies
assert bundle.fingerprint.startswith("$fingerprint")
spec = bundle.preprocessing
client = triton.InferenceServerClient("localhost:8001")


def infer(model, **arrays):
    inputs = []
    for name, array in arrays.items():
        entry = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        entry.set_data_from_numpy(array)
        inputs.append(entry)
    return client.infer(model, inputs)


def tokens(texts):
    token_ids, token_mask = bundle.tokenizer(texts)
    padding = ((0, 0), (0, bundle.max_text_length - token_ids.shape[1]))
    token_ids = np.pad(token_ids, padding, constant_values=bundle.tokenizer.pad_id)
    return token_ids, np.pad(token_mask, padding)


# float32 (B, 3, S, S), bool (B, N)
pixels, patch_mask, _ = preprocess(["query.jpg"], spec.query_size, spec)
queries = infer("tigerfg_query", pixels=pixels, patch_mask=patch_mask).as_numpy("embedding")

# the same, and int64 (B, L), bool (B, L); tigerfg.text.item_text makes the line of an item
pixels, patch_mask, extents = preprocess(["item.jpg"], spec.item_size, spec)
token_ids, token_mask = tokens(["red mug . kitchen . colour: red"])
result = infer(
    "tigerfg_item",
    pixels=pixels, patch_mask=patch_mask, token_ids=token_ids, token_mask=token_mask,
)
items = result.as_numpy("embedding")
${look_again}scores = queries @ items.T
```
"""

_OF_BOTH = """ **An item's embedding is made of both
models** (attention crop): see Client."""

_LOOK_AGAIN = """
# the attention crop, part of the model: what the map chose of the picture, in the query tower
from tigerfg.images import crop_map, load_image

crop = bundle.attention_crop
picture = load_image("item.jpg", target_size=spec.item_size, interpolation=spec.interpolation)
grid = crop_map(result.as_numpy("grounding_map")[0], extents[0], spec.item_size, spec.patch)
part = crop.cut(picture, grid, spec.patch)
pixels, patch_mask, _ = preprocess([part], spec.query_size, spec)
crops = infer("tigerfg_query", pixels=pixels, patch_mask=patch_mask).as_numpy("embedding")
items = crop.join(items, crops)

"""
