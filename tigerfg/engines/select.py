"""Which runtime and precision a tower runs in: measured on this machine once, then remembered."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tigerfg.engines import onnx, openvino
from tigerfg.engines.accuracy import cosines
from tigerfg.engines.base import Arrays, Runner, TowerShapes, installed
from tigerfg.engines.cpu import cpu
from tigerfg.engines.sidecar import write_file
from tigerfg.errors import EngineError, TigerfgError
from tigerfg.files import engines_cache

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
PRECISIONS = {"onnx": onnx.PRECISIONS, "openvino": openvino.PRECISIONS}

MIN_COSINE = 0.995  # mean cosine with float32 that a reduced precision must keep
# The same on the probe pictures of the measurement: they are no photos, so this only catches
# kernels that go wrong on this CPU (int8 saturation, for one), where the bundle's own parity holds.
MIN_PROBE_COSINE = 0.98
MIN_GAIN = 1.1  # how much faster than float32 a reduced precision must be to be taken
BATCH = {"query": 1, "item": 16}  # a search encodes one picture, an ingest many
PROBES = {"query": 4, "item": 16}  # pictures that the cosine is taken over
ROUNDS, BUDGET = 7, 0.6  # rounds over all candidates at most, and seconds for them

logger = logging.getLogger("tigerfg")


class Candidate(NamedTuple):
    """One way to run a tower, as measured.

    Attributes:
        milliseconds: per picture, median; None if it could not run.
        cosine: mean cosine with float32 ONNX Runtime on the probe pictures; None likewise.
        note: why it was not taken, "" if nothing speaks against it.
    """

    engine: str
    precision: str
    milliseconds: float | None
    cosine: float | None
    note: str


class Choice(NamedTuple):
    """What was chosen for a tower, and every candidate with its figures, best first."""

    tower: str
    engine: str
    precision: str
    candidates: tuple[Candidate, ...]


class CpuTowers:
    """Opens the towers of a bundle on the CPU, each in the runtime and precision asked for; where
    either is "auto", the best."""

    device = "cpu"

    def __init__(self, bundle: Bundle, engine: str, precision: str, threads: int) -> None:
        check_request(bundle, engine, precision)
        self._bundle, self._threads = bundle, threads
        self._engine, self._precision = engine, precision

    def open(self, tower: str) -> Runner:
        """The tower in the only candidate, or the best."""
        requested = list(_requested(self._bundle, self._engine, self._precision))
        if len(requested) > 1:
            choice = choose(self._bundle, tower, self._engine, self._precision, self._threads)
            requested = [(choice.engine, choice.precision)]
        return _open(self._bundle, tower, *requested[0], self._threads)


def check_request(bundle: Bundle, engine: str, precision: str) -> None:
    """EngineError if no candidate can fit the request."""
    names = sorted({name for values in PRECISIONS.values() for name in values})
    if precision not in (*names, "auto"):
        raise EngineError(f"precision: {precision!r} is unknown; choose auto, {', '.join(names)}")
    if not list(_requested(bundle, engine, precision)):
        there = ", ".join(installed(PACKAGES)) or "none: pip install 'tigerfg[cpu]'"
        raise EngineError(
            f"engine: nothing runs {precision!r} of this bundle with {engine!r} here (the bundle "
            f"has {', '.join(bundle.precisions)}; installed engines: {there})"
        )


def choose(
    bundle: Bundle,
    tower: str,
    engine: str = "auto",
    precision: str = "auto",
    threads: int = 1,
    refresh: bool = False,
) -> Choice:
    """The best candidate of a tower, from the cache or by a measurement of about two seconds.

    The cache lies in the user's cache directory and is keyed by CPU, runtime versions, the bundle's
    files and parity, what was asked for, and threads; `refresh` measures anew.
    """
    explicit = precision != "auto"
    requested = tuple(_requested(bundle, engine, precision))
    file = cache_file(bundle, tower, requested, threads, explicit)
    if not refresh and (known := _read(file)) is not None:
        return known
    choice = _measure(bundle, tower, requested, threads, explicit)
    _write(file, choice)
    return choice


def cache_file(
    bundle: Bundle,
    tower: str,
    requested: tuple[tuple[str, str], ...],
    threads: int,
    explicit: bool = False,
) -> Path:
    """Where a choice is remembered; `explicit`: a precision was asked for, which need not be
    as accurate as one that is chosen."""
    versions = {name: importlib.metadata.version(PACKAGES[name]) for name in installed(PACKAGES)}
    manifest = bundle.manifest  # the fingerprint is the checkpoint's: other exports share it
    files = [manifest["towers"][tower][_graph(kind)]["sha256"] for _, kind in requested]
    files.append(manifest.get("weights", {}).get("sha256"))
    parity = manifest.get("parity", {}).get(tower, {}).get("int8", {}).get("cosine_mean")
    asked = (tower, requested, threads, explicit)
    key = (bundle.fingerprint, files, parity, *asked, cpu(), sorted(versions.items()))
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    return engines_cache() / f"{digest}.json"


def _requested(bundle: Bundle, engine: str, precision: str) -> Iterator[tuple[str, str]]:
    """Candidates that can run here: (engine, precision)."""
    for name in installed(PACKAGES):
        for kind in PRECISIONS[name]:
            if engine not in (name, "auto") or precision not in (kind, "auto"):
                continue
            if kind == "bf16" and not cpu().has_bf16:
                continue
            if _graph(kind) in bundle.precisions:
                yield name, kind


def _graph(precision: str) -> str:
    """The precision of the graph that is run."""
    return "fp32" if precision == "bf16" else precision


def _open(bundle: Bundle, tower: str, engine: str, precision: str, threads: int) -> Runner:
    path = bundle.onnx(tower, _graph(precision))
    if engine == "onnx":
        return onnx.OnnxRunner(path, tower, precision, threads)
    shapes = TowerShapes.of(bundle)
    return openvino.OpenVinoRunner(path, tower, precision, threads, shapes)


def _measure(
    bundle: Bundle,
    tower: str,
    requested: tuple[tuple[str, str], ...],
    threads: int,
    explicit: bool,
) -> Choice:
    feeds = probe(bundle, tower)
    step = {name: value[: BATCH[tower]] for name, value in feeds.items()}
    runners: dict[tuple[str, str], Runner] = {}
    embeddings: dict[tuple[str, str], np.ndarray] = {}
    notes: dict[tuple[str, str], str] = {}
    for key in requested:
        try:
            runners[key] = _open(bundle, tower, *key, threads)
            embeddings[key] = runners[key].run(feeds)["embedding"]
            runners[key].run(step)
        except TigerfgError as error:
            runners.pop(key, None)
            notes[key] = str(error)
            logger.warning("engine %s %s left out: %s", *key, error)
    if not runners:
        raise EngineError(f"engine: no candidate runs here: {'; '.join(notes.values())}")
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
    deadline = time.perf_counter() + BUDGET
    for count in range(ROUNDS):  # in turn, so that a disturbance meets all of them
        for key, runner in runners.items():
            start = time.perf_counter()
            runner.run(step)
            times[key].append(time.perf_counter() - start)
        if time.perf_counter() > deadline and count:
            break
    reference = next((key for key in embeddings if key[1] == "fp32"), None)
    candidates = []
    for key in requested:
        if key not in runners:
            candidates.append(Candidate(*key, None, None, notes[key]))
            continue
        cosine = None
        if reference:
            cosine = float(cosines(embeddings[key], embeddings[reference]).mean())
        pace = 1000 * statistics.median(times[key]) / len(step["pixels"])
        note = _objection(bundle, tower, key[1], cosine, explicit)
        candidates.append(Candidate(*key, pace, cosine, note))
    return _pick(tower, candidates)


def _objection(
    bundle: Bundle, tower: str, precision: str, cosine: float | None, explicit: bool
) -> str:
    """What speaks against the accuracy of a candidate; "" for nothing.

    A precision that was asked for explicitly must only work on this CPU at all.
    """
    if precision == "fp32":
        return ""
    if precision == "int8" and not explicit:
        parity = bundle.manifest.get("parity", {}).get(tower, {}).get("int8", {})
        recorded = parity.get("cosine_mean", 0.0)
        if recorded < MIN_COSINE:
            return f"parity of the bundle {recorded:.4f} < {MIN_COSINE}"
    bar = MIN_COSINE if precision == "bf16" and not explicit else MIN_PROBE_COSINE
    if cosine is not None and cosine < bar:
        return f"cosine on this CPU {cosine:.4f} < {bar}"
    return ""


def _pick(tower: str, candidates: list[Candidate]) -> Choice:
    ran = [entry for entry in candidates if entry.milliseconds is not None]
    good = [entry for entry in ran if not entry.note]
    if not good:
        reasons = "; ".join(f"{entry.engine} {entry.precision}: {entry.note}" for entry in ran)
        raise EngineError(f"engine: no candidate for the {tower} tower is accurate ({reasons})")

    def cost(entry: Candidate) -> float:
        return entry.milliseconds * (1.0 if entry.precision == "fp32" else MIN_GAIN)

    best = min(good, key=cost)
    order = sorted(
        candidates, key=lambda entry: (bool(entry.note), entry.milliseconds or float("inf"))
    )
    order.remove(best)
    logger.info(
        "the %s tower runs on %s %s: %.2f ms a picture", tower, *best[:2], best.milliseconds
    )
    return Choice(tower, best.engine, best.precision, (best, *order))


def probe(bundle: Bundle, tower: str) -> Arrays:
    """Smooth coloured pictures and arbitrary tokens, the same every time."""
    count = PROBES[tower]
    rng = np.random.default_rng(7)
    shapes = TowerShapes.of(bundle)
    side, cell = shapes.sides[tower], 8
    coarse = rng.normal(0.0, 1.0, (count, 3, cell, cell)).astype(np.float32)
    place = np.linspace(0, cell - 1, side)
    low = np.minimum(place.astype(int), cell - 2)
    mix = np.zeros((side, cell), np.float32)  # linear interpolation of the coarse grid
    mix[np.arange(side), low] = 1 - (place - low)
    mix[np.arange(side), low + 1] += place - low
    pixels = np.ascontiguousarray(mix @ coarse @ mix.T)
    pixels += rng.normal(0.0, 0.1, pixels.shape).astype(np.float32)
    feeds = {"pixels": pixels, "patch_mask": np.ones((count, shapes.patches(tower)), np.bool_)}
    if tower == "item":
        length = min(24, shapes.max_text_length)
        ids = rng.integers(0, shapes.vocab_size, (count, length))
        feeds["token_ids"] = ids.astype(np.int64)
        feeds["token_mask"] = np.ones((count, length), np.bool_)
    return feeds


def _read(file: Path) -> Choice | None:
    try:
        data: dict[str, Any] = json.loads(file.read_text())
        candidates = tuple(Candidate(*row) for row in data["candidates"])
        return Choice(data["tower"], data["engine"], data["precision"], candidates)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: not readable, measuring anew (%s)", file, error)
        return None


def _write(file: Path, choice: Choice) -> None:
    try:
        write_file(file, json.dumps(choice._asdict()).encode())
    except EngineError as error:
        logger.info("the engine choice is not remembered: %s", error)
