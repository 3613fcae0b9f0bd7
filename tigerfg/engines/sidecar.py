"""What lies beside a TensorRT engine file: what it was built from, by what, and where it runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tigerfg.errors import EngineError
from tigerfg.files import write_whole

FORMAT = 1  # a later format may mean other things by the same fields: not read

Profiles = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Sidecar:
    """All that decides whether an engine can be used.

    Attributes:
        builder: "tensorrt" or "tensorrt-rtx".
        version: the library's full version; an engine runs in that version only.
        sms: what the engine runs on, ascending; 89 is compute capability 8.9.
        driver: the NVIDIA driver's CUDA version where it was built, None without a GPU. For the
            record: engines run with other drivers.
        onnx_sha256: identity of the graph and its weights, see `GpuPart.identity`.
        tower: "query" or "item".
        precision: "fp32", "fp16", "bf16", "int8" or "fp8".
        cut: "tower" or "backbone".
        profiles: (smallest, best, largest) batch of every optimisation profile, in its order.
        max_text_length: the longest text the engine takes, tokens.
        sha256: of the engine file.
        bytes: size of the engine file.
        seconds: how long the build took.
        workspace: the memory limit of the build in bytes, None for the library's default.
        parity: result of the comparison with the float32 model on a GPU, None if not run.
    """

    builder: str
    version: str
    sms: tuple[int, ...]
    driver: str | None
    onnx_sha256: str
    tower: str
    precision: str
    cut: str
    profiles: Profiles
    max_text_length: int
    sha256: str
    bytes: int
    seconds: float
    workspace: int | None
    parity: dict[str, Any] | None = None


def file_name(
    tower: str, precision: str, cut: str, sms: tuple[int, ...], builder: str, version: str
) -> str:
    """An engine's file name: "query.backbone.fp16.sm89.tensorrt-rtx-1.7.1.116.engine".

    Several compute capabilities are joined: "sm80-89".
    """
    graph = f"{tower}.{precision}" if cut == "tower" else f"{tower}.{cut}.{precision}"
    return f"{graph}.sm{'-'.join(map(str, sms))}.{builder}-{version}.engine"


def path_of(engine: Path) -> Path:
    """Where an engine's sidecar lies."""
    return engine.with_name(f"{engine.name}.json")


def read(engine: Path) -> Sidecar | str:
    """The sidecar of an engine file, or the reason, in one line, why there is none to use."""
    path = path_of(engine)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return f"{path.name} is damaged: not JSON"
    if not isinstance(content, dict):
        return f"{path.name} is damaged: no JSON object"
    if content.get("format") != FORMAT:
        return f"{path.name} has format {content.get('format')!r}, this version reads {FORMAT}"
    values = {name: content.get(name) for name in _FIELDS}
    wrong = [name for name, valid in _FIELDS.items() if not valid(values[name])]
    if wrong:
        return f"{path.name} is damaged: {', '.join(wrong)}"
    return Sidecar(
        **{
            **values,
            "sms": tuple(values["sms"]),
            "profiles": tuple(map(tuple, values["profiles"])),
        }
    )


def write(engine: Path, sidecar: Sidecar) -> None:
    """Write an engine's sidecar; a reader sees the old one or the new one, whole.

    Raises:
        EngineError: the file cannot be written.
    """
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(sidecar)}, indent=2)
    write_file(path_of(engine), f"{text}\n".encode())


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file of an engine whole or not at all, in a folder that is made where it is missing.

    Raises:
        EngineError: the file cannot be written (disk full, no permission), with its name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise EngineError(
            f"{path}: cannot be written: {error.strerror or error}; make room there or give "
            "another folder"
        ) from error


def unfit(
    sidecar: Sidecar | str,
    *,
    builder: str,
    version: str,
    sm: int,
    onnx_sha256: str,
    tower: str,
    precision: str,
    cut: str,
    profiles: Profiles,
    max_text_length: int,
    engine_bytes: int | None,
) -> str | None:
    """Why an engine cannot be used here, in one line for the log; None if it can.

    Args:
        sidecar: what `read` gave; a reason from there is passed on.
        builder, version: the TensorRT of this machine, see `tigerfg.engines.builder.Builder`.
        sm: this GPU's compute capability, 89 for 8.9.
        onnx_sha256, tower, precision, cut: the graph wanted.
        profiles, max_text_length: the batches and texts wanted.
        engine_bytes: size of the engine file, None if it is missing.
    """
    if isinstance(sidecar, str):
        return sidecar
    if engine_bytes is None:
        return "the engine file is missing"
    if engine_bytes != sidecar.bytes:
        return f"the engine file has {engine_bytes} bytes, it was written with {sidecar.bytes}"
    built, here = (sidecar.builder, sidecar.version), (builder, version)
    if built != here:
        return f"built by {' '.join(built)}, this is {' '.join(here)}"
    if sm not in sidecar.sms:
        return f"built for sm {', '.join(map(str, sidecar.sms))}, this GPU has sm {sm}"
    found = (sidecar.tower, sidecar.precision, sidecar.cut)
    wanted = (tower, precision, cut)
    if found != wanted:
        return f"built from the graph {' '.join(found)}, wanted {' '.join(wanted)}"
    if sidecar.onnx_sha256 != onnx_sha256:
        return (
            f"built from another model (graph {sidecar.onnx_sha256[:12]}, this bundle has "
            f"{onnx_sha256[:12]})"
        )
    if sidecar.profiles != profiles:
        return f"built for the batches {sidecar.profiles}, this bundle has {profiles}"
    if sidecar.max_text_length != max_text_length:
        return (
            f"built for texts of up to {sidecar.max_text_length} tokens, this bundle has "
            f"{max_text_length}"
        )
    return None


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _counts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_count, value))


def _profiles(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(_counts(entry) and len(entry) == 3 and entry == sorted(entry) for entry in value)
    )


def _or_none(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or valid(value)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "builder": _text,
    "version": _text,
    "sms": _counts,
    "driver": _or_none(_text),
    "onnx_sha256": _text,
    "tower": _text,
    "precision": _text,
    "cut": _text,
    "profiles": _profiles,
    "max_text_length": _count,
    "sha256": _text,
    "bytes": _count,
    "seconds": _seconds,
    "workspace": _or_none(_count),
    "parity": _or_none(lambda value: isinstance(value, dict)),
}
