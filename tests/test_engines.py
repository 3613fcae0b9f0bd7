"""Engines: the same numbers from each, bad inputs named, the choice measured once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_models import CONV, HF, build, inputs

from tigerfg.bundle import Bundle
from tigerfg.engines import available_engines, choose, open_engine, select
from tigerfg.engines import gpu as gpu_module
from tigerfg.engines.cpu import Cpu, cpu, thread_count
from tigerfg.engines.openvino import BLOCK, _blocks
from tigerfg.engines.torch import TorchEngine
from tigerfg.engines.trt_library import Builder, Gpu
from tigerfg.errors import EngineError, InputError, MissingExtraError

# float32 sums in another order: some 1e-7 per operation, norm-1 outputs, about 30 layers
ATOL = 5e-6
CPU_ENGINES = [name for name in ("onnx", "openvino") if name in available_engines()]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def reference(small_checkpoint):
    engine = open_engine(small_checkpoint, "torch", threads=1)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_engine_gives_what_torch_gives_at_any_batch(name, small_bundle, reference):
    engine = open_engine(small_bundle, name, "fp32", threads=1)
    for batch, length in [(1, 1), (3, 9), (BLOCK, 24), (BLOCK + 9, 5)]:
        query = inputs(CONV, "query", batch, seed=batch)
        item = inputs(CONV, "item", batch, length, seed=batch)
        found, expected = engine.encode_queries(**query), reference.encode_queries(**query)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)
        for one, other in zip(
            engine.encode_items(**item), reference.encode_items(**item), strict=True
        ):
            assert one.dtype == np.float32
            assert one.flags.c_contiguous
            np.testing.assert_allclose(one, other, rtol=0, atol=ATOL)


def test_torch_takes_an_open_bundle_as_a_searcher_has_it(small_bundle, reference):
    engine = open_engine(Bundle.open(small_bundle), "torch", threads=1)
    query = inputs(CONV, "query", 2)
    found, expected = engine.encode_queries(**query), reference.encode_queries(**query)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_int8_keeps_its_cosine(name, small_bundle, reference):
    engine = open_engine(small_bundle, name, "int8", threads=1)
    query = inputs(CONV, "query", 4)
    cosines = np.sum(engine.encode_queries(**query) * reference.encode_queries(**query), axis=1)
    assert cosines.min() >= 0.99
    assert cosines.max() < 1 - 1e-7  # it is not the float32 file under another name
    assert engine.info[:2] == (name, "int8")


@pytest.mark.parametrize("name", [*CPU_ENGINES, "torch"])
def test_an_empty_batch_gives_empty_arrays(name, small_bundle, small_checkpoint):
    source = small_checkpoint if name == "torch" else small_bundle
    engine = open_engine(source, name, "fp32", threads=1)
    query, item = inputs(CONV, "query", 1), inputs(CONV, "item", 1, 6)
    empty = engine.encode_queries(**{key: value[:0] for key, value in query.items()})
    assert (empty.shape, empty.dtype) == ((0, 32), np.float32)
    encoded = engine.encode_items(**{key: value[:0] for key, value in item.items()})
    assert [value.shape for value in encoded] == [(0, 32), (0, 64), (0, 6)]


def test_bad_arguments_are_named(small_bundle):
    engine = open_engine(small_bundle, "onnx", "fp32", threads=1)
    query, item = inputs(CONV, "query", 2), inputs(CONV, "item", 2, 6)

    def refuse(match: str, feeds: dict, **changes: object) -> None:
        encode = engine.encode_items if "token_ids" in feeds else engine.encode_queries
        with pytest.raises(InputError, match=match):
            encode(**{**feeds, **changes})

    pixels = query["pixels"]
    refuse(r"pixels: dtype float64; give float32", query, pixels=pixels.astype(np.float64))
    refuse(r"pixels: shape .* give \(B, 3, 32, 32\)", query, pixels=pixels[:, :, :31])
    refuse(r"pixels: list", query, pixels=pixels.tolist())
    refuse(r"patch_mask: shape \(1, 16\)", query, patch_mask=query["patch_mask"][:1])
    refuse(
        r"patch_mask: row 1 is all False", query, patch_mask=np.array([[True] * 16, [False] * 16])
    )
    refuse(r"token_ids: dtype int32", item, token_ids=item["token_ids"].astype(np.int32))
    refuse(r"token_ids: 25 tokens", item, token_ids=np.zeros((2, 25), np.int64))
    refuse(r"token_ids: 0 tokens", item, token_ids=np.zeros((2, 0), np.int64))
    refuse(r"token_ids: ids .* 120", item, token_ids=np.full((2, 6), 120))
    refuse(r"token_mask: row 0", item, token_mask=np.zeros((2, 6), np.bool_))


def test_torch_knows_all_tokens_of_a_hugging_face_text_encoder():
    text = replace(HF.text, hf_config={**HF.text.hf_config, "vocab_size": 5000})
    engine = TorchEngine(build(replace(HF, text=text)), threads=1)
    feeds = inputs(HF, "item", 1, 6)
    feeds["token_ids"][0, 0] = 4999
    assert np.isfinite(engine.encode_items(**feeds).embedding).all()
    feeds["token_ids"][0, 0] = 5000
    with pytest.raises(InputError, match=r"token_ids: ids .* 5000"):
        engine.encode_items(**feeds)


def test_arrays_that_are_not_contiguous_are_fine(small_bundle):
    engine = open_engine(small_bundle, "onnx", "fp32", threads=1)
    feeds = inputs(CONV, "query", 3)
    turned = np.ascontiguousarray(feeds["pixels"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(
        engine.encode_queries(turned, feeds["patch_mask"]), engine.encode_queries(**feeds)
    )


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_the_callers_arithmetic_stays_as_it_was(name, small_bundle):
    """A runtime that takes denormal numbers for zero keeps that to its own threads.

    In a process of its own: ONNX Runtime changes the caller's with the first session only.
    """
    code = f"""if True:
        import numpy as np
        from tigerfg.bundle import Bundle
        from tigerfg.encoder import Encoder
        from tigerfg.engines import open_engine
        bundle = Bundle.open({str(small_bundle)!r})
        encoder = Encoder(bundle, open_engine(bundle, {name!r}, "fp32", threads=1))
        encoder.encode_queries([(np.zeros((9, 9, 3), np.uint8), None)])
        print((np.full(9, 1e-40, np.float32) * np.float32(2)).all())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_calls_from_several_threads(name, small_bundle):
    engine = open_engine(small_bundle, name, "fp32", threads=1)
    feeds = [inputs(CONV, "query", 1 + seed % 3, seed=seed) for seed in range(8)]
    expected = [engine.encode_queries(**feed) for feed in feeds]
    found: list[np.ndarray | None] = [None] * len(feeds)

    def work(index: int) -> None:
        for _ in range(5):
            found[index] = engine.encode_queries(**feeds[index])

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(feeds))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=ATOL)


def test_a_closed_engine_says_so(small_bundle, small_checkpoint):
    for source, name in ((small_bundle, "onnx"), (small_checkpoint, "torch")):
        engine = open_engine(source, name, threads=1)
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.encode_queries(**inputs(CONV, "query", 1))


def test_values_that_are_not_finite_are_not_passed_on(small_bundle):
    engine = open_engine(small_bundle, "onnx", "fp32", threads=1)
    feeds = inputs(CONV, "query", 2)
    feeds["pixels"][1, 0, 0, 0] = np.nan
    with pytest.raises(EngineError, match=r"onnx fp32 .*non-finite"):
        engine.encode_queries(**feeds)


def test_unknown_names_and_missing_packages(small_bundle, small_checkpoint, monkeypatch):
    with pytest.raises(
        EngineError, match=r"'tensorflow' is unknown; choose auto, tensorrt, .*onnx"
    ):
        open_engine(small_bundle, "tensorflow")
    with pytest.raises(EngineError, match=r"'int4' is unknown"):
        open_engine(small_bundle, precision="int4")
    with pytest.raises(EngineError, match=r"runs 'bf16'"):
        open_engine(small_bundle, "onnx", "bf16")
    with pytest.raises(EngineError, match="fp32"):
        open_engine(small_checkpoint, "torch", "int8")
    with pytest.raises(InputError, match="threads 0 must be a whole number"):
        open_engine(small_bundle, threads=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"tigerfg\[cpu\]"):
        open_engine(small_bundle, "onnx")
    with pytest.raises(EngineError, match=r"tigerfg\[cpu\]"):
        open_engine(small_bundle)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_a_damaged_graph_is_one_line(name, small_bundle, tmp_path):
    file = tmp_path / "query.onnx"
    file.write_bytes((small_bundle / "query.onnx").read_bytes()[:500])
    bundle = Bundle.open(small_bundle)
    bundle.onnx = lambda tower, precision: file
    with pytest.raises(EngineError, match=r"cannot load .*query\.onnx") as caught:
        open_engine(bundle, name, "fp32").encode_queries(**inputs(CONV, "query", 1))
    assert "\n" not in str(caught.value)


def test_serving_imports_no_torch(small_bundle):
    code = (
        "import sys, numpy as np\n"
        "from tigerfg.engines import open_engine\n"
        f"engine = open_engine({str(small_bundle)!r}, threads=1)\n"
        "engine.encode_queries(np.zeros((1, 3, 32, 32), np.float32), np.ones((1, 16), bool))\n"
        "bad = {'torch', 'transformers', 'onnx', 'onnxscript'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_choice_is_measured_once_and_explained(small_bundle, monkeypatch):
    bundle = Bundle.open(small_bundle)
    choice = choose(bundle, "query", threads=1)
    tried = {(entry.engine, entry.precision) for entry in choice.candidates}
    kinds = {(name, kind) for name in CPU_ENGINES for kind in ("fp32", "int8")}
    assert tried - {("openvino", "bf16")} == kinds
    assert choice.candidates[0][:2] == (choice.engine, choice.precision)
    assert all(entry.cosine > 0.98 for entry in choice.candidates if not entry.note)
    engine = open_engine(bundle, threads=1)
    assert engine.info[:4] == (choice.engine, choice.precision, "cpu", 1)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(select, "_measure", never)
    assert choose(bundle, "query", threads=1) == choice
    with pytest.raises(AssertionError, match="measured again"):
        choose(bundle, "query", threads=1, refresh=True)
    with pytest.raises(AssertionError, match="measured again"):
        choose(bundle, "query", threads=2)


def test_another_export_of_the_checkpoint_is_another_choice(small_bundle):
    def file(precision: str = "auto") -> Path:
        requested = tuple(select._requested(bundle, "auto", precision))
        return select.cache_file(bundle, "query", requested, 1)

    bundle = Bundle.open(small_bundle)
    before = {precision: file(precision) for precision in ("auto", "fp32")}
    bundle.manifest["towers"]["query"]["int8"]["sha256"] = "0" * 64  # calibrated on other pictures
    assert file() != before["auto"]
    assert file("fp32") == before["fp32"]
    bundle.manifest["parity"]["query"]["int8"]["cosine_mean"] = 0.9  # not to be chosen
    after = file()
    assert after != before["auto"]
    requested = tuple(select._requested(bundle, "auto", "auto"))
    assert select.cache_file(bundle, "query", requested, 1, explicit=True) != after
    bundle.manifest["weights"]["sha256"] = "0" * 64
    assert file("fp32") != before["fp32"]


def test_the_cache_may_be_broken_or_read_only(small_bundle, tmp_path, monkeypatch, caplog):
    bundle = Bundle.open(small_bundle)
    requested = tuple(select._requested(bundle, "auto", "fp32"))
    file = select.cache_file(bundle, "query", requested, 1, explicit=True)
    file.parent.mkdir(parents=True)
    file.write_text("{broken")
    choice = choose(bundle, "query", precision="fp32", threads=1)
    assert "measuring anew" in caplog.text
    assert json.loads(file.read_text())["engine"] == choice.engine
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache directory should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert choose(bundle, "query", precision="fp32", threads=1).precision == "fp32"


def candidate(engine: str, precision: str, ms: float, note: str = "") -> select.Candidate:
    return select.Candidate(engine, precision, ms, 1.0, note)


def test_the_fastest_accurate_candidate_wins():
    slow, fast = candidate("onnx", "fp32", 2.0), candidate("openvino", "int8", 1.0)
    assert select._pick("query", [slow, fast]).precision == "int8"
    # not worth a rounding: less than a tenth faster
    assert select._pick("query", [slow, candidate("onnx", "int8", 1.9)]).precision == "fp32"
    wrong = candidate("openvino", "int8", 0.1, "cosine on this CPU 0.5000 < 0.98")
    choice = select._pick("query", [wrong, slow])
    assert choice.precision == "fp32"
    assert choice.candidates == (slow, wrong)
    with pytest.raises(EngineError, match=r"query tower is accurate .*0\.5000"):
        select._pick("query", [wrong])


def test_inaccurate_precisions_are_objected_to(small_bundle):
    bundle = Bundle.open(small_bundle)

    def objection(precision: str, cosine: float, explicit: bool = False) -> str:
        return select._objection(bundle, "query", precision, cosine, explicit)

    assert objection("fp32", 1.0) == ""
    assert objection("int8", 0.999) == ""
    assert "on this CPU" in objection("int8", 0.5)
    assert "on this CPU" in objection("int8", 0.5, explicit=True)
    assert "on this CPU" in objection("bf16", 0.99)
    assert objection("bf16", 0.99, explicit=True) == ""
    bundle.manifest["parity"]["query"]["int8"]["cosine_mean"] = 0.99
    assert "parity" in objection("int8", 0.999)
    assert objection("int8", 0.999, explicit=True) == ""
    del bundle.manifest["parity"]
    assert "parity" in objection("int8", 0.999)


def test_bf16_runs_only_where_the_cpu_has_it(small_bundle, monkeypatch):
    bundle = Bundle.open(small_bundle)
    for features, expected in (((), False), (("amx_bf16",), True)):
        monkeypatch.setattr(select, "cpu", lambda features=features: Cpu("some", features))
        found = "bf16" in {kind for _, kind in select._requested(bundle, "auto", "auto")}
        assert found == (expected and "openvino" in CPU_ENGINES)


def test_a_candidate_that_fails_is_left_out_and_noted(small_bundle, monkeypatch, caplog):
    original = select._open

    def fail(bundle, tower, engine, precision, threads):
        if precision == "int8":
            raise EngineError("kernel missing")
        return original(bundle, tower, engine, precision, threads)

    monkeypatch.setattr(select, "_open", fail)
    choice = choose(Bundle.open(small_bundle), "query", threads=1)
    assert choice.precision in ("fp32", "bf16")
    assert {entry.note for entry in choice.candidates if entry.precision == "int8"} == {
        "kernel missing"
    }
    assert "kernel missing" in caplog.text


def test_batches_are_cut_into_compiled_sizes():
    assert _blocks(1) == [(0, 1, 1)]
    assert _blocks(BLOCK) == [(0, BLOCK, BLOCK)]
    half = BLOCK // 2
    assert _blocks(BLOCK + half) == [(0, BLOCK, BLOCK), (BLOCK, half, BLOCK)]
    for batch in range(1, 3 * BLOCK):
        blocks = _blocks(batch)
        assert [start for start, _, _ in blocks] == list(
            np.cumsum([0] + [count for _, count, _ in blocks[:-1]])
        )
        assert sum(count for _, count, _ in blocks) == batch
        assert all(count <= size and size in (1, BLOCK) for _, count, size in blocks)


def test_threads_and_cpu():
    assert thread_count(3) == 3
    assert thread_count(None) >= 1
    assert cpu().model


@pytest.mark.skipif("openvino" not in CPU_ENGINES, reason="openvino is not installed")
def test_ctrl_c_after_openvino_is_no_crash(small_bundle):
    """OpenVINO's plugins, unloaded with its last core, took the process with them."""
    script = f"""
import gc, signal
from tigerfg.engines import open_engine
from tigerfg.engines.select import probe
from tigerfg.bundle import Bundle
bundle = Bundle.open({str(small_bundle)!r})
engine = open_engine(bundle, "openvino", "fp32", 1)
engine.encode_queries(**probe(bundle, "query"))
engine.close()
del engine
gc.collect()
def interrupted():
    signal.raise_signal(signal.SIGINT)
    return [name for name in dir(signal)]
try:
    interrupted()
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


@pytest.fixture
def with_gpu(monkeypatch):
    """A machine with a GPU, as far as the choice of an engine goes; what was logged."""
    gpu_module._say_once.cache_clear()
    monkeypatch.setattr(gpu_module, "current_gpu", lambda: Gpu(89, "CUDA 13.0", None))


def test_a_gpu_that_is_not_used_is_said_once(with_gpu, small_bundle, caplog):
    for _ in range(2):
        engine = open_engine(small_bundle, "auto", "fp32", 1)
        assert engine._towers.device == "cpu"
    assert [record.message for record in caplog.records] == [
        "the GPU is not used: the bundle small has nothing for GPUs: export it with --fp16"
    ]


def test_auto_takes_the_gpu_where_all_is_there(with_gpu, monkeypatch, caplog):
    monkeypatch.setattr(gpu_module, "find_builder", lambda: Builder("tensorrt-rtx", "1", None))
    monkeypatch.setattr(gpu_module.importlib.util, "find_spec", lambda name: object())
    engine = open_engine("tiny")
    assert (engine._towers.device, caplog.records) == ("cuda", [])
    with pytest.raises(EngineError, match=r"'int8' was not exported for GPUs; the bundle has fp16"):
        open_engine("tiny", "tensorrt-rtx", "int8")


def test_a_broken_tensorrt_is_a_reason(with_gpu, monkeypatch, caplog):
    def broken():
        raise EngineError("tensorrt is installed but only as a stub")

    monkeypatch.setattr(gpu_module, "find_builder", broken)
    assert open_engine("tiny", "auto", "auto", 1)._towers.device == "cpu"
    assert "the GPU is not used: tensorrt is installed but only as a stub" in caplog.text
