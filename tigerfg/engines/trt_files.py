"""Engine files: the one that fits this machine, else a new one; and what was measured of them."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tigerfg.engines import sidecar
from tigerfg.engines.builder import Profile, build_engine
from tigerfg.engines.cuda import Cuda
from tigerfg.engines.sidecar import Sidecar
from tigerfg.engines.trt_engine import LoadedEngine
from tigerfg.engines.trt_library import Builder
from tigerfg.errors import EngineError
from tigerfg.files import engines_cache

if TYPE_CHECKING:
    from tigerfg.gpu_bundle import GpuPart

logger = logging.getLogger("tigerfg")


class Wanted(NamedTuple):
    """Which graph of a bundle: "query" or "item", the precision, "tower" or "backbone"."""

    tower: str
    precision: str
    cut: str


class EngineFile:
    """An engine file that fits this machine, with its sidecar; loaded by `open_engine`."""

    def __init__(self, path: Path, record: Sidecar, folder: Path, cuda: Cuda, proof: str) -> None:
        self.path, self._record, self._folder = path, record, folder
        self._here = {"gpu": cuda.name, "sm": cuda.sm, "driver": cuda.driver, "proof": proof}

    @property
    def parity(self) -> dict[str, Any] | None:
        """What was measured on a machine like this, with the same kernels behind the engine; None
        if nothing was."""
        noted = sidecar.read(self._folder / self.path.name)
        records = [self._record]
        if isinstance(noted, Sidecar) and noted.sha256 == self._record.sha256:
            records.insert(0, noted)
        for record in records:
            parity = record.parity
            if parity and self._here.items() <= parity.items():
                return parity
        return None

    def note(self, parity: dict[str, Any]) -> None:
        """Keep what was measured in a sidecar in the user's cache: bundles are never written to."""
        record = dataclasses.replace(self._record, parity={**self._here, **parity})
        try:
            sidecar.write(self._folder / self.path.name, record)
        except EngineError as error:
            logger.info("the parity of %s is not kept: %s", self.path.name, error)


def open_engine(
    part: GpuPart, wanted: Wanted, *, builder: Builder, cuda: Cuda, max_text_length: int
) -> tuple[LoadedEngine, EngineFile]:
    """Load the engine of a graph that came with the bundle or lies in the cache, or build one.

    A build is announced with one warning, which says why none of those fits. Call it with the
    device active.

    Raises:
        EngineError: the engine cannot be built or loaded.
    """
    identity = part.identity(*wanted)
    folder = cache_folder(identity)
    cache = folder / f"{'.'.join(wanted)}.sm{cuda.sm}.kernels"  # of TensorRT-RTX

    def load(path: Path, record: Sidecar) -> tuple[LoadedEngine, EngineFile]:
        data = _read(path, record)
        loaded = LoadedEngine(cuda, builder.module, data, path.name, cache)
        return loaded, EngineFile(path, record, folder, cuda, part.proof_identity(wanted.cut))

    def find() -> tuple[LoadedEngine, EngineFile] | list[str]:
        """The first engine that fits, or why each does not."""
        reasons = []
        for path in (*part.engines(), *sorted(folder.glob("*.engine"))):
            record = sidecar.read(path)
            if isinstance(record, Sidecar) and (
                (record.tower, record.precision, record.cut) != wanted
            ):
                continue  # another of the bundle's graphs
            reason = sidecar.unfit(
                record,
                builder=builder.name,
                version=builder.version,
                sm=cuda.sm,
                onnx_sha256=identity,
                **wanted._asdict(),
                profiles=part.profiles,
                max_text_length=max_text_length,
                engine_bytes=_size(path),
            )
            if reason is None:
                try:
                    return load(path, record)
                except EngineError as error:
                    reason = str(error)
            reasons.append(f"{path.name}: {reason}")
        return reasons

    found = find()
    if not isinstance(found, list):
        return found
    with _place(folder) as place:  # one process builds; those that waited find its engine
        found = find()
        if not isinstance(found, list):
            return found
        path = place / sidecar.file_name(*wanted, (cuda.sm,), builder.name, builder.version)
        logger.warning(
            "the %s %s engine (%s) is built for %s now, which may take some minutes: %s",
            *wanted, cuda.name, "; ".join(found) or "none came with the bundle",
        )  # fmt: skip
        record = build_engine(
            part.graph(*wanted),
            path,
            **wanted._asdict(),
            onnx_sha256=identity,
            builder=builder,
            profiles=tuple(Profile(*profile) for profile in part.profiles),
            workspace=part.workspace,
            max_text_length=max_text_length,
            timing_cache=_timing_cache(folder, builder, cuda),
            progress=logger.info,
        )
        return load(path, record)


@contextlib.contextmanager
def _place(folder: Path) -> Iterator[Path]:
    """The cache folder, held against other processes; a temporary one if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "ab")  # noqa: SIM115
    except OSError as error:
        logger.warning("engines cannot be kept in %s (%s): built again next time", folder, error)
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def cache_folder(identity: str) -> Path:
    """Where the engines of a graph are kept: in the user's cache directory."""
    return engines_cache() / identity[:16]


def _timing_cache(folder: Path, builder: Builder, cuda: Cuda) -> Path | None:
    """Full TensorRT's measurements, for all graphs on one GPU; TensorRT-RTX makes none."""
    if builder.name != "tensorrt":
        return None
    return folder.parent / f"{builder.name}-{builder.version}.sm{cuda.sm}.timings"


def _read(path: Path, record: Sidecar) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise EngineError("damaged: its SHA-256 is not that of its sidecar")
    return data


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
