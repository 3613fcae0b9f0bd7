"""The plans of the tails are those of the Python launchers, for many shapes; weights and choice."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cuda_fakes import description

from tigerfg import EngineError
from tigerfg.engines.cuda import FORMATS
from tigerfg.engines.tail import convert, unserved
from tigerfg.engines.tail_plan import Sizes, plan_item, plan_query, runs_on, select
from tigerfg.gpu_bundle import GpuShape
from tigerfg.kernels import attend, pooling, tuning
from tigerfg.kernels.embedding import grounded_embedding_triton
from tigerfg.kernels.model_kernels import DTYPES, ModelKernels
from tigerfg.kernels.pooling import pooled_embedding_triton
from tigerfg.kernels.tail import TailWeights
from tigerfg.kernels.variant import Variant

BASE = GpuShape(768, 12, 1, 256, "attention", 1e-6, 1e-6)
SHAPES = [
    GpuShape(48, 4, 2, 32, "mean", 1e-6, 1e-6),
    GpuShape(192, 3, 6, 64, "attention", 1e-6, 1e-5),  # 19 queries: two blocks of 16
    BASE,
]
# What the kernels serve on sm_89: 768 channels of float32 do not fit it.
SERVED = [
    pytest.param(shape, precision, id=f"d{shape.width}-{shape.pool}-{precision}")
    for shape in SHAPES
    for precision in DTYPES
    if (shape.width, precision) != (768, "fp32")
]


class Part(NamedTuple):
    """As much of a GpuPart as the choice of kernels needs."""

    shape: GpuShape
    described: list[dict[str, Any]]

    def kernels(self) -> list[dict[str, Any]]:
        return self.described


def part_of(shape: GpuShape, archs: tuple[int, ...] = (80, 89, 90)) -> Part:
    found = []
    for arch in archs:
        for element in DTYPES:
            kernels = model_kernels(shape, element)
            for operator in ("grounding", "tail", "pooling"):
                if kernels.unserved(arch) is None:
                    found += [description(v, arch) for v in kernels.variants(operator, arch)]
    return Part(shape, found)


def model_kernels(shape: GpuShape, element: str) -> ModelKernels:
    epsilons = {"key_norm_eps": shape.key_norm_eps, "norm_eps": shape.norm_eps}
    return ModelKernels(element, *shape[:4], shape.pool, **epsilons)


class Recorded(NamedTuple):
    """One launch by a Python launcher: the kernel's name, programs, integers, bytes of buffers."""

    name: str
    programs: int
    integers: dict[str, int]
    bytes: dict[str, int]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """What the Python launchers launch, on a device of 84 multiprocessors and sm_89's tables."""
    recorded: list[Recorded] = []

    def launch(variant: Variant, grid: tuple[int, ...], *arguments: Any) -> None:
        pairs = dict(zip(variant.arguments, arguments, strict=True))
        integers = {name: value for name, value in pairs.items() if isinstance(value, int)}
        sizes = {
            name: value.numel() * value.element_size()
            for name, value in pairs.items()
            if isinstance(value, torch.Tensor)
        }
        recorded.append(Recorded(variant.name, math.prod(grid), integers, sizes))

    monkeypatch.setattr(Variant, "launch", launch)
    monkeypatch.setattr(attend, "multiprocessors", lambda device: 84)
    monkeypatch.setattr(tuning, "multiprocessors", lambda device: 84)
    monkeypatch.setattr(tuning, "architecture", lambda device: 89)
    return recorded


@pytest.mark.parametrize(("shape", "precision"), SERVED)
@pytest.mark.parametrize("patches", [1, 49, 196, 257, 1024])
def test_item_plans_are_those_of_the_launchers(
    launched: list[Recorded], shape: GpuShape, precision: str, patches: int
) -> None:
    selected = select(part_of(shape, (89,)), precision, 89, "item")
    dtype, width = DTYPES[precision], shape.width
    queries = shape.heads * shape.queries_per_head
    vector, square = torch.empty(width, dtype=dtype), torch.empty(width, width, dtype=dtype)
    weights = TailWeights(
        square, square, *[vector] * 4, torch.empty(shape.embedding_dim, width, dtype=dtype)
    )
    for batch in (1, 2, 3, 7, 16, 17, 42, 84, 85, 256):
        launched.clear()
        grounded_embedding_triton(
            torch.empty(batch, queries, width, dtype=dtype),
            torch.empty(batch, patches, width, dtype=dtype),
            torch.ones(batch, patches, dtype=torch.bool),
            torch.empty(batch, width, dtype=dtype),
            weights,
            shape.heads,
            pool_query=vector if shape.pool == "attention" else None,
            key_norm_eps=shape.key_norm_eps,
            norm_eps=shape.norm_eps,
            arch=89,
        )
        plan = plan_item(selected, shape, Sizes(batch, patches, 84))
        assert_same(plan, launched)
        assert launched[1].bytes["counters_ptr"] >= 4 * plan.counters
        assert plan.counters == -(-batch // selected.tail_split["constexprs"]["BLOCK_I"])


@pytest.mark.parametrize(("shape", "precision"), SERVED)
@pytest.mark.parametrize("patches", [1, 49, 196, 257, 1024])
def test_query_plans_are_those_of_the_launcher(
    launched: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
    shape: GpuShape,
    precision: str,
    patches: int,
) -> None:
    counters: list[int] = []
    plain = pooling.counters
    monkeypatch.setattr(
        pooling, "counters", lambda device, count: counters.append(count) or plain(device, count)
    )
    kernel = select(part_of(shape, (89,)), precision, 89, "query")
    dtype, width = DTYPES[precision], shape.width
    for batch in (1, 2, 3, 7, 16, 17, 42, 84, 85, 256):
        launched.clear()
        pooled_embedding_triton(
            torch.empty(batch, patches, width, dtype=dtype),
            torch.ones(batch, patches, dtype=torch.bool),
            torch.empty(width),
            torch.empty(width),
            torch.empty(shape.embedding_dim, width, dtype=dtype),
            torch.empty(width) if shape.pool == "attention" else None,
            kind=shape.pool,
            key_norm_eps=shape.key_norm_eps,
            norm_eps=shape.norm_eps,
        )
        plan = plan_query(kernel, shape, Sizes(batch, patches, 84))
        assert_same(plan, launched)
        assert plan.counters == counters[-1]


def assert_same(plan: Any, launched: list[Recorded]) -> None:
    """Kernels, grids, every integer, and room for every tensor that the launcher made."""
    assert len(plan.launches) == len(launched)
    for launch, wanted in zip(plan.launches, launched, strict=True):
        assert (launch.kernel["name"], launch.programs) == wanted[:2]
        assert launch.integers == wanted.integers
        assert launch.buffers.keys() == wanted.bytes.keys()
        placeholders = {"stats_ptr", "partial_ptr"}  # where nothing is split they are not read
        for argument, name in launch.buffers.items():
            if name in plan.workspace and argument not in placeholders:
                assert plan.workspace[name] == wanted.bytes[argument], argument
            elif name in plan.workspace and name != "normed":
                assert plan.workspace[name] >= wanted.bytes[argument], argument


@pytest.mark.parametrize(
    ("target", "arch", "sm", "runs"),
    [
        ("sm_90a", 90, 90, True),
        ("sm_90a", 90, 91, False),
        ("sm_86", 86, 86, True),
        ("sm_86", 86, 89, True),
        ("sm_86", 86, 80, False),
        ("sm_86", 86, 90, False),
        ("sm_120", 120, 121, True),
        ("sm_120", 120, 100, False),
    ],
)
def test_which_code_runs_where(target: str, arch: int, sm: int, runs: bool) -> None:
    assert runs_on({"target": target, "arch": arch}, sm) is runs


def test_the_newest_kernels_that_run_are_taken() -> None:
    part = part_of(BASE, (80, 86, 90))
    for sm, arch in ((80, 80), (86, 86), (87, 86), (89, 86), (90, 90)):
        selected = select(part, "int8", sm, "item")
        assert {kernel["arch"] for kernel in selected} == {arch}
        assert select(part, "fp8", sm, "query")["arch"] == arch
        assert "_fp16_" in selected.attend_whole["name"]  # int8 and fp8 graphs end in float16


def test_narrowest_block_of_queries_is_taken() -> None:
    """Of kernels for several models: the least BLOCK_Q that takes all queries, else the most."""
    described = []
    for heads, per_head in ((12, 1), (12, 2), (12, 4)):
        shape = BASE._replace(heads=heads, queries_per_head=per_head)
        described += part_of(shape, (89,)).described
    blocks = {k["constexprs"]["BLOCK_Q"] for k in described if "BLOCK_Q" in k["constexprs"]}
    assert len(blocks) > 1
    for queries in (12, 24, 48, 96):
        shape = BASE._replace(queries_per_head=queries // 12)
        fitting = [block for block in blocks if block >= queries + 1]
        selected = select(Part(shape, described), "fp16", 89, "item")
        wanted = min(fitting) if fitting else max(blocks)
        assert selected.attend_split["constexprs"]["BLOCK_Q"] == wanted
        assert selected.attend_whole["constexprs"]["BLOCK_Q"] == wanted


def test_reasons_why_kernels_do_not_serve() -> None:
    part = part_of(BASE, (86, 90))
    for tower in ("query", "item"):
        assert unserved(part, "fp16", 89, tower) is None
        reason = unserved(part, "fp16", 75, tower)
        assert reason == "the bundle's kernels are for sm_86, sm_90a, this GPU is sm_75"
        assert unserved(Part(BASE, []), "fp16", 89, tower) == "the bundle holds no compiled kernels"
        other = part._replace(shape=BASE._replace(width=1024))
        assert "for fp16, D 1024" in unserved(other, "fp16", 89, tower)
        other = part._replace(shape=BASE._replace(norm_eps=1e-5))
        assert "NORM_EPS 1e-05" in unserved(other, "fp16", 89, tower)
    assert "no grounding_kernel for fp32" in unserved(part, "fp32", 89, "item")


def test_conversion_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)]
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0, -0.0, 2.0**-130], np.float32)
    values = np.concatenate([values, ties])
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(convert(values, "bf16", "w"), wanted)
    small = values[np.abs(values) < 65000]
    np.testing.assert_array_equal(convert(small, "fp16", "w"), small.astype(np.float16))
    np.testing.assert_array_equal(convert(values, "fp32", "w"), values)


@pytest.mark.parametrize(
    ("value", "element"),
    [(70000.0, "fp16"), (3.4e38, "bf16"), (math.nan, "bf16"), (math.inf, "fp32")],
)
def test_weight_that_a_type_cannot_hold_is_refused(value: float, element: str) -> None:
    with pytest.raises(EngineError, match=f"a value of gate_pool is not finite in {element}"):
        convert(np.array([0.0, value], np.float32), element, "gate_pool")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_kernels_are_described_and_packed_as_they_take_arguments(tmp_path: Path) -> None:
    """Real cubins of a small model: chosen, and every argument at the offset that its PTX says."""
    shape = SHAPES[0]
    fields = json.dumps(vars(model_kernels(shape, "fp16")))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tigerfg.kernels.aot", "--out", tmp_path, "--arch", "89", "90"]
    done = subprocess.run(
        [*command, "--model", fields, "--jobs", "1"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads((tmp_path / "index.json").read_bytes())["kernels"]
    part = Part(shape, kernels)
    bits = {"u8": 1, "b8": 1, "u32": 4, "b32": 4, "f32": 4, "u64": 8, "b64": 8}
    for sm in (89, 90):
        for kernel in (*select(part, "fp16", sm, "item"), select(part, "fp16", sm, "query")):
            wanted = description(by_name(shape, sm)[kernel["name"]], sm)
            # PRECISION and UPCAST differ where kernels are interpreted, as here
            assert {**kernel["constexprs"], **wanted["constexprs"]} == wanted["constexprs"]
            for key in ("name", "arch", "target", "entry", "num_warps", "arguments"):
                assert kernel[key] == wanted[key], key
            ptx = (tmp_path / kernel["file"]).with_suffix(".ptx").read_text()
            signature = re.search(r"\.visible \.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
            assert signature[1] == kernel["entry"]
            sizes = [bits[kind] for kind in re.findall(r"\.param \.(\w+)", signature[2])]
            letters = [FORMATS[argument["c_type"]] for argument in kernel["arguments"]]
            assert [struct.calcsize(letter) for letter in letters] == sizes
            offsets, end = [], 0
            for size in sizes:
                end += -end % size
                offsets.append(end)
                end += size
            starts = [struct.calcsize("".join(letters[: i + 1])) for i in range(len(letters))]
            assert [start - size for start, size in zip(starts, sizes, strict=True)] == offsets


def by_name(shape: GpuShape, arch: int) -> dict[str, Variant]:
    kernels = model_kernels(shape, "fp16")
    operators = ("grounding", "tail", "pooling")
    return {v.name: v for operator in operators for v in kernels.variants(operator, arch)}
