"""Builds a TensorRT engine, with full TensorRT or TensorRT-RTX, from a tower's ONNX graph."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tigerfg.engines.sidecar import Sidecar, path_of, write, write_file
from tigerfg.engines.trt_build import Job, OutOfMemory, Plan, run
from tigerfg.engines.trt_library import NAMES, Builder, Gpu, current_gpu, find_builder
from tigerfg.errors import EngineError, InputError

__all__ = [
    "NAMES",
    "PROFILES",
    "Builder",
    "Profile",
    "build_engine",
    "find_builder",
    "parse_profiles",
]

MIB = 1 << 20
SMALLEST_WORKSPACE = 256 * MIB
RTX_NEWEST = 120  # from here on TensorRT-RTX runs on every GPU, below on those that it names

Progress = Callable[[str], None]

_log = logging.getLogger("tigerfg")


class Profile(NamedTuple):
    """The batch sizes an optimisation profile serves, and the one it is tuned for."""

    smallest: int
    best: int
    largest: int

    def __str__(self) -> str:
        ends = (self.smallest, self.largest)
        return "-".join(map(str, ends if self.smallest < self.largest else ends[:1]))


PROFILES = (Profile(1, 1, 1), Profile(2, 8, 32), Profile(33, 128, 256))


def parse_profiles(text: str) -> tuple[Profile, ...]:
    """Profiles from ranges of batch sizes: "1,2-32,33-256" gives PROFILES.

    Each is tuned for the power of two nearest to its geometric mean.

    Raises:
        InputError: not such ranges, or they do not rise.
    """
    profiles: list[Profile] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", part)
        if match is None:
            raise InputError(
                f"profiles: {part!r} is no range of batch sizes; give e.g. 1,2-32,33-256"
            )
        smallest = int(match[1])
        largest = int(match[2] or match[1])
        if not 1 <= smallest <= largest:
            raise InputError(f"profiles: {part.strip()}: give 1 or more first, then the larger")
        if profiles and smallest <= profiles[-1].largest:
            raise InputError(
                f"profiles: {part.strip()} does not come after {profiles[-1]}; give ranges that "
                "rise and do not overlap"
            )
        power = 2 ** round(math.log2(smallest * largest) / 2)
        profiles.append(Profile(smallest, min(max(power, smallest), largest), largest))
    return tuple(profiles)


def build_engine(
    graph: Path,
    out: Path,
    *,
    tower: str,
    precision: str,
    cut: str,
    onnx_sha256: str,
    builder: Builder,
    max_text_length: int,
    profiles: tuple[Profile, ...] = PROFILES,
    sms: tuple[int, ...] = (),
    workspace: int | None = None,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> Sidecar:
    """Build an engine file and its sidecar; Ctrl-C cancels.

    A build that fails or is cancelled leaves the pair that was there before, or neither file.

    Args:
        graph: the ONNX file, its weights beside it.
        out: the engine file, see `sidecar.file_name`.
        tower, precision, cut, onnx_sha256: what the graph is, for the sidecar and for errors.
        max_text_length: the longest text in tokens.
        profiles: one optimisation profile each.
        sms: compute capabilities to build for, 89 for 8.9; several give one engine that runs on
            each. Empty: the GPU of this machine. Full TensorRT builds for that only.
        workspace: memory in bytes that a layer may take, None for the library's default. It is
            halved down to SMALLEST_WORKSPACE while the build runs out of memory.
        timing_cache: file that keeps full TensorRT's measurements for the next build.
        progress: is told each step in a line.

    Raises:
        EngineError: no GPU and no `sms`, the library cannot build for `sms`, it refuses the graph,
            memory does not suffice, or a file cannot be written.
    """
    if workspace is not None and workspace < 1:
        raise InputError(f"workspace: {workspace} bytes; give 1 or more")
    say = progress or (lambda line: None)
    gpu = current_gpu()
    sms, targets = targets_of(builder, sms, gpu)
    if timing_cache is not None and builder.name != "tensorrt":
        say(f"{builder.name} measures nothing while it builds: {timing_cache.name} is not used")
        timing_cache = None
    job = Job(
        what=f"{tower} {precision} {cut}",
        graph=graph,
        builder=builder,
        profiles=tuple(Profile(*profile) for profile in profiles),
        max_text_length=max_text_length,
        targets=targets,
        gpu=gpu,
        timing_cache=timing_cache,
    )
    if not graph.is_file():
        raise EngineError(f"{job.what}: {graph} is missing: export the model again")
    start = time.monotonic()
    on, batches = (", ".join(map(str, values)) for values in (sms, job.profiles))
    say(f"{job.what}: building with {builder} for sm {on}, batches {batches}")
    plan, workspace = _with_less_memory(job, workspace, say)
    seconds = time.monotonic() - start
    content = memoryview(plan.engine)
    record = Sidecar(
        builder=builder.name,
        version=builder.version,
        sms=sms,
        driver=None if gpu is None else gpu.driver,
        onnx_sha256=onnx_sha256,
        tower=tower,
        precision=precision,
        cut=cut,
        profiles=tuple(map(tuple, job.profiles)),
        max_text_length=max_text_length,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=content.nbytes,
        seconds=round(seconds, 2),
        workspace=workspace,
    )
    _write(out, content, record)
    if timing_cache is not None and plan.timings is not None:
        try:
            write_file(timing_cache, plan.timings)
        except EngineError as error:  # the engine is there all the same
            _log.warning("measurements for the next build are not kept: %s", error)
    say(f"{job.what}: {out.name}, {content.nbytes / 1e6:.1f} MB in {seconds:.1f} s")
    return record


def targets_of(
    builder: Builder, sms: tuple[int, ...], gpu: Gpu | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The compute capabilities to build for, and the library's names of them.

    Full TensorRT has no names: it builds for the GPU it finds.
    """
    wanted = tuple(sorted(set(sms)))
    here = () if gpu is None else (gpu.sm,)
    if builder.name == "tensorrt":
        if gpu is None:
            raise EngineError(
                "no GPU here, and full tensorrt builds only for the GPU it runs on: build on that "
                "machine, or with tensorrt-rtx and --sm 89"
            )
        if wanted not in ((), here):
            raise EngineError(
                f"sm {', '.join(map(str, wanted))}: full tensorrt builds only for the GPU it runs "
                f"on, here sm {gpu.sm}; tensorrt-rtx builds for others"
            )
        return here, ()
    names = {f"SM{sm}": sm for sm in wanted}
    known = builder.module.ComputeCapability.__members__
    if not wanted and gpu is None:
        raise EngineError("no GPU here: say what to build for, e.g. --sm 89 for an L4 or RTX 40")
    if wanted in ((), here):
        # Seen on an H200: built for CURRENT as for any other name, it cannot be loaded there.
        if here and here[0] < RTX_NEWEST and f"SM{here[0]}" not in known:
            raise EngineError(
                f"sm {here[0]}: {builder} does not run on this GPU; full TensorRT does: install it "
                "and export here, or take another engine"
            )
        return here, ("CURRENT",)
    if missing := [sm for name, sm in names.items() if name not in known]:
        can = ", ".join(name[2:] for name in known if name.startswith("SM"))
        raise EngineError(
            f"sm {', '.join(map(str, missing))}: {builder} builds for {can}, and on a machine with "
            "a GPU for that one"
        )
    return wanted, tuple(names)


def _with_less_memory(job: Job, workspace: int | None, say: Progress) -> tuple[Plan, int | None]:
    """Build, with half the workspace each time memory runs out; and the workspace that sufficed."""
    while True:
        try:
            return run(job, workspace, say), workspace
        except OutOfMemory as short:
            limit, requested = short.limit, short.requested
        # TensorRT-RTX takes no GPU memory to build: what it misses is its limit
        if job.builder.name == "tensorrt-rtx" and requested is not None and requested > limit:
            raise EngineError(
                f"{job.what}: a layer needs {_mib(requested)} of workspace and may take "
                f"{_mib(limit)}: allow more, or give profiles with smaller batches"
            )
        if limit <= SMALLEST_WORKSPACE:
            when = f"even with {_mib(limit)} of workspace" if limit else "while reading the graph"
            raise EngineError(
                f"{job.what}: out of memory, {when}: close what else uses the memory, or give "
                "profiles with smaller batches"
            )
        workspace = max(limit // 2, SMALLEST_WORKSPACE)
        say(f"{job.what}: out of memory with {_mib(limit)}; again with {_mib(workspace)}")


def _mib(count: int) -> str:
    return f"{math.ceil(count / MIB)} MiB"


def _write(out: Path, content: memoryview, record: Sidecar) -> None:
    """Engine, then sidecar: until it is there the older one refuses the engine, by its SHA-256."""
    write_file(out, content)
    try:
        write(out, record)
    except BaseException:
        for file in (out, path_of(out)):
            file.unlink(missing_ok=True)
        raise
