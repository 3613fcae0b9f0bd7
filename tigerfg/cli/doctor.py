"""``tigerfg doctor``: what this machine can run, and what tigerfg chooses."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tigerfg.bundle import DEFAULT_MODEL, TOWERS
from tigerfg.cli import options

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle

PACKAGES = (
    "tigerfg",
    "numpy",
    "pillow",
    "tokenizers",
    "onnxruntime",
    "openvino",
    "faiss-cpu",
    "torch",
    "transformers",
    "tensorrt",
    "tensorrt-rtx",
    "pycuda",
)
CUDA_NO_DEVICE = 100


def command(
    model: options.Model = DEFAULT_MODEL,
    threads: options.Threads = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Measure the engines anew, for example if the machine was busy the first time.",
        ),
    ] = False,
) -> None:
    """Show versions, processor, GPU, engines and the engine chosen for a model."""
    from tigerfg.bundle import Bundle
    from tigerfg.errors import TigerfgError

    _section("versions", versions())
    _section("processor", processor())
    _section("gpu", gpu())
    _section("engines", engines())
    try:
        bundle = Bundle.open(model)
        _section(f"model {bundle.name}", chosen_engines(bundle, threads, again))
    except TigerfgError as error:
        _section(f"model {model}", [("cannot run", str(error))])
        raise typer.Exit(1) from error


def _section(title: str, lines: Iterable[tuple[str, str]]) -> None:
    typer.echo(title)
    for name, value in lines:
        typer.echo(f"  {name:<14} {value}")


def versions() -> Iterator[tuple[str, str]]:
    """Versions of python and of the packages that matter."""
    yield "python", f"{sys.version.split()[0]} ({platform.platform()})"
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"


def processor() -> Iterator[tuple[str, str]]:
    """The CPU's name, the instruction sets that matter, and the threads this process may use."""
    from tigerfg.engines.cpu import cpu, thread_count

    yield "cpu", cpu().model
    yield "instructions", " ".join(cpu().features) or "none of those that matter"
    yield "threads", f"{thread_count(None)} usable of {os.cpu_count()}"


def gpu() -> Iterator[tuple[str, str]]:
    """The GPU and the library that would run engines on it."""
    from tigerfg.engines.trt_library import find_builder
    from tigerfg.errors import TigerfgError

    yield "cuda", cuda_state()
    try:
        yield "tensorrt", str(find_builder())
    except TigerfgError as error:
        yield "tensorrt", f"none: {error}"


def cuda_state() -> str:
    """Which NVIDIA GPU the driver offers, or why none; needs neither torch nor CUDA packages."""
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "none: no NVIDIA driver (libcuda.so.1 is not there)"
    code = driver.cuInit(0)
    if code == CUDA_NO_DEVICE:
        return "none: the NVIDIA driver sees no device"
    if code:
        return f"none: the NVIDIA driver does not start (cuInit: error {code})"
    count, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    driver.cuDeviceGetCount(ctypes.byref(count))
    driver.cuDeviceGetName(name, len(name), 0)
    return f"{count.value} x {name.value.decode(errors='replace')}"


def engines() -> Iterator[tuple[str, str]]:
    """Every engine and whether it can be used here."""
    from tigerfg.engines import ENGINES, available_engines
    from tigerfg.engines.trt_library import NAMES, current_gpu

    available = available_engines()
    for name, package in ENGINES.items():
        extra = {"torch": "train", "onnx": "cpu", "openvino": "cpu"}.get(name, name)
        missing = f"no: {package} is not installed (pip install 'tigerfg[{extra}]')"
        if name in available and name in NAMES and current_gpu() is None:
            yield name, "installed, but there is no GPU here"
        else:
            yield name, "available" if name in available else missing


def chosen_engines(
    bundle: Bundle, threads: int | None, again: bool = False
) -> Iterator[tuple[str, str]]:
    """The engine chosen for each tower beside the other candidates, as measured here."""
    from tigerfg.engines import choose
    from tigerfg.engines.cpu import thread_count
    from tigerfg.engines.gpu import why_not
    from tigerfg.engines.select import cache_file

    count = thread_count(threads)
    yield "directory", str(bundle.path)
    yield "fingerprint", bundle.fingerprint[:16]
    yield "on a GPU", why_not(bundle) or f"runs in {', '.join(bundle.gpu.precisions)}"
    for tower in TOWERS:
        choice = choose(bundle, tower, threads=count, refresh=again)
        for place, candidate in enumerate(choice.candidates):
            parts = ["*" if place == 0 else " ", candidate.engine, candidate.precision]
            if candidate.milliseconds is not None:
                parts.append(f"{candidate.milliseconds:.2f} ms a picture")
            if candidate.cosine is not None:
                parts.append(f"cosine {candidate.cosine:.4f}")
            yield (
                f"{tower} tower",
                " ".join(parts) + (f" ({candidate.note})" * bool(candidate.note)),
            )
    if bundle.attention_crop:
        told = f"{bundle.attention_crop}: an item takes a query's time besides"
        yield "attention crop", told
    yield "threads", str(count)
    yield "choice kept in", _writable(cache_file(bundle, TOWERS[0], (), count).parent)


def _writable(folder: Path) -> str:
    """The folder and whether files can be made in it."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(existing, os.W_OK | os.X_OK):
        return str(folder)
    return f"{folder} (not writable: engines are measured again each time)"
