"""Encoding on a CUDA device: our engines beside torch, torch.compile, our kernels, ONNX Runtime.

`python bench/engine_bench.py [--models tiny base] [--batches 1 8 32 256] [--resume]` writes
engines.json to $RESULTS_DIR, or to bench/results/, row by row, and prints engine_report's table.
Models have random weights. All contenders of a tower and batch size are measured in turns, one
call each. What takes long to make (torch.compile) comes last, and then everyone is measured again
beside it. A run that is cut off is continued with --resume, which also keeps the exported bundles.

Exporting `base` takes minutes of CPU time. `--prepare 90` does it on a machine without a GPU, for
compute capability 9.0; bring build/engine-bench along (`tar -I "xz -T0" -cf ...`: some MB) and go
on with --resume and the same --precisions. When minutes are short, `--contenders "torch eager*"
"*fp16, *"` takes some of the contenders, `--seconds 1` measures each group for less.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conditions import conditions
from engine_contenders import ENGINE_PRECISIONS, Contender, Entry, entries
from engine_models import TOKENS, Say, Setting, Unavailable, export, pictures
from engine_report import FILE, IDENTITY, SAME_MACHINE, Results, report
from engine_timing import (
    DEVICE_ROUNDS,
    HOST_ROUNDS,
    WallClock,
    check_device,
    interleaved,
    one_line,
    quantiles,
)
from gpu_timing import Clock, CudaClock, device_conditions

from tigerfg.bundle import TOWERS
from tigerfg.engines.accuracy import cosines
from tigerfg.engines.base import Arrays
from tigerfg.engines.trt_library import find_builder
from tigerfg.errors import TigerfgError
from tigerfg.model import load_checkpoint

HERE = Path(__file__).resolve().parent
MODELS, BATCHES = ("tiny", "base"), (1, 8, 32, 256)
PACKAGES = (
    "tensorrt", "tensorrt-rtx", "torch-tensorrt-rtx", "pycuda", "onnxruntime-gpu", "transformers",
)  # fmt: skip


class Bench:
    """Measures groups, the contenders of a tower at a batch size, and keeps their rows.

    Each group for some seconds on the device, and as long again end to end.
    """

    def __init__(
        self, results: Results, device_clock: Clock, host_clock: Clock, say: Say, seconds: float
    ) -> None:
        self._results, self._say, self._seconds = results, say, seconds
        self._device_clock, self._host_clock = device_clock, host_clock

    def tower(
        self, setting: Setting, listed: Sequence[Entry], batches: Sequence[int], resume: bool
    ) -> None:
        """Measure a tower at every batch size.

        Args:
            listed: the contenders. If some are slow to make, only the rows of those decide whether
                a batch size has been measured.
            resume: leave out the batch sizes that have been.
        """
        opened: dict[str, Contender | Exception] = {}
        decisive = [entry for entry in listed if entry.slow] or list(listed)
        try:
            for batch in batches:
                group = Group(setting, batch, pictures(setting.model.config, setting.tower, batch))
                wanted = [
                    entry for entry in decisive if not (resume and self._settled(group, entry))
                ]
                if wanted:
                    rest = [entry for entry in listed if entry not in wanted]
                    self._group(group, wanted, rest, opened)
        finally:
            for contender in opened.values():
                if not isinstance(contender, Exception):
                    contender.close()

    def _settled(self, group: Group, entry: Entry) -> bool:
        row = self._results.find(**group.identity(entry))
        return row is not None and row["status"] in ("measured", "unavailable")

    def _group(
        self,
        group: Group,
        wanted: Sequence[Entry],
        rest: Sequence[Entry],
        opened: dict[str, Contender | Exception],
    ) -> None:
        """Measure all in turns; nobody if none of `wanted` can be had."""
        if any(entry.slow for entry in wanted):
            torch._dynamo.reset()  # what was compiled for another batch size
        expected = group.setting.reference(group.feeds)
        ready: dict[str, Ready] = {}
        made: list[Contender] = []
        try:
            for entry in (*wanted, *rest):
                if entry in rest and not ready:
                    break
                self._say(f"{group}: {entry.name}")
                try:
                    contender = self._open(group.setting, entry, opened)
                    if entry.slow:
                        made.append(contender)
                    found = cosines(contender.run(group.feeds)["embedding"], expected)
                    if not np.isfinite(found).all():
                        raise RuntimeError("the embeddings are not finite")
                    call = contender.resident(group.feeds)
                    ready[entry.name] = Ready(entry, contender, call, found)
                except Exception as error:  # see `interleaved`
                    self._reason(group, entry, error)
                    check_device()
            self._measure(group, ready)
        finally:
            for contender in made:
                contender.close()

    def _open(
        self, setting: Setting, entry: Entry, opened: dict[str, Contender | Exception]
    ) -> Contender:
        """A contender, or its failure again; kept for other batch sizes unless it is slow."""
        if entry.slow:
            return entry.open(setting)
        if entry.name not in opened:
            try:
                opened[entry.name] = entry.open(setting)
            except Exception as error:
                opened[entry.name] = error
        found = opened[entry.name]
        if isinstance(found, Exception):
            raise found
        return found

    def _measure(self, group: Group, ready: Mapping[str, Ready]) -> None:
        calls = {name: one.call for name, one in ready.items()}
        streams = {name: one.contender.stream for name, one in ready.items()}
        device, failed = interleaved(
            calls, streams, self._device_clock, DEVICE_ROUNDS, self._seconds
        )
        whole = {name: partial(ready[name].contender.run, group.feeds) for name in device}
        nowhere = dict.fromkeys(whole)
        host, also_failed = interleaved(
            whole, nowhere, self._host_clock, HOST_ROUNDS, self._seconds
        )
        for name, error in {**failed, **also_failed}.items():
            self._reason(group, ready[name].entry, error)
        for name in host:
            one = ready[name]
            times = {"device": quantiles(device[name]), "end_to_end": quantiles(host[name])}
            row = {
                **group.identity(one.entry),
                "precision": one.entry.precision,
                "runtime": one.contender.runtime,
                "status": "measured",
                **times,
                "images_s": 1000 * group.batch / times["device"]["p50"],
                "end_to_end_images_s": 1000 * group.batch / times["end_to_end"]["p50"],
                "cosine_mean": float(one.cosines.mean()),
                "cosine_min": float(one.cosines.min()),
            }
            self._results.add(row)
            self._say(f"{group}: {name}: {row['device']['p50']:.3f} ms on the device")

    def _reason(self, group: Group, entry: Entry, error: Exception) -> None:
        status = "unavailable" if isinstance(error, Unavailable) else "failed"
        row = {
            **group.identity(entry),
            "precision": entry.precision,
            "status": status,
            "reason": one_line(error),
        }
        self._results.add(row)
        self._say(f"{status}: {row['reason']}")


class Group(NamedTuple):
    """A tower at a batch size, and its inputs."""

    setting: Setting
    batch: int
    feeds: Arrays

    def __str__(self) -> str:
        return f"{self.setting.model.config.name} {self.setting.tower} batch {self.batch}"

    def identity(self, entry: Entry) -> dict[str, Any]:
        """The row's."""
        values = (self.setting.model.config.name, self.setting.tower, self.batch, entry.name)
        return dict(zip(IDENTITY, values, strict=True))


class Ready(NamedTuple):
    """A contender that gave finite embeddings: its call on the device and its cosines."""

    entry: Entry
    contender: Contender
    call: Callable[[], object]
    cosines: np.ndarray


def measure(bench: Bench, options: argparse.Namespace, work: Path, device: str, say: Say) -> None:
    """All models, first without the contenders that are slow to make, then with them."""
    listed = [
        entry
        for entry in entries()
        if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in options.contenders)
    ]
    bundles = {}
    for slow in (False, True):
        chosen = [entry for entry in listed if slow or not entry.slow]
        if slow and not any(entry.slow for entry in chosen):
            break
        for name in options.models:
            folder = work / name
            if name not in bundles:
                found = export(name, tuple(options.precisions), folder, options.resume, say)
                absent = dict.fromkeys(ENGINE_PRECISIONS, "not among --precisions")
                bundles[name] = absent | found
            model = load_checkpoint(folder / "checkpoint").to(device)
            for tower in options.towers:
                setting = Setting(model, tower, bundles[name], device)
                bench.tower(setting, chosen, options.batches, options.resume)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=list(TOWERS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument(
        "--precisions", nargs="+", choices=ENGINE_PRECISIONS, default=list(ENGINE_PRECISIONS)
    )
    parser.add_argument("--contenders", nargs="+", default=["*"], help="patterns of their names")
    parser.add_argument("--seconds", type=float, default=6, help="that a group is measured, twice")
    parser.add_argument("--prepare", type=int, metavar="SM", help="export only, see above")
    parser.add_argument("--resume", action="store_true", help="keep rows and bundles of before")
    options = parser.parse_args(arguments)
    work = HERE.parent / "build" / "engine-bench"
    if options.prepare is not None:
        for name in options.models:
            sms = (options.prepare,)
            export(name, tuple(options.precisions), work / name, options.resume, say, sms)
        return 0
    if not torch.cuda.is_available():
        print("torch sees no CUDA device: the speed of engines cannot be measured without one")
        return 1
    torch.backends.cudnn.allow_tf32 = False  # the float32 reference is float32
    folder = Path(os.environ.get("RESULTS_DIR") or HERE / "results")
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")  # engines that are built on the way
    run = {**conditions(), **device_conditions(), "tokens": TOKENS}
    run["versions"] |= {package: version(package) for package in PACKAGES}
    results = Results(folder / FILE, run, IDENTITY, SAME_MACHINE)
    bench = Bench(results, CudaClock(), WallClock(), say, options.seconds)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tigerfg").setLevel(logging.INFO)  # what is built, and its parity
    try:
        say(f"engines: {find_builder()}")
    except TigerfgError as error:
        say(f"engines: none, {error}")
    try:
        measure(bench, options, work, "cuda", say)
    except KeyboardInterrupt:
        say("cut off: go on with --resume")
    if results.rows:
        print("\n".join(report(folder)))
    return 0


def say(line: str) -> None:
    print(line, flush=True)


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
