"""Towers in TensorRT on a pretended GPU: results of the float32 model, and what can go wrong."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_gpu
from cuda_fakes import Device, pretended_cuda, trt_module
from small_gpu import CONFIG, PROFILES, Part, make_bundle, make_part
from small_models import expected, inputs

from tigerfg import EngineError, InputError, MissingExtraError
from tigerfg.engines import sidecar, tensorrt, trt_files
from tigerfg.engines.accuracy import MAP_DISTANCES
from tigerfg.engines.base import OUTPUTS
from tigerfg.engines.cuda import Cuda
from tigerfg.engines.tensorrt import TensorRtRunner
from tigerfg.engines.trt_library import Builder

# Of an element of a unit vector or map, against the float32 model. fp32: sums in another order;
# fp16 and bf16: patches, queries, text and weights are rounded to 11 and 8 bits.
TOLERANCE = {"fp32": 2e-6, "fp16": 3e-3, "bf16": 2e-2}


class Parts(dict):
    """The model of a pooling ("mean" or "attention"), made when first used; not to be altered."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self._folder = folder

    def __missing__(self, pool: str) -> Part:
        self[pool] = make_part(self._folder(pool), pool)
        return self[pool]


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp)


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """New engines come without parity."""
    monkeypatch.setattr(small_gpu, "PROVEN", None)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    """The pretended device, TensorRT-RTX on it, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pretended_cuda(monkeypatch) as device:
        use_library(monkeypatch, device)
        yield device


def use_library(monkeypatch: pytest.MonkeyPatch, device: Device, rtx: bool = True) -> Builder:
    name = "tensorrt-rtx" if rtx else "tensorrt"
    library = Builder(name, "1.7.1", trt_module(device, rtx))
    monkeypatch.setattr(tensorrt, "find_builder", lambda name: library)
    return library


@pytest.fixture
def builds(
    monkeypatch: pytest.MonkeyPatch, parts: dict[str, Part]
) -> list[tuple[Path, dict[str, Any]]]:
    """`build_engine` writes an engine of the pretended library; the calls it got."""
    calls = []

    def build(graph: Path, out: Path, **options: Any) -> sidecar.Sidecar:
        calls.append((out, options))
        part = next(part for part in parts.values() if part.folder == graph.parent)
        names = {name: options[name] for name in ("tower", "precision", "cut")}
        library = {"builder": options["builder"].name, "version": options["builder"].version}
        return part.put_engine(out, **names, **library)

    monkeypatch.setattr(trt_files, "build_engine", build)
    return calls


@pytest.fixture
def open_runner(
    device: Device, builds: list[Any], parts: dict[str, Part]
) -> Iterator[Callable[..., TensorRtRunner]]:
    """Opens a runner of the model with mean pooling, closed after the test."""
    runners = []

    def open_runner(
        tower: str = "item", precision: str = "fp32", part: Part | None = None, **options: Any
    ) -> TensorRtRunner:
        part = part or parts["mean"]
        part.use(device)
        runners.append(TensorRtRunner(make_bundle(part), tower, precision, **options))
        return runners[-1]

    yield open_runner
    for runner in runners:
        runner.close()


def assert_close(
    found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tower: str, precision: str
) -> None:
    assert list(found) == list(OUTPUTS[tower])
    for name in found:
        assert found[name].dtype == np.float32
        assert found[name].flags.c_contiguous
        np.testing.assert_allclose(
            found[name], wanted[name], rtol=0, atol=TOLERANCE[precision], err_msg=name
        )


@pytest.mark.parametrize("tower", ["query", "item"])
@pytest.mark.parametrize(
    ("pool", "precision"),
    [
        ("mean", "fp32"),
        ("mean", "fp16"),
        ("mean", "bf16"),
        ("attention", "fp32"),
        ("attention", "fp16"),
    ],
)
def test_results_are_those_of_the_float32_model(
    open_runner: Any, parts: dict[str, Part], tower: str, pool: str, precision: str
) -> None:
    """Whole and split items, all profiles, a gap between them, several chunks; masks, text lengths.

    The batches go up and down, so that memory grows and profiles change both ways.
    """
    part = parts[pool]
    runner = open_runner(tower, precision, part, workers=1)
    for batch, length in ((1, 9), (10, 7), (40, 24), (3, 1), (17, 5), (1, 24)):
        feeds = inputs(CONFIG, tower, batch=batch, length=length, seed=batch)
        found = runner.run(feeds)
        assert_close(found, expected(part.model, tower, feeds), tower, precision)


def test_memory_is_enough_for_every_batch_of_a_profile(
    open_runner: Any, parts: dict[str, Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 pictures are split in two and need more than 16 that are not."""
    monkeypatch.setattr(small_gpu, "PROFILES", ((1, 8, 16),))
    runner = open_runner("item", "fp16", workers=1)
    feeds = inputs(CONFIG, "item", batch=10)
    wanted = expected(parts["mean"].model, "item", feeds)
    assert_close(runner.run(feeds), wanted, "item", "fp16")
    slot = runner._slots.get()
    runner._slots.put(slot)
    tail = slot._tail
    sizes = tail.workspace(range(1, 17), 100)
    assert sizes["p"] == tail.plan(10, 100).workspace["p"] > tail.plan(16, 100).workspace["p"]


def test_few_pictures_are_split_and_many_are_not(open_runner: Any, device: Device) -> None:
    names = set()
    for tower in ("query", "item"):
        runner = open_runner(tower, "fp16", workers=1)
        device.launches.clear()
        for batch in (1, 12):
            runner.run(inputs(CONFIG, tower, batch=batch))
        names |= {(name.split("_fp16")[0]) for name, *_ in device.launches}
    assert names == {
        *("grounding_whole", "grounding_split", "tail_whole", "tail_split"),
        "pooled_embedding_mean_masked",
    }


@pytest.mark.parametrize("tower", ["query", "item"])
@pytest.mark.parametrize("rtx", [True, False])
def test_whole_tower_without_our_kernels(
    open_runner: Any,
    parts: dict[str, Part],
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    tower: str,
    rtx: bool,
) -> None:
    use_library(monkeypatch, device, rtx)
    runner = open_runner(tower, "fp16", fused_tail=False)
    feeds = inputs(CONFIG, tower, batch=4)
    assert_close(runner.run(feeds), expected(parts["mean"].model, tower, feeds), tower, "fp32")
    assert not device.launches
    assert (runner.engine, runner.precision) == ("tensorrt-rtx" if rtx else "tensorrt", "fp16")
    assert runner.version == f"{runner.engine} 1.7.1"


def test_threads_get_their_own_results(open_runner: Any, parts: dict[str, Part]) -> None:
    runner = open_runner("query", "fp32", workers=3)
    feeds = [inputs(CONFIG, "query", batch=1 + seed % 3, seed=seed) for seed in range(8)]
    wanted = [runner.run(entry) for entry in feeds]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for _ in range(3):
                found = runner.run(feeds[index])
                np.testing.assert_array_equal(found["embedding"], wanted[index]["embedding"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_closing_waits_for_calls_and_refuses_later_ones(
    open_runner: Any, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_runner("query", workers=1)
    feeds = inputs(CONFIG, "query", batch=2)
    inside, go_on = threading.Event(), threading.Event()
    finish, results = device.finish, []

    def slow(stream: int) -> None:
        if device.streams[stream]:
            inside.set()
            assert go_on.wait(30)
        finish(stream)

    monkeypatch.setattr(device, "finish", slow)

    def call() -> None:
        try:
            results.append(runner.run(feeds))
        except EngineError as error:
            results.append(str(error))

    running = threading.Thread(target=call)
    running.start()
    assert inside.wait(30)
    waiting = threading.Thread(target=call)  # there is one slot
    waiting.start()
    closing = threading.Thread(target=runner.close)
    closing.start()
    assert device.live
    go_on.set()
    for thread in (running, waiting, closing):
        thread.join(30)
        assert not thread.is_alive()
    assert isinstance(results[0], dict)
    assert not device.live
    with pytest.raises(EngineError, match="closed"):
        runner.run(feeds)
    runner.close()


def test_device_of_the_caller_stays_open(open_runner: Any, device: Device) -> None:
    shared = Cuda.open()
    with open_runner("query", cuda=shared), open_runner("item", cuda=shared):
        assert device.contexts == 1
    assert not device.live
    assert shared.memory().free == device.memory
    shared.close()


# choosing and building engines


def own_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Without those of torch, which tells of its traces in the first test that makes any."""
    return [record for record in caplog.records if record.name == "tigerfg"]


def test_engine_of_the_bundle_is_taken(
    open_runner: Any, parts: dict[str, Part], builds: list[Any], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "bundle" / "item.engine"
    parts["mean"].put_engine(path, "item", "fp16", "backbone")
    other = tmp_path / "bundle" / "query.engine"
    parts["mean"].put_engine(other, "query", "fp16", "backbone")
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    part = replace(parts["mean"], with_engines=[other, path])
    with caplog.at_level(logging.WARNING, "tigerfg"):
        runner = open_runner("item", "fp16", part)
    assert runner.version == "tensorrt-rtx 1.7.1 with fused tail sm_89"
    assert not builds
    assert not own_records(caplog)
    assert before == {file: file.read_bytes() for file in path.parent.iterdir()}  # as it was


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "1.6.0"}, "built by tensorrt-rtx 1.6.0, this is tensorrt-rtx 1.7.1"),
        ({"sms": (80, 120)}, "built for sm 80, 120, this GPU has sm 89"),
        ({"onnx_sha256": "f" * 64}, "another model"),
        ({"bytes": 7}, "it was written with 7"),
        ({"profiles": ((1, 1, 1),)}, "built for the batches ((1, 1, 1),)"),
        ({"max_text_length": 3}, "built for texts of up to 3 tokens"),
        ({"sha256": "0" * 64}, "damaged: its SHA-256"),
    ],
)
def test_unfit_engine_is_built_anew_with_one_message(
    open_runner: Any, parts: dict[str, Part], builds: list[Any], tmp_path: Path,
    caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str,
) -> None:  # fmt: skip
    path = tmp_path / "bundle" / "item.engine"
    parts["mean"].put_engine(path, "item", "fp16", "backbone", **changes)
    part = replace(parts["mean"], with_engines=[path])
    with caplog.at_level(logging.WARNING, "tigerfg"):
        open_runner("item", "fp16", part).close()
        (record,) = own_records(caplog)
        assert reason in record.message
        assert "item.engine" in record.message
        ((out, options),) = builds
        folder = tmp_path / "cache" / "tigerfg" / "engines"
        assert out.parent.parent == folder
        assert out.name == "item.backbone.fp16.sm89.tensorrt-rtx-1.7.1.engine"
        assert options["timing_cache"] is None
        assert options["max_text_length"] == CONFIG.text.max_length
        open_runner("item", "fp16", part)  # from the cache
    assert len(builds) == len(own_records(caplog)) == 1


def test_engine_that_the_library_refuses_is_built_anew(
    open_runner: Any, parts: dict[str, Part], builds: list[Any], tmp_path: Path,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "bundle" / "item.engine"
    with monkeypatch.context() as patch:
        patch.setattr(small_gpu, "engine_content", lambda *args: b"no engine")
        parts["mean"].put_engine(path, "item", "fp16", "backbone")
    open_runner("item", "fp16", replace(parts["mean"], with_engines=[path]))
    assert len(builds) == 1
    warnings = [record for record in own_records(caplog) if record.levelno == logging.WARNING]
    (record,) = warnings
    assert "cannot be deserialised: Serialization assertion failed: magic tag" in record.message


def test_full_tensorrt_keeps_its_measurements(
    open_runner: Any, device: Device, builds: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_library(monkeypatch, device, rtx=False)
    open_runner("query", "fp16")
    ((out, options),) = builds
    assert options["timing_cache"] == out.parent.parent / "tensorrt-1.7.1.sm89.timings"


def test_compiled_kernels_of_rtx_are_kept(open_runner: Any, builds: list[Any]) -> None:
    open_runner("query", "fp16").close()
    ((out, _),) = builds
    kept = out.parent / "query.fp16.backbone.sm89.kernels"
    assert kept.read_bytes() == b"compiled"
    kept.write_bytes(b"of another driver")  # refused by the library, replaced
    open_runner("query", "fp16").close()
    assert kept.read_bytes() == b"compiled"


# accuracy


@pytest.mark.usefixtures("unproven")
def test_parity_is_measured_once_a_machine(
    open_runner: Any, parts: dict[str, Part], builds: list[Any], device: Device,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    measured = []
    check = Part.check
    monkeypatch.setattr(Part, "check", lambda part: measured.append(1) or check(part))
    with caplog.at_level(logging.INFO, "tigerfg"):
        open_runner("item", "fp16").close()
    ((out, _),) = builds
    parity = sidecar.read(out).parity
    assert {key: parity[key] for key in ("gpu", "sm", "driver", "batches")} == {
        "gpu": "Pretended GPU",
        "sm": 89,
        "driver": "13.0",
        "batches": [1, 2, 5, 12, 14],
    }
    assert 0.9995 < parity["cosine_min"] <= parity["cosine_mean"] <= 1
    assert 0 < parity["map_distance"] < MAP_DISTANCES["fp16"]
    assert f"{parity['cosine_min']:.5f}" in caplog.text
    open_runner("item", "fp16").close()
    assert len(measured) == 1
    sidecar.write(out, replace(sidecar.read(out), parity={**parity, "gpu": "another"}))
    open_runner("item", "fp16").close()
    assert len(measured) == 2


@pytest.mark.usefixtures("unproven")
def test_other_weights_behind_an_engine_are_proven_anew(
    open_runner: Any, parts: dict[str, Part], builds: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph and so the engine stay the same; what the tower gives does not."""
    open_runner("item", "fp16").close()
    right = Part.tail_weights

    def wrong(part: Part) -> dict[str, np.ndarray]:
        weights = right(part)
        return {**weights, "projection": -weights["projection"]}

    monkeypatch.setattr(Part, "tail_weights", wrong)
    with pytest.raises(EngineError, match="worst cosine with the float32 model is -1"):
        open_runner("item", "fp16")
    assert len(builds) == 1


@pytest.mark.usefixtures("unproven")
def test_parity_of_a_bundles_engine_is_kept_beside_the_cache(
    open_runner: Any, parts: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle" / "query.engine"
    parts["mean"].put_engine(path, "query", "fp16", "backbone")
    path.parent.chmod(0o555)
    part = replace(parts["mean"], with_engines=[path])
    open_runner("query", "fp16", part).close()
    monkeypatch.setattr(Part, "check", lambda part: pytest.fail("measured again"))
    open_runner("query", "fp16", part).close()
    assert sidecar.read(path).parity is None


@pytest.mark.usefixtures("unproven")
def test_parity_without_a_cache_that_can_be_written(
    open_runner: Any, parts: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured and not kept; the engine runs."""
    path = tmp_path / "bundle" / "query.engine"
    parts["mean"].put_engine(path, "query", "fp16", "backbone")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    runner = open_runner("query", "fp16", replace(parts["mean"], with_engines=[path]))
    assert runner.run(inputs(CONFIG, "query"))["embedding"].shape == (3, CONFIG.embedding_dim)


@pytest.mark.parametrize("number", [0.3, float("nan")])
@pytest.mark.usefixtures("unproven")
def test_engine_that_is_not_accurate_is_refused(
    open_runner: Any, parts: dict[str, Part], builds: list[Any], device: Device,
    monkeypatch: pytest.MonkeyPatch, number: float,
) -> None:  # fmt: skip
    wrong = parts["mean"].check()
    wrong["item_embedding"][3] += number
    monkeypatch.setattr(Part, "check", lambda part: wrong)
    with pytest.raises(EngineError, match="refused: the item fp16 engine's worst cosine"):
        open_runner("item", "fp16")
    ((out, _),) = builds
    assert sidecar.read(out).parity is None
    gc.collect()
    assert not device.live


def spoil_outputs(
    monkeypatch: pytest.MonkeyPatch, output: str, spoil: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Runners give others for the last rows of an output, as many as `spoil` makes of it."""
    run = TensorRtRunner.run

    def spoiled(runner: TensorRtRunner, feeds: Any) -> Any:
        outputs = run(runner, feeds)
        wrong = spoil(outputs[output]).copy()
        outputs[output][-len(wrong) :] = wrong
        return outputs

    monkeypatch.setattr(TensorRtRunner, "run", spoiled)


@pytest.mark.parametrize(
    ("output", "reason"),
    [("embedding", r"has the length 1\.5"), ("token_weights", r"token_weights .* sums to 1\.5")],
)
@pytest.mark.usefixtures("unproven")
def test_outputs_of_another_length_are_refused(
    open_runner: Any, monkeypatch: pytest.MonkeyPatch, output: str, reason: str
) -> None:
    """A cosine does not see it, and nothing is compared with token weights."""
    spoil_outputs(monkeypatch, output, lambda values: 1.5 * values)
    with pytest.raises(EngineError, match=reason):
        open_runner("item", "fp16")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda maps: maps[-1:] * 1.5, r"sums to 1\.5"),
        (lambda maps: maps[:, ::-1], r"maps of the item fp16 engine are 0\.\d+ from"),
        # one in fourteen
        (lambda maps: maps[-1:, ::-1] if len(maps) == 14 else maps, r"are 0\.\d+ from .* allowed"),
    ],
    ids=["none", "every-map-reversed", "one-map-reversed"],
)
@pytest.mark.usefixtures("unproven")
def test_maps_that_are_wrong_are_refused(
    open_runner: Any, monkeypatch: pytest.MonkeyPatch, spoil: Any, reason: str
) -> None:
    spoil_outputs(monkeypatch, "grounding_map", spoil)
    with pytest.raises(EngineError, match=reason):
        open_runner("item", "fp16")


# what cannot run


def test_tail_that_does_not_serve_the_gpu_is_said_once(
    open_runner: Any, parts: dict[str, Part], device: Device, builds: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    part = replace(parts["mean"], archs=(90,))
    runner = open_runner("item", "fp16", part)
    (said,) = [entry.message for entry in caplog.records if "fused tail" in entry.message]
    assert said == (
        "the item tower runs without its fused tail: the bundle's kernels are for sm_90a, this GPU "
        "is sm_89"
    )
    assert not device.launches
    feeds = inputs(CONFIG, "item")
    assert_close(runner.run(feeds), expected(part.model, "item", feeds), "item", "fp32")
    with pytest.raises(EngineError, match="fused_tail: the bundle's kernels are for sm_90a"):
        open_runner("item", "fp16", part, fused_tail=True)
    part = replace(parts["mean"], with_cuts=("tower",))
    with pytest.raises(EngineError, match="fused_tail: the bundle has no fp16 backbone graph"):
        open_runner("item", "fp16", part, fused_tail=True)


@pytest.mark.usefixtures("unproven")
@pytest.mark.parametrize("room", [1 << 18, 2 << 20])
def test_out_of_memory_names_sizes_and_frees_everything(
    open_runner: Any, device: Device, room: int
) -> None:
    """Too little for the context, and for the buffers of the largest profile."""
    device.memory = room
    with pytest.raises(EngineError, match=r"needs \d+ MiB, \d+ MiB are free on Pretended GPU; use"):
        open_runner("item", "fp16")
    gc.collect()
    assert not device.live


def test_memory_that_a_larger_batch_needs_is_asked_for_then(
    open_runner: Any, device: Device, parts: dict[str, Part]
) -> None:
    runner = open_runner("item", "fp16", workers=1)
    one = inputs(CONFIG, "item", batch=1)
    wanted = runner.run(one)
    device.memory = device.used()
    with pytest.raises(EngineError, match="a batch of up to 16 pictures needs"):
        runner.run(inputs(CONFIG, "item", batch=16))
    np.testing.assert_array_equal(runner.run(one)["embedding"], wanted["embedding"])


@pytest.mark.parametrize(
    "name",
    [
        "mem_alloc",
        "Stream",
        "module_from_buffer",
        "memcpy_htod",
        "mem_get_info",
    ],
)
def test_failed_start_frees_everything(
    open_runner: Any, device: Device, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whichever call of CUDA fails, the first time or later."""
    driver = sys.modules["pycuda.driver"]
    plain, after, messages = getattr(driver, name), 0, []
    while True:
        left = [after]

        def failing(*args: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise driver.LogicError(f"{name} failed: unspecified launch failure")
            return plain(*args)

        monkeypatch.setattr(driver, name, failing)
        try:
            open_runner("item", "fp16").close()
        except EngineError as error:
            messages.append(str(error))
        else:
            break
        gc.collect()
        assert not device.live
        after += 1
    assert messages
    assert all(name in message for message in messages)


def test_failed_run_leaves_a_usable_engine(
    open_runner: Any, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_runner("item", "fp16", workers=1)
    feeds = inputs(CONFIG, "item", batch=3)
    wanted = runner.run(feeds)
    long = inputs(CONFIG, "item", batch=3, length=CONFIG.text.max_length + 1)
    with pytest.raises(EngineError, match=r"refuses token_ids \(3, 25\): Static dimension"):
        runner.run(long)
    driver = sys.modules["pycuda.driver"]
    with monkeypatch.context() as patch:

        def full(*args: Any) -> None:
            raise driver.MemoryError("cuMemHostAlloc failed: out of memory")

        patch.setattr(driver, "pagelocked_empty", full)
        with pytest.raises(EngineError, match=r"out of page-locked host memory: \d MiB"):
            runner.run(inputs(CONFIG, "item", batch=16))
    np.testing.assert_array_equal(runner.run(feeds)["embedding"], wanted["embedding"])


def test_engine_of_another_interface_is_refused(
    open_runner: Any, parts: dict[str, Part], tmp_path: Path
) -> None:
    """A sidecar that says "fp16" beside an engine with float32 outputs."""
    path = tmp_path / "bundle" / "item.engine"
    record = parts["mean"].put_engine(path, "item", "fp32", "backbone")
    identity = parts["mean"].identity("item", "fp16", "backbone")
    sidecar.write(path, replace(record, precision="fp16", onnx_sha256=identity))
    with pytest.raises(EngineError, match=r"its outputs are .*'patches': 'FLOAT'.*build it again"):
        open_runner("item", "fp16", replace(parts["mean"], with_engines=[path]))


def test_requests_that_cannot_be_met(open_runner: Any, parts: dict[str, Part]) -> None:
    with pytest.raises(EngineError, match="nothing for GPUs"):
        TensorRtRunner(make_bundle(None), "item", "fp16")
    with pytest.raises(EngineError, match="precision: 'int8' was not exported"):
        open_runner("item", "int8")
    with pytest.raises(InputError, match="workers: 0"):
        open_runner("item", "fp16", workers=0)


def test_without_pycuda_or_gpu(
    open_runner: Any, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.count = 0
    with pytest.raises(EngineError, match="no GPU here: cuInit failed"):
        open_runner("item", "fp16")
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(MissingExtraError, match=r"pycuda: pip install 'tigerfg\[tensorrt-rtx\]'"):
        open_runner("item", "fp16")


def test_pretended_tensorrt_has_only_names_of_the_real_one(device: Device) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    pretended = trt_module(device)
    names = [name for name in vars(pretended) if not name.startswith("_")]
    assert len(names) == 7
    for name in names:
        ours, theirs = getattr(pretended, name), getattr(real, name)
        attributes = {entry for entry in vars(ours) if not entry.startswith("_")}
        # their log, and what the pretended library asks itself
        assert attributes - {"log", "shapes"} <= set(dir(theirs)), name
    assert hasattr(real.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE")
    assert {"INPUT", "OUTPUT"} <= set(real.TensorIOMode.__members__)
    assert {"FLOAT", "HALF", "BF16", "INT64", "BOOL"} <= set(real.DataType.__members__)


def test_profiles_of_these_tests_have_a_gap() -> None:
    """10 pictures are filled up to 12, and 40 run as 16, 16 and 8."""
    assert PROFILES[1][2] < 10 < PROFILES[2][0]
    assert 2 * PROFILES[2][2] < 40
