"""The fused tails in a bundle: their weights, compiled kernels, and pictures to check them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from tigerfg.bundle import TOWERS
from tigerfg.engines.base import Arrays
from tigerfg.engines.tail_plan import ELEMENTS
from tigerfg.errors import TigerfgError
from tigerfg.export.emulate import EmulatedRunner
from tigerfg.export.parity import reference
from tigerfg.export.samples import Samples
from tigerfg.gpu_bundle import GpuShape
from tigerfg.kernels import TailWeights, grounded_embedding_reference
from tigerfg.kernels.model_kernels import ModelKernels
from tigerfg.kernels.tuning import ARCHITECTURES
from tigerfg.model import TigerFG

FIRST_EXACT = 90
CHECKED = 8  # pictures that a machine checks an engine with before its first use

Progress = Callable[[str], None]


def model_shape(model: TigerFG) -> GpuShape:
    """The sizes that the tail kernels of a model are launched with."""
    config = model.config
    grounding = config.grounding
    return GpuShape(
        config.vision.width,
        grounding.heads,
        grounding.queries_per_head,
        config.embedding_dim,
        config.pool,
        1e-6,
        model.head.norm.eps,
    )


def tail_weights(model: TigerFG) -> dict[str, np.ndarray]:
    """The weights after the backbone, float32."""
    norm_weight, norm_bias, projection = model.head.weights
    tensors = {
        "w_v": model.grounding.w_v,
        "w_o": model.grounding.w_o,
        "gate_pool": model.gate_pool,
        "gate_text": model.gate_text,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "projection": projection,
    }
    if model.pool.query is not None:
        tensors["pool_query"] = model.pool.query
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def check_arrays(model: TigerFG, samples: Samples) -> dict[str, np.ndarray]:
    """The first pictures of `samples` with float16 pixels, and the float32 model's results."""
    part = samples.part(slice(CHECKED))
    for feeds in (part.query, part.item):
        feeds["pixels"] = feeds["pixels"].astype(np.float16)
    rounded = Samples(
        {**part.query, "pixels": part.query["pixels"].astype(np.float32)},
        {**part.item, "pixels": part.item["pixels"].astype(np.float32)},
        part.answers,
        part.item_ids,
        part.source,
    )
    expected = reference(model, rounded)
    arrays = {f"{tower}_{name}": v for tower in TOWERS for name, v in getattr(part, tower).items()}
    for tower in TOWERS:
        arrays |= {f"{tower}_{name}": value for name, value in expected[tower].items()}
    return arrays


def unserved(model: TigerFG, dtype: str, sms: tuple[int, ...]) -> str | None:
    """Why a model's tails have no kernels for some GPU of `sms` (none: any); None if they have."""
    if not model.config.fused_tail:
        return "an ablation that the kernels do not compute"
    kernels = ModelKernels(dtype=dtype, **model_shape(model)._asdict())
    if unknown := [sm for sm in sms if architecture(sm) is None]:
        return f"no kernels for compute capability {unknown[0] / 10}"
    return next(
        (reason for arch in _architectures(sms) if (reason := kernels.unserved(arch))), None
    )


def tail_kernels(
    folder: Path, model: TigerFG, precisions: tuple[str, ...], sms: tuple[int, ...], say: Progress
) -> tuple[Path, dict[str, Path]]:
    """Compile the tails' kernels into a bundle folder for the GPUs of `sms`, or all that they
    serve if there are none: the index's file, and the cubins by the names that the index has.

    Compiled in a process of its own: this one may run Triton's interpreter.
    """
    index: list[dict[str, Any]] = []
    files: dict[str, Path] = {}
    for dtype in sorted({ELEMENTS[name] for name in precisions}):
        kernels = ModelKernels(dtype=dtype, **model_shape(model)._asdict())
        archs = [arch for arch in _architectures(sms) if kernels.unserved(arch) is None]
        say(f"fused tail: compiling {dtype} kernels for sm {', '.join(map(str, archs))}")
        with tempfile.TemporaryDirectory(dir=folder) as temp:
            _compile(Path(temp), kernels, archs)
            for entry in json.loads((Path(temp) / "index.json").read_bytes())["kernels"]:
                cubin = folder / f"{entry['name']}.sm_{entry['arch']}.cubin"
                os.replace(Path(temp) / entry["file"], cubin)
                index.append(entry)
                files[entry["file"]] = cubin
    (folder / "kernels.json").write_text(json.dumps({"kernels": index}) + "\n")
    return folder / "kernels.json", files


def _architectures(sms: tuple[int, ...]) -> list[int]:
    """Those whose code runs on the compute capabilities; all of them without any."""
    return sorted({architecture(sm) for sm in sms} - {None}) or list(ARCHITECTURES)


def architecture(sm: int) -> int | None:
    """The architecture whose code runs on a compute capability; None if there is none.

    Code of the "a" targets, from 9.0 on, runs on that compute capability alone.
    """
    same = [arch for arch in ARCHITECTURES if arch // 10 == sm // 10]
    fitting = [arch for arch in same if arch == sm or (arch <= sm and arch < FIRST_EXACT)]
    return max(fitting, default=None)


def _compile(out: Path, model: ModelKernels, archs: list[int]) -> None:
    command = [sys.executable, "-m", "tigerfg.kernels.aot", "--out", str(out)]
    command += ["--model", json.dumps(asdict(model)), "--arch", *map(str, archs)]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TigerfgError(f"fused tail: compiling the kernels failed: {last}")


def backbone_encoder(
    model: TigerFG, tower: str, graph: onnx.ModelProto
) -> Callable[[Arrays], Arrays]:
    """A backbone graph, emulated, with the tail's oracle behind it, as an engine and tail run."""
    runner = EmulatedRunner(graph)
    inputs = {entry.name for entry in graph.graph.input}

    def encode(feeds: Arrays) -> Arrays:
        found = runner.run({name: value for name, value in feeds.items() if name in inputs})
        tensors = {name: torch.from_numpy(value) for name, value in found.items()}
        mask = torch.from_numpy(feeds["patch_mask"])
        with torch.inference_mode():
            if tower == "query":
                z = model.encode_region(tensors["patches"], mask)
                return {"embedding": z.numpy()}
            queries, pool_query = tensors["queries"], None
            if model.pool.query is not None:
                queries, pool_query = queries[:, :-1], model.pool.query
            parameters = (model.grounding.w_v, model.grounding.w_o, model.gate_pool)
            weights = TailWeights(*parameters, model.gate_text, *model.head.weights)
            z, grounding_map = grounded_embedding_reference(
                queries, tensors["patches"], model.item_mask(mask), tensors["text"], weights,
                model.grounding.heads, pool_query=pool_query, norm_eps=model.head.norm.eps,
            )  # fmt: skip
        return {
            "embedding": z.numpy(),
            "grounding_map": model.fold_map(grounding_map).numpy(),
            "token_weights": found["token_weights"],
        }

    return encode
