"""The fused tails on a GPU: compiled ahead of time, launched through pycuda beside torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tigerfg.engines.cuda import Cuda
from tigerfg.engines.tail import Tail
from tigerfg.gpu_bundle import GpuShape
from tigerfg.kernels import TailWeights, grounded_embedding_reference, pooled_embedding_reference
from tigerfg.kernels.model_kernels import ModelKernels
from tigerfg.kernels.tuning import architecture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

SHAPE = GpuShape(192, 3, 2, 64, "attention", 1e-6, 1e-6)
PATCHES = 70
DTYPES = {"fp16": np.float16, "fp32": np.float32}


class Part(NamedTuple):
    """As much of a GpuPart as a tail needs."""

    shape: GpuShape
    described: list[dict[str, Any]]
    weights: dict[str, np.ndarray]

    def kernels(self) -> list[dict[str, Any]]:
        return self.described

    def tail_weights(self) -> dict[str, np.ndarray]:
        return self.weights


def random_weights() -> dict[str, np.ndarray]:
    """float32 values that float16 has too."""
    rng, width = np.random.default_rng(0), SHAPE.width
    square, vector = (width, width), (width,)
    sizes = dict(
        zip(
            TailWeights._fields,
            (square, square, *[vector] * 4, (SHAPE.embedding_dim, width)),
            strict=True,
        )
    )
    weights = {name: rng.standard_normal(size) * width**-0.5 for name, size in sizes.items()}
    weights["norm_weight"] += 1
    weights["pool_query"] = rng.standard_normal(width) * 0.2
    return {name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()}


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    """Kernels of this GPU's architecture, in both dtypes."""
    arch, described = architecture(torch.device("cuda")), []
    for dtype in DTYPES:
        out = tmp_path_factory.mktemp(dtype)
        model = ModelKernels(dtype, *SHAPE[:4], SHAPE.pool)
        command = [sys.executable, "-m", "tigerfg.kernels.aot", "--out", str(out)]
        command += ["--arch", str(arch), "--model", json.dumps(vars(model))]
        subprocess.run(command, check=True, capture_output=True)
        entries = json.loads((out / "index.json").read_text())["kernels"]
        described += [{**entry, "path": Path(out / entry["file"])} for entry in entries]
    return Part(SHAPE, described, random_weights())


def oracle(part: Part, tower: str, arrays: dict[str, np.ndarray]) -> list[Tensor]:
    """In float64: the embedding, and for items the map."""
    given = {name: torch.from_numpy(value) for name, value in arrays.items()}
    mask = given.pop("patch_mask")
    v, *rest = (value.double() for value in given.values())
    weights = {name: torch.from_numpy(value).double() for name, value in part.weights.items()}
    query = weights.pop("pool_query")
    tail = TailWeights(**weights)
    if tower == "query":
        head = (tail.norm_weight, tail.norm_bias, tail.projection)
        return [pooled_embedding_reference(v, mask, *head, query, kind="attention")]
    x, text = rest
    found = grounded_embedding_reference(
        x[:, :-1], v, mask, text, tail, SHAPE.heads, pool_query=query
    )
    return list(found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tower", ["query", "item"])
@pytest.mark.parametrize("batch", [1, 3, 300])  # split over several programs, and not
def test_tail_is_the_oracle(batch: int, tower: str, dtype: str, part: Part) -> None:
    pytest.importorskip("pycuda", reason="pycuda is not installed")
    rng, width = np.random.default_rng(batch), SHAPE.width
    arrays = {
        "patches": rng.standard_normal((batch, PATCHES, width)).astype(DTYPES[dtype]),
        "patch_mask": rng.random((batch, PATCHES)) < 0.8,
    }
    arrays["patch_mask"][:, 0] = True
    if tower == "item":
        queries = 0.2 * rng.standard_normal(
            (batch, SHAPE.heads * SHAPE.queries_per_head + 1, width)
        )
        queries[:, -1] = part.weights["pool_query"]
        arrays["queries"] = queries.astype(DTYPES[dtype])
        arrays["text"] = rng.standard_normal((batch, width)).astype(DTYPES[dtype])
    sizes = {"embedding": SHAPE.embedding_dim}
    if tower == "item":
        sizes["grounding_map"] = PATCHES
    cuda = Cuda.open()
    try:
        tail, stream = Tail(cuda, part, dtype, tower), cuda.stream()
        plan = tail.plan(batch, PATCHES)
        buffers = {name: cuda.upload(value, name) for name, value in arrays.items()}
        buffers["counters"] = cuda.upload(np.zeros(plan.counters, np.int32), "counters")
        for name, size in plan.workspace.items():
            buffers[name] = cuda.buffer(max(size, 4), name)
        results = {name: cuda.pinned(4 * batch * size) for name, size in sizes.items()}
        for name, result in results.items():
            buffers[name] = cuda.upload(np.full_like(result.array, 0xFF), name)  # NaN
        addresses = {name: buffer.address for name, buffer in buffers.items()}
        found = []
        for _ in range(2):  # counters are zero again
            with cuda.active():
                tail.run(stream, batch, PATCHES, addresses)
                for name, result in results.items():
                    stream.download(result.array, addresses[name])
                stream.synchronize()
            found.append(
                [r.array.view(np.float32).reshape(batch, -1).copy() for r in results.values()]
            )
    finally:
        cuda.close()
    # of the embedding, see tests/kernels/test_embedding.py; maps are float32 throughout
    bound = 1e-3 if dtype == "fp16" else 4e-6
    for first, again, expected in zip(*found, oracle(part, tower, arrays), strict=True):
        np.testing.assert_array_equal(first, again)
        atol = bound if first.shape[1] == SHAPE.embedding_dim else 4e-6
        np.testing.assert_allclose(first, expected.numpy(), rtol=0, atol=atol)
    assert torch.ones(3, device="cuda").sum().item() == 3  # torch's context is as it was
