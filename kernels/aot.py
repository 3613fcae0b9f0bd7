"""Ahead-of-time compilation: every variant of every operator to a cubin and its description.

    python -m tigerfg.kernels.aot --out DIR [--arch 90 ...] [--op grounding ...]

writes DIR/sm_90/<name>.cubin, .ptx and .json for each variant and DIR/index.json, the list of all
descriptions; with --model only what the tails of one model need. No GPU is needed. The output
depends on the sources and the Triton version alone: compiling twice gives the same bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import functools
import importlib
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tigerfg.kernels.model_kernels import ModelKernels
from tigerfg.kernels.tuning import ARCHITECTURES
from tigerfg.kernels.variant import INTERPRETED, Variant

OPERATORS = ("grounding", "tail", "pooling", "preprocess")  # modules with variants(arch)
C_TYPES = {"i8": "int8_t", "i32": "int32_t", "i64": "int64_t", "fp32": "float"}
# Triton ends every kernel's parameters with these two pointers; null is right for both as long as
# the kernel asks for no scratch memory, which `compile_variant` checks.
SCRATCH = ("global_scratch", "profile_scratch")
INDEX_FORMAT = 1


@dataclass(frozen=True)
class Argument:
    """One kernel parameter: its Triton type and what a C caller passes the address of."""

    name: str
    type: str
    c_type: str
    aligned: bool  # a multiple of 16 by contract


@dataclass(frozen=True)
class Compiled:
    """A variant compiled for one architecture, with all that a launch needs.

    Attributes:
        target: what ptxas compiled for, e.g. "sm_90a" (runs on 9.0 alone) or "sm_80".
        entry: the kernel's symbol in the cubin.
        shared: dynamic shared memory of a block in bytes.
        arguments: in order, the scratch pointers included.
    """

    name: str
    arch: int
    target: str
    entry: str
    cubin: bytes
    ptx: str
    num_warps: int
    shared: int
    grid: tuple[str, ...]
    arguments: tuple[Argument, ...]
    constexprs: dict[str, Any]
    triton_version: str

    def description(self, operator: str) -> dict[str, Any]:
        """What index.json holds of it; `file` is the cubin's path below the output folder."""
        plain = (bool, int, float, str, type(None))
        return {
            "name": self.name,
            "operator": operator,
            "arch": self.arch,
            "target": self.target,
            "entry": self.entry,
            "file": f"sm_{self.arch}/{self.name}.cubin",
            "num_warps": self.num_warps,
            "shared": self.shared,
            "grid": list(self.grid),
            "arguments": [vars(argument) for argument in self.arguments],
            "constexprs": {
                name: value if isinstance(value, plain) else str(value)
                for name, value in self.constexprs.items()
            },
            "triton": self.triton_version,
        }


def c_type(argument: str, triton_type: str) -> str:
    """The C type of a Triton type: "*fp16" -> "void *", "i32" -> "int32_t"."""
    if triton_type.startswith("*"):
        return "void *"
    try:
        return C_TYPES[triton_type]
    except KeyError:
        raise ValueError(f"{argument}: Triton type {triton_type!r} has no C type here") from None


def compile_variant(variant: Variant, arch: int) -> Compiled:
    """Compile for an architecture, 90 for compute capability 9.0; no GPU is needed.

    Raises:
        RuntimeError: kernels run in the interpreter, or Triton's calling convention is not the
            one that the native library launches with.
    """
    if INTERPRETED:
        raise RuntimeError(
            "TRITON_INTERPRET is set, so kernels are interpreted and cannot be compiled: unset it "
            "in the environment of the compiling process"
        )
    triton.knobs.compilation.disable_line_info = True  # it holds this machine's file paths
    names = variant.kernel.arg_names
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.arguments.get(name, "constexpr") for name in names},
        constexprs=variant.constexprs,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in sorted(variant.aligned)},
    )
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages},
    )
    arguments = [
        Argument(name, kind, c_type(name, kind), name in variant.aligned)
        for name, kind in variant.arguments.items()
    ]
    arguments += [Argument(name, "*i8", "void *", True) for name in SCRATCH]
    ptx, metadata = kernel.asm["ptx"], kernel.metadata
    check_convention(variant.name, ptx, arguments, metadata)
    return Compiled(
        name=variant.name,
        arch=arch,
        target=re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1],
        entry=metadata.name,
        cubin=kernel.asm["cubin"],
        ptx=ptx,
        num_warps=metadata.num_warps,  # warp specialization adds to the variant's
        shared=metadata.shared,
        grid=variant.grid,
        arguments=tuple(arguments),
        constexprs=dict(variant.constexprs),
        triton_version=triton.__version__,
    )


def check_convention(name: str, ptx: str, arguments: list[Argument], metadata: Any) -> None:
    """The compiled parameters are those described: a wrong one would be read as garbage."""
    bits = {"void *": 64, "int8_t": 8, "int32_t": 32, "int64_t": 64, "float": 32}
    signature = re.search(r"\.visible \.entry \w+\((.*?)\)", ptx, re.DOTALL)[1]
    compiled = [int(size) for size in re.findall(r"\.param \.[a-z](\d+)", signature)]
    described = [bits[argument.c_type] for argument in arguments]
    if compiled != described:
        raise RuntimeError(
            f"{name}: Triton {triton.__version__} compiled parameters of {compiled} bits, "
            f"{described} are described"
        )
    if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas != 1:
        raise RuntimeError(f"{name}: scratch memory and clusters are not supported at launch")


@functools.cache
def variants_of(operator: str, arch: int, model: ModelKernels | None = None) -> dict[str, Variant]:
    """What an operator compiles ahead of time for an architecture (and a model), by name."""
    if model is None:
        variants = importlib.import_module(f"tigerfg.kernels.{operator}").variants(arch)
    else:
        variants = model.variants(operator, arch)
    by_name = {variant.name: variant for variant in variants}
    if len(by_name) != len(variants):
        raise ValueError(f"{operator}: two variants of sm_{arch} have one name")
    return by_name


def _write(file: Path, content: bytes) -> None:
    """All of it or nothing: a reader never sees half a file."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(file)


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def fix_addresses() -> bool:
    """Load the programs that this process starts at fixed addresses; whether the system allows it.

    ptxas for Blackwell picks between equivalent registers by the addresses of its own tables: two
    runs give different cubins of the same PTX otherwise.
    """
    address_no_randomize = 0x0040000  # <sys/personality.h>
    return ctypes.CDLL(None).personality(address_no_randomize) != -1


def _start_worker() -> None:
    fix_addresses()
    # A cache of its own: others' cubins may have been made at other addresses.
    triton.knobs.cache.dir = os.path.join(triton.knobs.cache.dir, "aot")


def _compile_to(
    out: Path, model: ModelKernels | None, task: tuple[str, int, str]
) -> dict[str, Any]:
    """Compile one (operator, arch, name) into the folder; its description."""
    operator, arch, name = task
    compiled = compile_variant(variants_of(operator, arch, model)[name], arch)
    description = compiled.description(operator)
    cubin = out / description["file"]
    cubin.parent.mkdir(parents=True, exist_ok=True)
    _write(cubin, compiled.cubin)
    _write(cubin.with_suffix(".ptx"), compiled.ptx.encode())
    _write(cubin.with_suffix(".json"), _as_json(description))
    return description


def compile_all(
    out: Path,
    *,
    archs: tuple[int, ...] = ARCHITECTURES,
    operators: tuple[str, ...] = OPERATORS,
    only: tuple[str, ...] = ("*",),
    model: ModelKernels | None = None,
    jobs: int = 1,
) -> Iterator[dict[str, Any]]:
    """Compile the variants whose name matches a pattern of `only`; yields each description.

    Patterns are those of `fnmatch`. The index is written after the last kernel.
    """
    tasks = [
        (operator, arch, name)
        for operator in operators
        for arch in archs
        for name in variants_of(operator, arch, model)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in only)
    ]
    if not tasks:
        raise ValueError(f"only: no variant matches {', '.join(only)}")
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    descriptions = []
    workers = min(jobs, len(tasks))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        for description in pool.map(functools.partial(_compile_to, out, model), tasks):
            descriptions.append(description)
            yield description
    _write(out / "index.json", _as_json({"format": INDEX_FORMAT, "kernels": descriptions}))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tigerfg.kernels.aot",
        description="Compile the Triton kernels for the native library; needs no GPU.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for sm_XX/ and index.json")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, metavar="XX")
    parser.add_argument("--op", nargs="+", choices=OPERATORS, metavar="NAME")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of variant names")
    parser.add_argument(
        "--model", type=json.loads, metavar="JSON", help="only a model's: fields of ModelKernels"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args(argv)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")
    count = 0
    for description in compile_all(
        options.out,
        archs=tuple(options.arch or ARCHITECTURES),
        operators=tuple(options.op or OPERATORS),
        only=tuple(options.only),
        model=None if options.model is None else ModelKernels(**options.model),
        jobs=options.jobs,
    ):
        count += 1
        print(f"{description['target']:>8} {description['name']}", flush=True)
    print(f"{count} kernels in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
