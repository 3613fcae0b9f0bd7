"""The compile gate: no spills, shared memory that fits, and the instructions that make it fast.

No GPU is needed: ptxas says what a kernel uses, and its SASS says how it computes and loads.
"""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gate import GATED, USAGE, Expected, expected, faults

from tigerfg.kernels import aot
from tigerfg.kernels.resources import Resources, inspect
from tigerfg.kernels.tuning import ARCHITECTURES, SHARED_MEMORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first test waits for all kernels

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


GATED_KERNELS = [
    (arch, name)
    for arch in ARCHITECTURES
    for operator in aot.OPERATORS
    for name in aot.variants_of(operator, arch)
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in GATED)
]


@pytest.fixture(scope="session")
def descriptions(compiled_kernels: Path) -> dict[tuple[int, str], dict[str, Any]]:
    index = json.loads((compiled_kernels / "index.json").read_text())
    return {(kernel["arch"], kernel["name"]): kernel for kernel in index["kernels"]}


@pytest.fixture(scope="session")
def usage(
    compiled_kernels: Path, descriptions: dict[tuple[int, str], dict[str, Any]]
) -> dict[tuple[int, str], Resources]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cubins = ((compiled_kernels / d["file"]).read_bytes() for d in descriptions.values())
        return dict(zip(descriptions, pool.map(inspect, cubins), strict=True))


@pytest.mark.parametrize(
    ("arch", "name"), GATED_KERNELS, ids=[f"sm_{arch}-{name}" for arch, name in GATED_KERNELS]
)
def test_kernel_fits_its_architecture(
    arch: int, name: str, descriptions: Any, usage: Any, record_property: Any
) -> None:
    description, resources = descriptions[arch, name], usage[arch, name]
    matrix = ", ".join(f"{kind} {count}" for kind, count in resources.matrix.items())
    loads = f"{resources.wide_loads} of {resources.global_loads}"
    row = (
        f"{description['target']:8} {name:50} {resources.registers:9} {resources.spills:6} "
        f"{description['shared']:7}  {loads:13}  {matrix}"
    )
    record_property(USAGE, row.rstrip())
    assert faults(resources, expected(name), arch, description["shared"]) == []


def test_the_gate_sees_spills_and_narrow_loads(
    tmp_path: Path, without_interpreter: dict[str, str]
) -> None:
    command = [sys.executable, HERE / "toy_kernels.py", tmp_path]
    subprocess.run(command, env=without_interpreter, check=True)
    toys = {file.stem: inspect(file.read_bytes()) for file in tmp_path.glob("*.cubin")}
    no_dot = Expected(dot=False, warp_group=False)
    assert faults(toys["good"], no_dot, 80, 1024) == []
    assert [fault.split(":")[0] for fault in faults(toys["spilling"], no_dot, 80, 0)] == ["spills"]
    narrow = faults(toys["narrow"], no_dot, 80, 0)
    assert [fault.split(":")[0] for fault in narrow] == ["narrow loads"]
    too_much = faults(toys["good"], no_dot, 80, SHARED_MEMORY[80] + 1)
    assert [fault.split(":")[0] for fault in too_much] == ["shared memory"]
    assert faults(toys["good"], Expected(), 90, 0) == ["no matrix instruction", "no HGMMA, only "]


@pytest.mark.parametrize("arch", [89, 120])  # of the least shared memory
def test_a_float32_projection_fits_beside_half_precision_patches(
    arch: int, without_interpreter: dict[str, str]
) -> None:
    """With the parameters of two bytes an element it would take 133,120 bytes."""
    program = (
        "import torch\n"
        "from tigerfg.kernels.aot import compile_variant\n"
        "from tigerfg.kernels.pooling import variant\n"
        f"made = variant('attention', torch.float16, 768, 512, True, {arch},\n"
        "    projection_dtype=torch.float32)\n"
        f"print(compile_variant(made, {arch}).shared)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=without_interpreter,
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(found.stdout) <= SHARED_MEMORY[arch]


def test_index_describes_what_was_compiled(compiled_kernels: Path, descriptions: Any) -> None:
    assert sorted(descriptions) == sorted(GATED_KERNELS)
    for (arch, name), description in descriptions.items():
        cubin = compiled_kernels / description["file"]
        assert json.loads(cubin.with_suffix(".json").read_text()) == description
        assert cubin.read_bytes()[:4] == b"\x7fELF"
        variant = aot.variants_of(description["operator"], arch)[name]
        given = [argument["name"] for argument in description["arguments"]]
        assert given == [*variant.arguments, *aot.SCRATCH]
        assert description["target"] == f"sm_{arch}{'a' if arch >= 90 else ''}"


def test_output_names_no_file_of_this_machine(compiled_kernels: Path) -> None:
    roots = (REPOSITORY, Path.home(), Path(sys.prefix), Path(tempfile.gettempdir()))
    for file in compiled_kernels.rglob("*.*"):
        content = file.read_bytes()
        assert [str(root) for root in roots if str(root).encode() in content] == [], file
        assert b".loc\t" not in content, f"{file}: line numbers, which name their files"


def test_compiling_again_gives_the_same_bytes(
    compiled_kernels: Path, tmp_path: Path, without_interpreter: dict[str, str]
) -> None:
    """In another process and without Triton's cache; sm_100's ptxas is the one that may differ."""
    script = "from tigerfg.kernels.aot import fix_addresses; print(fix_addresses())"
    command = [sys.executable, "-c", script]
    fixed = subprocess.run(command, check=True, capture_output=True, text=True).stdout == "True\n"
    archs = ["90", "100"] if fixed else ["90"]
    command = [sys.executable, "-m", "tigerfg.kernels.aot", "--out", tmp_path / "out"]
    command += ["--only", "pooled_embedding_attention_*_fp16_d768*", "--op", "pooling"]
    fresh = {**without_interpreter, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([*command, "--arch", *archs], env=fresh, check=True, capture_output=True)
    again = sorted((tmp_path / "out").glob("sm_*/*"))
    assert [file.suffix for file in again] == [".cubin", ".json", ".ptx"] * len(archs)
    for file in again:
        first = compiled_kernels / file.relative_to(tmp_path / "out")
        assert file.read_bytes() == first.read_bytes(), file


def test_interpreted_kernels_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aot, "INTERPRETED", True)
    variant = next(iter(aot.variants_of("grounding", 90).values()))
    with pytest.raises(RuntimeError, match=r"TRITON_INTERPRET is set.*unset it"):
        aot.compile_variant(variant, 90)
    with pytest.raises(SystemExit, match="2"):
        aot.main(["--out", str(tmp_path / "out")])
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
