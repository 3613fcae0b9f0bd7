"""A dry run of the engine benchmarks on the CPU: rows, reasons, resume, table, aims and builds."""

# ruff: noqa: E402
from __future__ import annotations

import json
import logging
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small_models import CONV, HF, LEVELS, build

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.append(str(BENCH))  # scripts beside the package, not part of it
sys.path.append(str(Path(__file__).parent / "engines"))  # the pretended GPU

import build_engines
import cuda_fakes
import engine_bench
import engine_contenders
import engine_models
import engine_report
import engine_timing
import gpu
import gpu_timing
import small_gpu

from tigerfg.engines import cuda, tensorrt
from tigerfg.engines.builder import PROFILES, Builder
from tigerfg.engines.sidecar import Sidecar
from tigerfg.errors import EngineError, MissingExtraError
from tigerfg.export.graph import tower_graph
from tigerfg.model.config import VisionConfig

SMALL = replace(CONV, vision=VisionConfig(width=40, depth=1))
RUN = {
    "date": "2026-01-01", "gpu": "NVIDIA H200", "driver": "1", "cuda": "13.0", "triton": "3.6.0",
    "versions": {"torch": "2.11.0", "pycuda": None}, "commit": "abc",
}  # fmt: skip
RUN_ON = {field: RUN[field] for field in ("gpu", "driver", "cuda", "triton")}
TORCH = {f"{kind} {low}" for kind in ("torch eager", "torch + tigerfg kernels")
         for low in ("fp16", "bf16")} | {"torch eager fp32"}  # fmt: skip


class FakeClock:
    """Every call takes as long as the contender that made it says, in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._running, self.measured = seconds, False, 0

    def __call__(self) -> float:
        self._running = not self._running
        self.measured += self._running
        return 0.0 if self._running else self.seconds

    def flush(self) -> None:
        self._running = False


class FakeEngine:
    """The float32 model in an engine's place: bfloat16 is not installed, float8 fails."""

    opened: list[FakeEngine]
    calls: list[str]

    def __init__(self, bundle: Any, tower: str, precision: str, fused_tail: bool) -> None:
        if precision == "bf16":
            raise MissingExtraError("a TensorRT engine", "pycuda", "tensorrt-rtx")
        self.runtime, self.stream = "pretended 1.0", 7
        self.name, self._wrong = f"{precision} {fused_tail}", precision == "fp8"
        self._setting = engine_models.Setting(bundle, tower, {}, "cpu")
        self.open = True
        self.opened.append(self)

    def resident(self, feeds: dict[str, np.ndarray]) -> Callable[[], object]:
        return lambda: self.calls.append(self.name)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert self.open
        if self._wrong:
            raise EngineError("refused: the worst cosine is 0.1")
        return {"embedding": self._setting.reference(feeds)}

    def close(self) -> None:
        self.open = False


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small work: threads that wait for each other on a busy machine take longer than it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compiled(forward: Any, dynamic: bool, mode: str) -> Any:
    """In torch.compile's place: takes minutes, and is torch's business."""
    assert (dynamic, mode) == (False, "max-autotune")
    return forward


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """``bench(**options)`` measures the small model into engines.json; the rows."""
    exported: list[str] = []

    def export(name: str, precisions: Any, folder: Path, resume: bool, say: Any) -> dict[str, Any]:
        exported.append(name)
        return dict.fromkeys(precisions, engine_models.random_model(SMALL))

    monkeypatch.setattr(FakeEngine, "opened", [], raising=False)
    monkeypatch.setattr(FakeEngine, "calls", [], raising=False)
    monkeypatch.setattr(engine_bench, "export", export)
    monkeypatch.setattr(
        engine_bench, "load_checkpoint", lambda folder: engine_models.random_model(SMALL)
    )
    monkeypatch.setattr(engine_contenders, "EngineContender", FakeEngine)
    monkeypatch.setattr(engine_bench, "DEVICE_ROUNDS", (4, 6))
    monkeypatch.setattr(engine_bench, "HOST_ROUNDS", (2, 5))
    monkeypatch.setattr(engine_timing, "P99_ROUNDS", 5)
    monkeypatch.setattr(engine_timing, "WARM_UP", 1)
    monkeypatch.setattr(torch, "compile", compiled)
    for precision in ("fp16", "bf16"):  # slow on a CPU; see the last test
        monkeypatch.setitem(engine_models.DTYPES, precision, torch.float32)

    def run(resume: bool = False, **options: Any) -> list[dict[str, Any]]:
        chosen = {"models": ["small"], "towers": ["query"], "batches": [2], "resume": resume}
        chosen |= {"precisions": engine_contenders.ENGINE_PRECISIONS, "contenders": ["*"]}
        run = {**RUN, "date": f"2026-01-{len(exported) + 1:02}"}
        results = engine_report.Results(
            tmp_path / "engines.json", run, engine_report.IDENTITY, engine_report.SAME_MACHINE
        )
        device, host = FakeClock(0.004), FakeClock(0.5)
        measured = engine_bench.Bench(results, device, host, lambda line: None, 6)
        engine_bench.measure(
            measured, Namespace(**{**chosen, **options}), tmp_path, "cpu", lambda line: None
        )
        rows = json.loads((tmp_path / "engines.json").read_text())["rows"]
        run_rows = [row for row in rows if row["run"] == run["date"]]
        assert bool(device.measured) == any(row["status"] == "measured" for row in run_rows)
        return rows

    return run


def by_status(rows: list[dict[str, Any]], status: str) -> set[str]:
    return {row["contender"] for row in rows if row["status"] == status}


def test_every_contender_has_a_row(bench: Callable[..., Any], tmp_path: Path) -> None:
    rows = bench(batches=[1, 2]) and bench(resume=True, towers=["item"])
    assert len(rows) == 3 * len(engine_contenders.entries()) == 3 * 16
    engines = {
        f"tigerfg engine {precision}, {cut}"
        for precision in ("fp32", "fp16")
        for cut in ("whole tower", "fused tail")
    }
    assert by_status(rows, "measured") == {*TORCH, *engines, "torch compile fp16"}
    assert by_status(rows, "failed") == {
        "onnxruntime cuda fp16",  # the fake bundle has no graphs, or this onnxruntime no CUDA
        "tigerfg engine fp8, whole tower",
        "tigerfg engine fp8, fused tail",
    } - by_status(rows, "unavailable")
    reasons = {row["contender"]: row["reason"] for row in rows if row["status"] != "measured"}
    assert "pycuda" in reasons["tigerfg engine bf16, fused tail"]
    assert reasons["tigerfg engine fp8, fused tail"] == "refused: the worst cosine is 0.1"
    assert "torch_tensorrt cannot be imported" in reasons["torch-tensorrt fp16"]
    assert not any(engine.open for engine in FakeEngine.opened)
    row = next(row for row in rows if row["contender"] == "torch eager fp16" and row["batch"] == 2)
    assert row["device"] == {"p50": 4, "p99": 4, "p20": 4, "p80": 4, "rounds": 6}
    assert row["end_to_end"]["p50"] == 500
    assert (row["end_to_end"]["rounds"], row["end_to_end"]["p99"]) == (2, None)
    assert (row["images_s"], row["end_to_end_images_s"]) == (500, 4)
    assert 0.999 < row["cosine_min"] <= row["cosine_mean"] < 1 + 1e-6
    table = "\n".join(engine_report.report(tmp_path))
    assert "### small, item tower" in table
    assert "failed: tigerfg engine fp8, fused tail, batch 1 2: refused" in table
    assert table.count("not measured") == 3  # no base model


def test_engines_are_timed_as_they_are_served(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = cuda_fakes.Device()
    driver = cuda_fakes.driver_module(device)
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=driver))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(cuda, "_contexts", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = Builder("tensorrt-rtx", "1.7.1", cuda_fakes.trt_module(device))
    monkeypatch.setattr(tensorrt, "find_builder", lambda name: library)
    part = small_gpu.Part(tmp_path, build(small_gpu.CONFIG), "mean")
    part.use(device)
    for cut in ("tower", "backbone"):
        onnx.save(tower_graph(part.model, "query", cut), part.graph("query", "fp32", cut))
        file = tmp_path / f"{cut}.engine"
        part.put_engine(file, "query", "fp32", cut)
        part.with_engines.append(file)
    bundle = small_gpu.make_bundle(part)
    feeds = engine_models.pictures(part.model.config, "query", 2)
    wanted = engine_models.Setting(part.model, "query", {}, "cpu").reference(feeds)
    for fused_tail in (False, True):
        contender = engine_contenders.EngineContender(bundle, "query", "fp32", fused_tail)
        call = contender.resident(feeds)
        before, works = len(device.launches), device.streams[contender.stream]
        assert works == []  # all done
        call()
        assert len(device.launches) - before == fused_tail  # pooling is one launch
        assert len(works) == 1 + fused_tail  # the engine and the tail: no copies
        found = contender.run(feeds)["embedding"]
        assert np.abs(found - wanted).max() < 2e-6  # float32, sums in another order
        most = small_gpu.PROFILES[-1][-1]
        with pytest.raises(engine_models.Unavailable, match=f"{most} pictures at most"):
            contender.resident(engine_models.pictures(part.model.config, "query", most + 1))
        contender.close()


def test_some_contenders_alone(bench: Callable[..., Any]) -> None:
    chosen = ["torch eager*", "*fp16, fused tail", "*bf16, *"]
    rows = bench(contenders=chosen, precisions=("fp16",))
    assert by_status(rows, "measured") == {
        *(f"torch eager {precision}" for precision in ("fp32", "fp16", "bf16")),
        "tigerfg engine fp16, fused tail",
    }
    reasons = {row["reason"] for row in rows if row["status"] == "unavailable"}
    assert reasons == {"not among --precisions"}


def test_contenders_take_turns(bench: Callable[..., Any]) -> None:
    bench(contenders=["*fp16*"])
    calls = FakeEngine.calls
    first = calls.index("fp16 True", 0)
    warm = engine_timing.WARM_UP + 3
    assert calls[:warm] == ["fp16 False"] * warm
    assert first == warm
    turns = calls[2 * warm :][:12]
    assert turns == ["fp16 False", "fp16 True"] * 6


def test_a_call_that_fails_late_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [engine_timing.WARM_UP + 3 + 2]

    def tired() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("CUDA error:\nout of memory")

    calls = {"tired": tired, "steady": lambda: None}
    clock = FakeClock(0.1)
    times, failed = engine_timing.interleaved(calls, dict.fromkeys(calls), clock, (4, 9), 6)
    assert times == {"steady": [0.1] * 9}
    assert {name: engine_timing.one_line(error) for name, error in failed.items()} == {
        "tired": "RuntimeError: CUDA error: out of memory"
    }


def test_the_wall_clock_is_the_hosts() -> None:
    clock = engine_timing.WallClock()
    short, long = (
        engine_timing.quantiles(gpu_timing.samples(clock, lambda s=s: time.sleep(s), 3))["p50"]
        for s in (0.001, 0.03)
    )
    assert 1 <= short < 30 <= long  # ms


def test_resume_measures_what_is_missing(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cut_off(self: Any, *arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine_bench.Bench, "_measure", cut_off)
        with pytest.raises(KeyboardInterrupt):
            bench()
    rows = json.loads((tmp_path / "engines.json").read_text())["rows"]
    assert not by_status(rows, "measured")
    assert "tigerfg engine bf16, whole tower" in by_status(rows, "unavailable")
    assert not any(engine.open for engine in FakeEngine.opened)
    monkeypatch.setattr(FakeEngine, "resident", broken(FakeEngine.resident))
    whole = bench(resume=True)
    assert by_status(whole, "measured") == {*TORCH, "torch compile fp16"}
    monkeypatch.undo()


def broken(plain: Any) -> Any:
    def resident(self: Any, feeds: Any) -> Any:
        raise RuntimeError("CUDA error: out of\nmemory")

    return resident


def test_resume_leaves_what_is_there(bench: Callable[..., Any]) -> None:
    first = bench(batches=[1])
    again = bench(resume=True, batches=[1, 2])
    kept = [row for row in again if row["batch"] == 1]
    assert by_status(kept, "measured") == by_status(first, "measured")
    assert {row["run"] for row in kept if row["status"] == "measured"} == {"2026-01-01"}
    added = [row for row in again if row["batch"] == 2]
    assert by_status(added, "measured") == by_status(first, "measured")
    retried = {row["contender"] for row in kept if row["run"] == "2026-01-02"}
    assert retried == by_status(first, "failed")  # it failed again: nobody was measured again
    later = bench(batches=[1])  # without resume all is measured again
    assert {row["run"] for row in later if row["batch"] == 1} == {"2026-01-03"}


def test_a_failed_export_leaves_the_other_precisions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def export(checkpoint: Path, out: Path, cpu: Any, images: Path, say: Any, *, gpu: Any) -> None:
        asked.append(gpu.precisions)
        assert gpu.engine == "none"
        assert (checkpoint / "model.safetensors").is_file()
        assert (images / "items.jsonl").is_file()
        if "fp8" in gpu.precisions:
            raise EngineError("parity: fp8 is off\nby a lot")
        out.mkdir()

    monkeypatch.setattr(engine_models, "preset", lambda name: SMALL)
    monkeypatch.setattr(engine_models, "export_bundle", export)
    monkeypatch.setattr(engine_models, "Bundle", SimpleNamespace(open=lambda path: path))
    folder, said = tmp_path / "small", []
    found = engine_models.export("small", ("fp16", "fp8"), folder, False, said.append)
    assert found == {"fp16": folder / "fp16", "fp8": "parity: fp8 is off"}
    assert asked == [("fp16", "fp8"), ("fp16",), ("fp8",)]
    assert "now each precision by itself" in "\n".join(said)
    asked.clear()
    assert engine_models.export("small", ("fp16", "fp8"), folder, True, said.append) == found
    assert asked == []  # resumed
    engine_models.export("small", ("fp16",), folder, False, said.append)
    assert asked == [("fp16",)]


def test_bundles_are_prepared_for_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(engine_bench, "export", lambda *arguments: asked.append(arguments))
    assert engine_bench.main(["--prepare", "90", "--precisions", "fp16", "--resume"]) == 0
    folder = BENCH.parent / "build" / "engine-bench"
    assert [(*one[:4], one[-1]) for one in asked] == [
        (name, ("fp16",), folder / name, True, (90,)) for name in ("tiny", "base")
    ]


def test_without_a_gpu_the_script_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine_bench.main([]) == 1
    assert capsys.readouterr().out == (
        "torch sees no CUDA device: the speed of engines cannot be measured without one\n"
    )


def test_a_run_that_is_cut_off_ends_with_its_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(bench: Any, options: Namespace, work: Path, device: str, say: Any) -> None:
        assert (options.models, options.batches) == (["tiny", "base"], [1, 8, 32, 256])
        bench._results.add(aimed("fp16", 256, 15.0))
        raise KeyboardInterrupt

    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # set by main, and put back
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(engine_bench, "device_conditions", lambda: RUN_ON)
    monkeypatch.setattr(engine_bench, "measure", measure)
    level = logging.getLogger("tigerfg").level
    try:
        assert engine_bench.main([]) == 0
    finally:
        logging.getLogger("tigerfg").setLevel(level)
    printed = capsys.readouterr().out
    assert "go on with --resume" in printed
    assert "reached       H200, base query tower, fp16: >= 16,000 images/s" in printed
    assert "transformers " in printed
    assert json.loads((tmp_path / "engines.json").read_text())["runs"]


def test_gpu_script_runs_the_bench(tmp_path: Path) -> None:
    (step,) = gpu.steps(["engines"], tmp_path, resume=True)
    assert step.command[1:] == [str(BENCH / "engine_bench.py"), "--resume"]
    assert step.limit is None  # the rest may follow
    (step,) = gpu.steps(["engines"], tmp_path, resume=False)
    assert "--resume" not in step.command


def aimed(precision: str, batch: int, ms: float, **fields: Any) -> dict[str, Any]:
    """A row of the base model's query tower."""
    times = {"p50": ms, "p99": None, "p20": ms, "p80": ms, "rounds": 30}
    row = {
        "model": "base", "tower": "query", "batch": batch, "precision": precision,
        "contender": f"tigerfg engine {precision}, fused tail", "runtime": "rtx",
        "status": "measured", "device": times, "end_to_end": times, "images_s": 1000 * batch / ms,
        "end_to_end_images_s": 1000 * batch / ms, "cosine_mean": 0.9999, "cosine_min": 0.999,
        "run": RUN["date"],
    }  # fmt: skip
    return {**row, **fields}


REACHED = [aimed("fp16", 256, 15.9), aimed("fp16", 1, 0.59), aimed("fp8", 256, 11.3)]


def statuses(rows: list[dict[str, Any]], **run: Any) -> list[str]:
    later = {"2026-01-02": {**RUN, **run}}
    return [aim.status for aim in engine_report.aims(rows, {RUN["date"]: {**RUN, **run}, **later})]


def test_aims_are_reached() -> None:
    assert statuses(REACHED) == ["reached"] * 3
    assert statuses(REACHED[::-1]) == ["reached"] * 3
    slower = aimed("fp16", 256, 30.0, contender="tigerfg engine fp16, whole tower")
    assert statuses([slower, *REACHED]) == ["reached"] * 3


@pytest.mark.parametrize(
    ("position", "change", "expected"),
    [
        (0, {"images_s": 15_999.0, "device": {"p50": 16.1}}, ["missed", "reached", "reached"]),
        (0, {"status": "failed"}, ["not measured", "reached", "not measured"]),
        (0, {"contender": "torch compile fp16"}, ["not measured", "reached", "not measured"]),
        (1, {"device": {"p50": 0.601}}, ["reached", "missed", "reached"]),
        (1, {"model": "tiny"}, ["reached", "not measured", "reached"]),
        (2, {"images_s": 1.39 * 256 / 0.0159}, ["reached", "reached", "missed"]),
        (2, {"cosine_min": 0.9979}, ["reached", "reached", "missed"]),
        (2, {"run": "2026-01-02"}, ["reached", "reached", "not measured"]),
    ],
)
def test_each_aim_can_be_missed(position: int, change: Any, expected: list[str]) -> None:
    rows = list(REACHED)
    rows[position] = {**rows[position], **change}
    assert statuses(rows) == expected


def test_aims_are_for_one_gpu() -> None:
    assert statuses(REACHED, gpu="NVIDIA L4") == ["not measured"] * 3


def test_engines_are_built_for_every_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = []

    def build_one(graph: Path, out: Path, *, sms: tuple[int, ...], **options: Any) -> Sidecar:
        assert graph.with_name("weights.bin").is_file()
        names = {field: options[field] for field in ("tower", "precision", "cut")}
        built.append((*names.values(), *sms))
        if (options["precision"], sms) == ("bf16", (89,)):
            raise EngineError("query bf16: it does not fit")
        return Sidecar(
            builder="tensorrt-rtx", version="1.0", sms=sms, driver=None, **names, sha256="0",
            onnx_sha256=options["onnx_sha256"], profiles=PROFILES, bytes=12_345_678, seconds=3.25,
            max_text_length=options["max_text_length"], workspace=None,
        )  # fmt: skip

    builder = Builder("tensorrt-rtx", "1.0", None)
    monkeypatch.setattr(build_engines, "find_builder", lambda: builder)
    monkeypatch.setattr(build_engines, "build_engine", build_one)
    monkeypatch.setattr(build_engines, "preset", lambda name: SMALL)
    monkeypatch.setattr(build_engines, "TOWERS", ("query",))
    monkeypatch.setattr(build_engines, "CUTS", ("backbone",))
    arguments = ["--models", "tiny", "--sm", "80", "89", "--out", str(tmp_path)]
    assert build_engines.main([*arguments, "--precisions", "fp32", "bf16", "fp8"]) == 1
    expected = [
        ("query", precision, "backbone", sm)
        for precision, sm in (("fp32", 80), ("fp32", 89), ("bf16", 80), ("bf16", 89), ("fp8", 89))
    ]
    assert built == expected
    data = json.loads((tmp_path / "engine_builds.json").read_text())
    rows = data["rows"]
    assert len(rows) == len(expected)
    assert {(row["seconds"], row["bytes"]) for row in rows if row["error"] is None} == {
        (3.25, 12_345_678)
    }
    assert [row["error"] for row in rows if row["error"]] == ["query bf16: it does not fit"]
    nodes = {row["precision"]: row["nodes"] for row in rows}
    assert nodes["fp32"] < nodes["bf16"] < nodes["fp8"]  # Casts, and pairs around products
    printed = capsys.readouterr().out
    assert re.search(r"fp32 \| +\d+ \| +3\.2 \| +12\.3 \| +3\.2 \| +12\.3 \|", printed)
    assert re.search(r"bf16 \| +\d+ \| +3\.2 \| +12\.3 \| +failed \| +failed \|", printed)
    assert re.search(r"fp8 \| +\d+ \| +- \| +- \| +3\.2 \| +12\.3 \|", printed)
    (run,) = data["runs"].values()
    assert run["builder"] == "tensorrt-rtx 1.0"
    assert build_engines.main([*arguments, "--precisions", "fp8"]) == 0
    merged = json.loads((tmp_path / "engine_builds.json").read_text())
    assert len(merged["rows"]) == len(expected)


def test_without_a_builder_the_script_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find() -> Builder:
        raise MissingExtraError("building engines", "tensorrt-rtx", "tensorrt-rtx")

    monkeypatch.setattr(build_engines, "find_builder", find)
    assert build_engines.main([]) == 1
    assert "no engine can be built" in capsys.readouterr().out


@pytest.mark.parametrize("config", [CONV, LEVELS], ids=["one level", "two levels"])
def test_plain_pytorch_is_the_models_item_tower(config: Any) -> None:
    model = engine_models.random_model(config)
    feeds = [torch.from_numpy(a) for a in engine_models.pictures(config, "item", 3).values()]
    feeds[1][:, 40:] = False  # a border below
    with torch.inference_mode():
        wanted = model.encode_item(*feeds)
        found = engine_models.plain(model, "item")(*feeds)
    assert feeds[1].shape == found[1].shape  # the map is that of the full-size picture
    for ours, models in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, models, rtol=0, atol=2e-6)  # float32, other order


def test_real_models_in_half_precision() -> None:
    """DINOv3 and BERT as contenders encode with them: half weights, float32 pixels."""
    setting = engine_models.Setting(engine_models.random_model(HF), "item", {}, "cpu")
    feeds = engine_models.pictures(HF, "item", 3)
    wanted = setting.reference(feeds)
    for entry in engine_contenders.entries():
        if entry.name in TORCH:
            contender = entry.open(setting)
            found = contender.run(feeds)["embedding"]
            assert (found * wanted).sum(axis=1).min() > 0.99  # unit vectors; bfloat16 has 8 bits
            assert contender.resident(feeds)()[0].shape == found.shape
