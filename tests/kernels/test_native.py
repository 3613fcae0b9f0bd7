"""The native library: it builds, its tests pass, and it launches what the Python launchers do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tigerfg.kernels.embedding import grounded_embedding_triton
from tigerfg.kernels.grounding import grounding_triton
from tigerfg.kernels.pooling import pooled_embedding_triton
from tigerfg.kernels.preprocess import preprocess_triton
from tigerfg.kernels.tail import TailWeights
from tigerfg.kernels.variant import Variant

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first test waits for all kernels

REPOSITORY = Path(__file__).resolve().parents[2]
DTYPES = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}  # tigerfg_dtype


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def build(folder: Path, *options: str, env: dict[str, str] | None = None) -> Path:
    """Configure and build the repository's CMake project; its folder of native outputs."""
    toolkit = os.environ.get("CUDA_PATH", "/usr/local/cuda")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("the native library needs cmake and a C++ compiler")
    if shutil.which("nvcc") is None and not Path(toolkit).exists():
        pytest.skip("the native library needs the CUDA toolkit (cudart_static): set CUDA_PATH")
    run("cmake", "-S", REPOSITORY, "-B", folder, f"-DTIGERFG_PYTHON={sys.executable}", *options)
    run("cmake", "--build", folder, "--parallel", os.cpu_count(), env=env)
    return folder / "kernels" / "native"


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory, compiled_kernels: Path) -> Path:
    """The shared library and its programs with the kernels of this session."""
    return build(tmp_path_factory.mktemp("build"), f"-DTIGERFG_KERNELS_DIR={compiled_kernels}")


def test_ctest_passes(native: Path) -> None:
    done = run("ctest", "--test-dir", native.parents[1], "--output-on-failure")
    for name in ("errors", "launches", "example", "install", "consumer"):
        assert f" {name} ..." in done.stdout, done.stdout
    assert "100% tests passed" in done.stdout


def test_example_checks_its_result_or_names_the_missing_driver(native: Path) -> None:
    program = native / "example" / "tigerfg_example"
    done = subprocess.run([program], capture_output=True, text=True)
    if torch.cuda.is_available():
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "result ok")
    else:
        assert done.returncode == 77
        assert done.stdout.startswith("no usable NVIDIA driver: none is installed")


def test_library_needs_neither_python_nor_the_driver_to_load(native: Path) -> None:
    library = native / "libtigerfg_kernels.so"
    needed = run("ldd", library).stdout
    assert "libc.so" in needed
    for name in ("python", "libcuda", "torch", "triton"):
        assert name not in needed
    symbols = run("nm", "-D", "--defined-only", library).stdout.split("\n")
    names = [line.split()[-1] for line in symbols if line]
    assert "tigerfg_grounding" in names
    assert [name for name in names if not name.startswith("tigerfg_")] == []


def test_static_library_compiled_by_cmake(tmp_path: Path, without_interpreter: Any) -> None:
    """The other choices: kernels compiled by the build itself, and a static library."""
    folder = build(
        tmp_path / "build",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DTIGERFG_KERNEL_ARCHS=90",
        "-DTIGERFG_KERNEL_ONLY=grounding_combine_fp16_d768;preprocess_fp16_bilinear",
        env={**without_interpreter, "TRITON_INTERPRET": "1"},  # which the build takes away
    )
    assert (folder / "libtigerfg_kernels.a").is_file()
    done = run("ctest", "--test-dir", tmp_path / "build", "--output-on-failure")
    assert "100% tests passed" in done.stdout
    assert "2 kernels" in run(folder / "tests" / "tigerfg_errors").stdout


def test_launches_fails_where_an_operator_lacks_a_kernel(
    tmp_path: Path, without_interpreter: dict[str, str]
) -> None:
    """Grounding without the joining of its splits; pooling, of which nothing is held, may lack."""
    folder = build(
        tmp_path / "build",
        "-DTIGERFG_KERNEL_ARCHS=90",
        "-DTIGERFG_KERNEL_ONLY=grounding_split_fp16_d768_*",
        env=without_interpreter,
    )
    done = subprocess.run([folder / "tests" / "tigerfg_launches"], capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 1
    assert {line.partition(" is ")[0] for line in failed} == {"FAILED: grounding_split_fp16_d768"}


def grounding(dtype: torch.dtype, batch: int, queries: int, patches: int, width: int) -> None:
    x = torch.zeros(batch, queries, width, dtype=dtype)
    v = torch.zeros(batch, patches, width, dtype=dtype)
    grounding_triton(x, v, torch.ones(batch, patches, dtype=torch.bool))


def grounded_embedding(
    dtype: torch.dtype,
    batch: int,
    heads: int,
    per_head: int,
    patches: int,
    width: int,
    embedding_dim: int,
) -> None:
    x = torch.zeros(batch, heads * per_head, width, dtype=dtype)
    v = torch.zeros(batch, patches, width, dtype=dtype)
    mask = torch.ones(batch, patches, dtype=torch.bool)
    square, vector = torch.zeros(width, width, dtype=dtype), torch.zeros(width, dtype=dtype)
    projection = torch.zeros(embedding_dim, width, dtype=dtype)
    weights = TailWeights(square, square, vector, vector, vector, vector, projection)
    text = torch.zeros(batch, width, dtype=dtype)
    grounded_embedding_triton(x, v, mask, text, weights, heads)


def pooled_embedding(
    dtype: torch.dtype, kind: int, batch: int, patches: int, width: int, embedding_dim: int
) -> None:
    v = torch.zeros(batch, patches, width, dtype=dtype)
    mask = torch.ones(batch, patches, dtype=torch.bool)
    vector = torch.zeros(width)
    projection = torch.zeros(embedding_dim, width, dtype=dtype)
    name = {1: "mean", 2: "attention", 3: "cls"}[kind]
    query = vector if name == "attention" else None
    pooled_embedding_triton(v, mask, vector, vector, projection, query, kind=name)


def preprocess(dtype: torch.dtype, interpolation: int, batch: int, size: int, patch: int) -> None:
    offsets = torch.zeros(batch, dtype=torch.int64)
    sizes = torch.ones(batch, 2, dtype=torch.int32)
    preprocess_triton(
        torch.zeros(4, dtype=torch.uint8),
        offsets,
        sizes,
        torch.zeros(batch, 4),
        size=size,
        patch=patch,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation={1: "bilinear", 2: "bicubic", 3: "lanczos"}[interpolation],
        dtype=dtype,
    )


FP16, BF16, FP32 = DTYPES
CALLS = [
    (grounding, FP16, 1, 12, 196, 768),  # split
    (grounding, FP16, 300, 12, 196, 768),  # whole items
    (grounding, FP16, 60, 16, 201, 768),
    (grounding, BF16, 7, 77, 49, 768),  # several blocks of queries
    (grounding, FP32, 1, 1, 1, 384),
    (grounded_embedding, FP16, 1, 12, 1, 196, 768, 256),
    (grounded_embedding, FP16, 300, 12, 1, 196, 768, 256),
    (grounded_embedding, FP16, 33, 12, 2, 256, 768, 256),
    (grounded_embedding, BF16, 5, 12, 4, 100, 768, 256),
    (pooled_embedding, FP16, 1, 1, 196, 768, 256),
    (pooled_embedding, FP16, 2, 300, 196, 768, 256),
    (pooled_embedding, FP16, 3, 40, 196, 768, 256),
    (pooled_embedding, BF16, 2, 33, 49, 768, 256),
    (pooled_embedding, FP32, 2, 2, 5, 384, 256),
    (preprocess, BF16, 1, 2, 224, 16),
    (preprocess, FP16, 2, 1, 250, 25),
    (preprocess, FP32, 3, 5, 64, 8),
]


@pytest.mark.parametrize(
    "call", CALLS, ids=lambda call: "-".join(getattr(c, "__name__", str(c)) for c in call)
)
def test_launches_are_those_of_python(
    call: tuple[Any, ...], native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same kernels, grids and numbers on sm_90 with 132 multiprocessors (the CPU's stand-in)."""
    launched = []

    def record(variant: Variant, grid: tuple[int, ...], *values: Any) -> None:
        numbers = {
            name: value
            for (name, kind), value in zip(variant.arguments.items(), values, strict=True)
            if not kind.startswith("*")
        }
        full_grid = [*grid, 1, 1][:3]
        launched.append({"kernel": variant.name, "grid": full_grid, "integers": numbers})

    monkeypatch.setattr(Variant, "launch", record)
    python, dtype, *numbers = call
    python(dtype, *numbers)
    program = native / "tests" / "tigerfg_launches"
    done = run(program, 90, 132, python.__name__, DTYPES[dtype], *numbers)
    assert [json.loads(line) for line in done.stdout.splitlines()] == launched
    assert launched
