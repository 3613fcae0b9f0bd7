"""Building engines, with a stand-in for what no library shows here; the real one: _rtx."""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from trt_fakes import GPU, ITEM_INPUTS, WHAT, Script, fake_build, fake_builder

from tigerfg.engines import builder as builder_module
from tigerfg.engines import sidecar
from tigerfg.engines.builder import (
    PROFILES,
    Profile,
    build_engine,
    parse_profiles,
)
from tigerfg.engines.trt_library import Gpu, library_log
from tigerfg.errors import EngineError, InputError

GIB, MIB = 1 << 30, 1 << 20


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with one L4."""
    monkeypatch.setattr(builder_module, "current_gpu", lambda: GPU)


@pytest.fixture
def off_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a GPU."""
    monkeypatch.setattr(builder_module, "current_gpu", lambda: None)


def left(folder: Path) -> list[str]:
    """What lies in the folder of the engine."""
    return sorted(os.listdir(folder / "out")) if (folder / "out").exists() else []


def test_the_default_profiles_are_what_their_text_says():
    assert parse_profiles("1,2-32,33-256") == PROFILES


@pytest.mark.parametrize(
    ("text", "profiles"),
    [
        ("1", [(1, 1, 1)]),
        (" 4 - 64 ", [(4, 16, 64)]),
        ("1-256", [(1, 16, 256)]),
        ("3,5-7", [(3, 3, 3), (5, 7, 7)]),  # no power of two within
        ("100-120", [(100, 120, 120)]),
    ],
)
def test_profiles_of_other_ranges(text, profiles):
    found = parse_profiles(text)
    assert found == tuple(Profile(*entry) for entry in profiles)
    assert all(profile.smallest <= profile.best <= profile.largest for profile in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no range"),
        ("1,", "'' is no range"),
        ("a-b", "'a-b' is no range"),
        ("-4", "'-4' is no range"),
        ("1-2-3", "'1-2-3' is no range"),
        ("1.5", "'1.5' is no range"),
        ("٣", "is no range"),
        ("9999999", "is no range"),
        ("0-4", "0-4: give 1 or more"),
        ("8-4", "8-4: give 1 or more first, then the larger"),
        ("1-8,8-16", "8-16 does not come after 1-8"),
        ("2-8,1", "1 does not come after 2-8"),
    ],
)
def test_profiles_that_are_none(text, message):
    with pytest.raises(InputError, match=r"^profiles: ") as caught:
        parse_profiles(text)
    assert message in str(caught.value)


def test_what_the_library_is_told(tmp_path, on_gpu):
    script, lines = Script(), []
    made = fake_build(tmp_path, fake_builder(script), progress=lines.append)
    assert script.flags == [1 << 1]  # strongly typed, which TensorRT 10 is not by itself
    assert script.graphs == [str(tmp_path / "graph.onnx")]
    assert [shapes["pixels"] for shapes in script.profiles] == [
        tuple((batch, 3, 64, 64) for batch in profile) for profile in PROFILES
    ]
    assert [shapes["token_ids"] for shapes in script.profiles] == [
        tuple(zip(profile, (1, 12, 24), strict=True)) for profile in PROFILES
    ]
    assert script.profiles[1]["patch_mask"] == ((2, 16), (8, 16), (32, 16))
    assert script.workspaces == [4 * GIB]
    assert script.build_flags == set()  # no TF32 where the graph says float32
    assert script.timings == []
    assert made == sidecar.read(tmp_path / "out" / "x.engine")
    expected = {
        **{name: WHAT[name] for name in WHAT},
        "builder": "tensorrt",
        "version": "10.13.2.6",
        "sms": (89,),
        "driver": "CUDA 13.0",
        "profiles": tuple(map(tuple, PROFILES)),
        "bytes": len(script.engine),
        "sha256": hashlib.sha256(script.engine).hexdigest(),
        "workspace": None,
        "parity": None,
    }
    assert {name: getattr(made, name) for name in expected} == expected
    assert left(tmp_path) == ["x.engine", "x.engine.json"]
    assert (tmp_path / "out" / "x.engine").read_bytes() == script.engine
    assert lines == [
        "item fp16 backbone: building with tensorrt 10.13.2.6 for sm 89, batches 1, 2-32, 33-256",
        *(f"item fp16 backbone: step {step} of 3" for step in (1, 2, 3)),
        f"item fp16 backbone: x.engine, 0.0 MB in {made.seconds:.1f} s",
    ]


def test_texts_of_one_token_are_a_length(tmp_path, on_gpu):
    script = Script()
    fake_build(tmp_path, fake_builder(script), max_text_length=1, profiles=PROFILES[:1])
    assert script.profiles[0]["token_ids"] == ((1, 1), (1, 1), (1, 1))


@pytest.mark.parametrize(
    "shape", [(2, 3, 64, 64), (-1, 3, -1, 64)], ids=["fixed-batch", "free-side"]
)
def test_a_graph_with_other_free_dims_is_refused(tmp_path, on_gpu, shape):
    script = Script(inputs={**ITEM_INPUTS, "pixels": shape})
    with pytest.raises(EngineError, match="item fp16 backbone: input pixels has the shape"):
        fake_build(tmp_path, fake_builder(script))
    assert left(tmp_path) == []


def test_a_profile_that_the_library_refuses_is_named(tmp_path, on_gpu):
    with pytest.raises(EngineError, match=r"does not take the profile 2-4$"):
        fake_build(tmp_path, fake_builder(Script()), profiles=((2, 1, 4),))


@pytest.mark.parametrize(
    ("sms", "targets", "made_for"),
    [((), ["CURRENT"], (89,)), ((89,), ["CURRENT"], (89,)), ((120, 80, 120), None, (80, 120))],
)
def test_rtx_targets_on_a_gpu(tmp_path, on_gpu, sms, targets, made_for):
    script = Script()
    made = fake_build(tmp_path, fake_builder(script, "tensorrt-rtx", "1.7.1"), sms=sms)
    assert script.targets == (targets or [f"SM{sm}" for sm in made_for])
    assert made.sms == made_for


def test_rtx_on_a_gpu_that_its_list_lacks(tmp_path, monkeypatch):
    gpu = Gpu(90, "CUDA 13.0", None)
    monkeypatch.setattr(builder_module, "current_gpu", lambda: gpu)
    script = Script()
    rtx = fake_builder(script, "tensorrt-rtx", "1.7.1")
    for sms in ((), (90,)):  # an H200 cannot load what is built for it
        with pytest.raises(EngineError, match=r"sm 90: tensorrt-rtx 1.7.1 does not run on this"):
            fake_build(tmp_path, rtx, sms=sms)
    assert script.targets == []
    gpu = Gpu(130, "CUDA 14.0", None)  # one to come: by its own words it will run there
    assert fake_build(tmp_path, rtx).sms == (130,)
    assert script.targets == ["CURRENT"]
    with pytest.raises(EngineError, match=r"^sm 90, 103: tensorrt-rtx 1.7.1 builds for 75, 80, "):
        fake_build(tmp_path, rtx, sms=(103, 89, 90))


def test_full_tensorrt_builds_for_its_own_gpu_only(tmp_path, on_gpu):
    assert fake_build(tmp_path, fake_builder(Script()), sms=(89,)).sms == (89,)
    for sms in ((90,), (89, 90)):
        with pytest.raises(EngineError, match=r"here sm 89; tensorrt-rtx builds for others"):
            fake_build(tmp_path, fake_builder(Script()), sms=sms)


@pytest.mark.parametrize("sms", [(), (89,)])
def test_full_tensorrt_without_a_gpu(tmp_path, off_gpu, sms):
    script = Script()
    with pytest.raises(EngineError, match=r"no GPU here, and full tensorrt .*tensorrt-rtx"):
        fake_build(tmp_path, fake_builder(script), sms=sms)
    assert script.graphs == []


def test_a_library_that_does_not_start_says_why(tmp_path, on_gpu):
    with pytest.raises(EngineError, match="does not work: CUDA initialization failure with error"):
        fake_build(tmp_path, fake_builder(Script(no_driver=True)))


def test_parser_errors_are_quoted(tmp_path, on_gpu):
    errors = [(f"vision.{i}/MatMul", "MatMul", f"bad\nshape {i}") for i in range(5)]
    errors[1] = ("", "", "no name")
    with pytest.raises(EngineError) as caught:
        fake_build(tmp_path, fake_builder(Script(parser_errors=errors)))
    assert str(caught.value) == (
        "item fp16 backbone: tensorrt 10.13.2.6 cannot read graph.onnx: "
        "node vision.0/MatMul (MatMul): bad shape 0; node 7 (no operator): no name; "
        "node vision.2/MatMul (MatMul): bad shape 2; and 2 more"
    )
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("errors", "said"),
    [(["no tactic\nfor layer"], "no tactic for layer"), ([], "it does not say why")],
)
def test_errors_of_a_build_are_quoted(tmp_path, on_gpu, caplog, errors, said):
    script = Script(build_errors=errors)
    builder = fake_builder(script)
    library_log(builder.module).errors.append("of an earlier call")
    if not errors:
        builder.module.Builder.build_serialized_network = lambda *arguments: None
    with pytest.raises(EngineError, match=f"item fp16 backbone: .* built no engine: {said}$"):
        fake_build(tmp_path, builder)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_errors_of_a_build_that_succeeds_are_not_lost(tmp_path, on_gpu, caplog):
    fake_build(tmp_path, fake_builder(Script(remarks=["something odd"])))
    (record,) = [record for record in caplog.records if record.levelno > logging.INFO]
    assert record.name == "tigerfg"
    assert record.message.endswith("tensorrt 10.13.2.6 built it, but said: something odd")


@pytest.mark.parametrize(
    ("default", "asked", "tried", "recorded"),
    [
        (4 * GIB, None, [4 * GIB, 2 * GIB, GIB], GIB),
        (16 * GIB, 3 * GIB, [3 * GIB, 1536 * MIB, 768 * MIB], 768 * MIB),
        (GIB, None, [GIB], None),
        (16 * GIB, GIB, [GIB], GIB),
    ],
)
def test_out_of_memory_halves_the_workspace(tmp_path, on_gpu, default, asked, tried, recorded):
    script = Script(default_workspace=default, fits=GIB, requested=8 * GIB)
    lines: list[str] = []
    made = fake_build(tmp_path, fake_builder(script), workspace=asked, progress=lines.append)
    assert script.workspaces == tried
    assert made.workspace == recorded
    told = [line for line in lines if "out of memory" in line]
    assert told == [
        f"item fp16 backbone: out of memory with {before // MIB} MiB; again with {after // MIB} MiB"
        for before, after in itertools.pairwise(tried)
    ]


@pytest.mark.parametrize("kind", ["logged", "raised"])
def test_out_of_memory_to_the_end(tmp_path, on_gpu, kind):
    script = Script(default_workspace=600 * MIB)
    if kind == "logged":
        script.fits = 0
    else:
        script.build_raises = MemoryError()
    message = "out of memory, even with 256 MiB of workspace: close what else"
    with pytest.raises(EngineError, match=f"item fp16 backbone: {message}"):
        fake_build(tmp_path, fake_builder(script))
    assert script.workspaces == [600 * MIB, 300 * MIB, 256 * MIB]
    assert left(tmp_path) == []


def test_rtx_needs_no_gpu_memory_but_its_limit(tmp_path, off_gpu):
    script = Script(fits=GIB, requested=5 * GIB)
    rtx = fake_builder(script, "tensorrt-rtx", "1.7.1")
    with pytest.raises(EngineError, match="a layer needs 5120 MiB of workspace and may take 4096"):
        fake_build(tmp_path, rtx, sms=(89,))
    assert script.workspaces == [4 * GIB]


def test_out_of_memory_while_reading(tmp_path, on_gpu):
    builder = fake_builder(Script())

    def parse(parser: Any, model: str) -> bool:
        raise MemoryError

    builder.module.OnnxParser.parse_from_file = parse
    with pytest.raises(EngineError, match="out of memory, while reading the graph"):
        fake_build(tmp_path, builder)


def test_another_error_is_not_tried_again(tmp_path, on_gpu):
    script = Script(build_errors=["no tactic"])
    with pytest.raises(EngineError):
        fake_build(tmp_path, fake_builder(script))
    assert len(script.workspaces) == 1


@pytest.mark.parametrize("workspace", [0, -1])
def test_a_workspace_must_be_some(tmp_path, on_gpu, workspace):
    with pytest.raises(InputError, match=r"^workspace: "):
        fake_build(tmp_path, fake_builder(Script()), workspace=workspace)


@pytest.mark.parametrize("how", ["in-progress", "signal"])
def test_ctrl_c_cancels_and_leaves_nothing(tmp_path, on_gpu, how):
    pressed = threading.Event()

    def on_step(step: int) -> None:
        if how == "signal" and step == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if step == 1:
            assert pressed.wait(10)

    def progress(line: str) -> None:
        if how == "in-progress" and "step 1" in line:
            raise KeyboardInterrupt

    class Seen:
        """Lets the build go on only once the main thread has asked it to stop."""

        def __set__(self, monitor: Any, value: bool) -> None:
            monitor.__dict__["stopped"] = value
            if value:
                pressed.set()

        def __get__(self, monitor: Any, owner: type) -> bool:
            return monitor.__dict__["stopped"]

    script = Script(steps=5, on_step=on_step)
    builder = fake_builder(script)
    builder.module.IProgressMonitor.cancelled = Seen()
    with pytest.raises(KeyboardInterrupt):
        fake_build(tmp_path, builder, progress=progress)
    assert script.cancelled
    assert left(tmp_path) == []
    assert "tensorrt build" not in {thread.name for thread in threading.enumerate()}
    fake_build(tmp_path, fake_builder(Script()))  # the next build is not locked out


def test_an_error_of_the_progress_stops_the_build(tmp_path, on_gpu):
    def progress(line: str) -> None:
        if "step" in line:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        fake_build(tmp_path, fake_builder(Script()), progress=progress)
    assert left(tmp_path) == []


@pytest.mark.parametrize("failing", [1, 3], ids=["engine", "sidecar"])  # folders between
def test_a_full_disk_leaves_nothing(tmp_path, on_gpu, monkeypatch, failing):
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match=r"x\.engine.*: cannot be written: No space left"):
        fake_build(tmp_path, fake_builder(Script()))
    assert left(tmp_path) == []


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize(
    ("failing", "kept"), [(1, ["x.engine", "x.engine.json"]), (3, [])], ids=["engine", "sidecar"]
)
def test_a_rebuild_that_fails_leaves_the_old_engine_whole_or_none(
    tmp_path, on_gpu, monkeypatch, failing, kept, problem
):
    old = fake_build(tmp_path, fake_builder(Script(engine=b"old")))
    calls = []

    def interrupted(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise problem

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises((KeyboardInterrupt, EngineError)):
        fake_build(tmp_path, fake_builder(Script(engine=b"new")))
    assert left(tmp_path) == kept
    if kept:
        engine = tmp_path / "out" / "x.engine"
        assert (engine.read_bytes(), sidecar.read(engine)) == (b"old", old)


def test_the_graph_is_missing(tmp_path, on_gpu):
    with pytest.raises(EngineError, match=r"item fp16 backbone: .*nothing\.onnx is missing"):
        build_engine(
            tmp_path / "nothing.onnx",
            tmp_path / "x.engine",
            builder=fake_builder(Script()),
            **WHAT,
        )


def test_measurements_of_full_tensorrt_are_kept(tmp_path, on_gpu):
    file = tmp_path / "cache" / "timings"
    script = Script()
    for _ in range(2):
        fake_build(tmp_path, fake_builder(script), timing_cache=file)
    assert script.timings == [b"", b"+measured"]
    assert file.read_bytes() == b"+measured+measured"


def test_measurements_that_cannot_be_kept_cost_no_engine(tmp_path, on_gpu, caplog):
    (tmp_path / "file.timings").mkdir()
    with pytest.raises(EngineError, match=r"file\.timings: cannot be read: Is a directory"):
        fake_build(tmp_path, fake_builder(Script()), timing_cache=tmp_path / "file.timings")
    builder = fake_builder(Script())
    file = tmp_path / "timings"
    script_build = builder.module.Builder.build_serialized_network

    def build(*arguments: Any) -> Any:
        file.mkdir()  # what was free becomes a folder while the build runs
        return script_build(*arguments)

    builder.module.Builder.build_serialized_network = build
    fake_build(tmp_path, builder, timing_cache=file)
    assert left(tmp_path) == ["x.engine", "x.engine.json"]
    assert "measurements for the next build are not kept" in caplog.text


def test_measurements_of_another_gpu_are_dropped(tmp_path, on_gpu, caplog):
    file = tmp_path / "timings"
    file.write_bytes(b"another")
    with caplog.at_level(logging.INFO, "tigerfg"):
        fake_build(tmp_path, fake_builder(Script(refused_timings=(b"another",))), timing_cache=file)
    assert file.read_bytes() == b"+measured"
    assert f"{file} is of another GPU or TensorRT: measuring anew" in caplog.messages


def test_rtx_has_no_measurements_to_keep(tmp_path, on_gpu):
    lines: list[str] = []
    rtx = fake_builder(Script(), "tensorrt-rtx", "1.7.1")
    fake_build(tmp_path, rtx, timing_cache=tmp_path / "timings", progress=lines.append)
    assert lines[0] == "tensorrt-rtx measures nothing while it builds: timings is not used"
    assert not (tmp_path / "timings").exists()
