from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from fakes import FakeBundle, FakeEngine, save_picture
from PIL import Image
from typer.testing import CliRunner, Result

from tigerfg.attention_crop import AttentionCrop
from tigerfg.bundle import Bundle
from tigerfg.cli import app as cli
from tigerfg.cli import console, export, options
from tigerfg.engines import Candidate, Choice
from tigerfg.errors import CatalogError, InputError
from tigerfg.index.collection import Collection

TIGERFG = (sys.executable, "-c", "from tigerfg.cli import main; main()")
COMMANDS = list(cli.COMMANDS)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def shell(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [*TIGERFG, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def assert_one_line(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight items and as many queries; model and engine are fake: same picture, score 1."""
    monkeypatch.setattr(Bundle, "open", classmethod(lambda cls, name=None: FakeBundle()))
    monkeypatch.setattr("tigerfg.engines.open_engine", lambda *a, **k: FakeEngine())
    monkeypatch.chdir(tmp_path)
    items, queries = [], []
    for n in range(8):
        save_picture(tmp_path / f"{n}.png", n)
        item = {"item_id": f"i{n}", "image": f"{n}.png", "title": f"Thing [{n}]"}
        items.append({**item, "attributes": {"price": str(n)}, "split": "test" if n < 6 else "x"})
        query = {"query_id": f"q{n}", "image": f"{n}.png", "item_ids": [f"i{n}"]}
        queries.append({**query, "query_kind": "odd" if n % 2 else "even"})
    for name, records in (("items", items), ("queries", queries)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Usage: tigerfg {command} " in result.stdout


def test_help_lists_every_command_and_is_shown_without_arguments():
    result = run()
    assert result.exit_code == 0
    assert result.stdout == run("--help").stdout
    for command in COMMANDS:
        assert f" {command} " in result.stdout


def test_export_help():
    result = CliRunner().invoke(export.app, ["--help"])
    assert result.exit_code == 0
    assert "--parity-data" in result.stdout


def test_version():
    assert re.fullmatch(r"tigerfg \d+\.\d+\.\d+\n", run("--version").stdout)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['tigerfg', '--help']\n"
        "from tigerfg.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'PIL', 'torch', 'faiss', 'onnxruntime', 'openvino'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nosuch"], ["No such command", "nosuch", "tigerfg --help"]),
        (["search"], ["Missing argument", "IMAGE"]),
        (["search", "gone.jpg"], ["gone.jpg", "does not exist"]),
        (["search", "0.png", "--box", "1,2,3"], ["--box", "1,2,3"]),
        (["search", "0.png", "--where", "{"], ["--where", "object"]),
        (["search", "0.png", "--where", "[1]"], ["--where", "object"]),
        (["search", "0.png", "-k", "0"], ["-k"]),
        (["delete"], ["--where", "give ids or a filter: there is neither"]),
        (["delete", "a", "--where", "{}"], ["--where", "give ids or a filter: not both"]),
        (["optimize", "--memory-budget", "-1"], ["--memory-budget", " 0"]),
        (["verify", "--seed", "-1"], ["--seed", " 0"]),
        (["search", "0.png", "--colour"], ["--colour"]),
        (["eval", ".", "--filter", "x"], ["--filter", "key=value"]),
        (["index"], ["--items"]),
        (["index", "--items", "gone.jsonl"], ["gone.jsonl", "does not exist"]),
        (["render", "out", "--layout", "round"], ["--layout", "round"]),
    ],
)
def test_wrong_usage_is_one_line(shop, args, words):
    assert_one_line(run(*args), 2, *words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["search", "0.png", "--catalog", "nowhere"], ["nowhere"]),
        (["search", "0.png", "--catalog", "."], ["catalog"]),
        (["eval", ".", "--split", "dev"], ["split=dev"]),
        (["eval", ".", "--mode", "magic"], ["magic"]),
        (["index", "--items", "items.txt"], ["items.txt"]),
        (["index", "--items", "items.jsonl", "--catalog", "0.png"], ["0.png"]),
    ],
)
def test_bad_input_is_one_line(shop, args, words):
    (shop / "items.txt").touch()
    assert_one_line(run(*args), 1, *words)


def test_unknown_model_is_one_line(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "image": "a.png"}')
    result = shell("index", "--items", ".", "--model", "giant", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert "giant" in result.stderr


@pytest.mark.parametrize("where", ["option", "environment"])
def test_debug_shows_the_traceback(tmp_path, where):
    options = ["--debug"] if where == "option" else []
    debug = {} if where == "option" else {"TIGERFG_DEBUG": "1"}
    result = shell(*options, "search", sys.executable, cwd=tmp_path, env={**os.environ, **debug})
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CatalogError("two\nlines"), 1, "error: two lines"),
        (OSError(28, "No space left on device", "x.db"), 1, "error: x.db: No space left"),
        (RuntimeError("odd"), 1, "RuntimeError: odd (`tigerfg --debug ...` shows where)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Exit(3), 3, None),
    ],
)
def test_exit_codes(shop, monkeypatch, error, code, words):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("tigerfg.searcher.Searcher.open", fail)
    result = run("search", "0.png")
    if words is None:
        assert (result.exit_code, result.stderr) == (code, "")
    else:
        assert_one_line(result, code, words)


def test_ctrl_c_in_the_real_process(tmp_path):
    process = subprocess.Popen(
        [*TIGERFG, "render", "out", "--n", "100000", "--workers", "1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 40
    while not (tmp_path / "out/images").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=40)
    assert process.returncode == 130
    assert stderr.strip() == "interrupted"


def test_index_then_search(shop):
    result = run("index", "--items", "items.jsonl")
    assert result.exit_code == 0, result.output
    assert "8 added" in result.stdout
    assert "catalog holds 8 items" in result.stdout
    again = run("index", "--items", "items.jsonl")
    assert (again.exit_code, "8 unchanged" in again.stdout) == (0, True)

    found = run("search", "3.png", "-k", "2", "--json")
    hits = json.loads(found.stdout)
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["item_id"] == "i3"
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-2)  # vectors are stored in fp16
    table = run("search", "3.png", "-k", "2").stdout
    assert "Thing [3]" in table
    assert not CONTROL.search(table)


def test_update_changes_fields_and_lists_what_it_cannot(shop):
    run("index", "--items", "items.jsonl")
    lines = [{"item_id": "i1", "stock": 5}, {"item_id": "i2", "stock": 0}, {"item_id": "nope"}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "{broken\n"
    (shop / "changes.jsonl").write_text(text)
    result = run("update", "changes.jsonl")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2 updated, 2 rejected in ")
    assert "changes.jsonl:3: item_id 'nope' is not in the catalogue" in result.stderr
    assert "changes.jsonl:4: not valid JSON" in result.stderr
    hits = json.loads(run("search", "3.png", "--where", '{"stock": {"$gt": 1}}', "--json").stdout)
    assert [hit["item_id"] for hit in hits] == ["i1"]
    (shop / "changes.csv").write_text("item_id,title\nnope,1\ni1,other\n")
    assert run("update", "changes.csv").exit_code == 1
    (shop / "changes.csv").write_text("item_id,stock,note\ni1,7,\n")
    assert run("update", "changes.csv").exit_code == 0
    (shop / "empty.jsonl").write_text("\n")
    wrongs = (
        (".", "is a directory"),
        ("changes.txt", "no such file"),
        ("empty.jsonl", "no change"),
    )
    for wrong, words in wrongs:
        failed = run("update", wrong)
        assert (failed.exit_code, words in failed.stderr) == (1, True)


def test_search_filters(shop):
    run("index", "--items", "items.jsonl")
    where = json.dumps({"price": {"$gte": 6}})
    hits = json.loads(run("search", "3.png", "--where", where, "--json").stdout)
    assert {hit["item_id"] for hit in hits} == {"i6", "i7"}
    nothing = run("search", "3.png", "--where", '{"price": 99}')
    assert (nothing.exit_code, "no item matches" in nothing.stdout) == (0, True)


def test_search_writes_sheets(shop):
    run("index", "--items", "items.jsonl")
    args = ["--box", "0,0,8,8", "--png", "s.png", "--html", "s.html"]
    result = run("search", "3.png", "-k", "3", *args)
    assert result.exit_code == 0, result.output
    assert Image.open(shop / "s.png").width > 500
    assert "Thing [" in (shop / "s.html").read_text()
    assert result.stderr.count("contact sheet") == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["search", "3.png", "--html", "gone/s.html"], "gone/s.html: there is no such folder"),
        (["search", "3.png", "--png", "."], ".: is a folder"),
        (["search", "3.png", "--png", "./3.png"], "3.png: is what the command reads"),
        (["search", "3.png", "--html", "link.png"], "link.png: is what the command reads"),
        (["eval", ".", "--json", "items.jsonl"], "items.jsonl: is what the command reads"),
        (["eval", ".", "--markdown", "queries.jsonl"], "queries.jsonl: is what the command reads"),
        (["eval", "r.json", "--json", "r.json"], "r.json: is what the command reads"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(shop, args, words):
    (shop / "link.png").symlink_to("3.png")
    (shop / "r.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in shop.iterdir()}
    assert_one_line(run(*args), 2, words)
    assert {path.name: path.read_bytes() for path in shop.iterdir()} == before


def test_index_keeps_the_good_and_lists_the_bad(shop):
    (shop / "2.png").write_bytes(b"")
    with open(shop / "items.jsonl", "a") as file:
        file.write("{broken\n")
    result = run("index", "--items", "items.jsonl")
    assert result.exit_code == 0, result.output
    assert "7 added" in result.stdout
    assert "2 rejected" in result.stdout
    assert "2.png" in result.stderr
    assert "items.jsonl:9" in result.stderr
    assert "items.jsonl:3: item_id 'i2': " in result.stderr
    assert "rejects.jsonl" in result.stderr
    lines = (shop / "catalog/rejects.jsonl").read_text().splitlines()
    ids = {json.loads(line)["item_id"] for line in lines}
    assert ids == {"i2", None}
    assert {json.loads(line)["line"] for line in lines} == {3, 9}
    other = (shop / "items.jsonl").read_text().replace("Thing [0]", "Other")
    (shop / "items.jsonl").write_text(other)
    again = run("index", "--items", "items.jsonl")
    assert "items.jsonl:1: item_id 'i0': the id is taken" in again.stderr


def test_index_with_nothing_good_fails(shop):
    for n in range(8):
        (shop / f"{n}.png").unlink()
    result = run("index", "--items", "items.jsonl")
    assert result.exit_code == 1
    assert "... and 3 more" in result.stderr
    assert_one_line(run("index", "--items", "items.jsonl", "--split", "dev"), 1, "split=dev")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--items", "empty.jsonl"], "empty.jsonl: no item"),
        (["--items", "items.jsonl", "--split", "dev"], "items.jsonl: no item with split=dev"),
        (["--items", "items.txt"], "unknown kind of file"),
        (["--items", "items.jsonl", "--engine", "onxx"], "'onxx' is unknown"),
    ],
)
def test_index_that_cannot_begin_makes_no_catalogue(shop, args, words):
    (shop / "empty.jsonl").touch()
    (shop / "items.txt").touch()
    assert_one_line(run("index", *args), 1, words)
    assert not (shop / "catalog").exists()


def test_index_tells_its_stages(shop):
    told = run("index", "--items", "items.jsonl").stdout
    assert re.search(r"^stages, overlapping: .*encode \d+\.\d s", told, re.MULTILINE)
    assert "stages" not in run("index", "--items", "items.jsonl").stdout


def test_index_split_and_upsert(shop):
    assert "6 added" in run("index", "--items", ".", "--split", "test").stdout
    text = (shop / "items.jsonl").read_text().replace("Thing [0]", "Other")
    (shop / "items.jsonl").write_text(text)
    refused = run("index", "--items", ".", "--split", "test")
    assert (refused.exit_code, "1 rejected" in refused.stdout) == (0, True)
    assert "1 replaced" in run("index", "--items", ".", "--split", "test", "--upsert").stdout


def test_eval(shop):
    result = run("eval", ".", ".", "--mode", "item", "--mode", "global", "--json", "r.json")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith(" . ")]
    assert [row[1:3] for row in rows] == [
        [mode, kind] for mode in ("item", "global") * 2 for kind in ("all", "even", "odd")
    ]
    results = json.loads((shop / "r.json").read_text())
    assert len(results) == 4
    assert results[0]["overall"]["recall"] == {"1": 1.0, "5": 1.0, "10": 1.0}
    assert results[0]["conditions"]["fingerprint"] == "f" * 64
    assert not CONTROL.search(result.stdout)


def test_eval_says_what_it_skipped(shop):
    result = run("eval", ".", "--filter", "split=test")
    assert result.exit_code == 0, result.output
    assert "2 queries skipped" in result.stderr


def test_eval_keeps_the_results_before_a_bad_directory(shop):
    (shop / "empty").mkdir()
    result = run("eval", ".", "empty")
    assert result.exit_code == 1
    assert "1.000" in result.stdout
    assert "empty" in result.stderr.strip().splitlines()[-1]


def test_render_and_demo(shop, monkeypatch):
    rendered = run("render", "out", "--n", "3", "--image-size", "64", "--workers", "1")
    assert rendered.exit_code == 0, rendered.output
    assert (shop / "out/standard/items.jsonl").is_file()
    assert (shop / "out/cluttered/items.jsonl").is_file()
    result = run("demo", "--n", "10")
    assert result.exit_code == 0, result.output
    assert "10 items and 10 queries" in result.stdout
    assert "demo/sheet.png" in result.stdout
    assert Image.open(shop / "demo/sheet.png").width > 1000
    assert "<img" in (shop / "demo/sheet.html").read_text()
    assert "10 items and 10 queries" in run("demo", "--n", "10").stdout  # once more, reused
    newer = FakeBundle(fingerprint="e" * 64)
    monkeypatch.setattr(Bundle, "open", classmethod(lambda cls, name=None: newer))
    result = run("demo", "--n", "10")  # over that of an older model
    assert "10 items and 10 queries" in result.stdout, result.output
    assert len(list((shop / "demo").glob("catalog-*"))) == 2


def test_doctor_without_a_model_still_shows_the_machine(tmp_path):
    result = shell("doctor", "--model", "giant", cwd=tmp_path)
    assert result.returncode == 1
    for word in ("python", "numpy", "cpu", "threads", "cuda", "onnx", "giant"):
        assert word in result.stdout


def test_doctor_shows_the_choice_for_each_tower(shop, monkeypatch):
    again = []

    def choose(bundle: object, tower: str, threads: int, refresh: bool) -> Choice:
        again.append(refresh)
        rows = (
            Candidate("openvino", "fp32", 1.25, 1.0, ""),
            Candidate("onnx", "int8", None, None, "broken"),
        )
        return Choice(tower, "openvino", "fp32", rows)

    monkeypatch.setattr("tigerfg.engines.choose", choose)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shop / "cache"))
    result = run("doctor", "--threads", "1")
    assert result.exit_code == 0, result.output
    for tower in ("query", "item"):
        assert f"{tower} tower" in result.stdout
    assert result.stdout.count("* openvino fp32 1.25 ms a picture cosine 1.0000") == 2
    assert "onnx int8 (broken)" in result.stdout
    assert str(shop / "cache") in result.stdout
    assert "attention crop" not in result.stdout
    monkeypatch.setattr(FakeBundle, "attention_crop", AttentionCrop(0.3, 0.75))
    result = run("doctor", "--threads", "1")
    assert "attention crop threshold 0.3, weight 0.75" in " ".join(result.stdout.split())
    assert not any(again)
    assert run("doctor", "--again").exit_code == 0
    assert again[-2:] == [True, True]


def test_parsers():
    assert options.parse_box("1,2,3.5,4") == (1.0, 2.0, 3.5, 4.0)
    assert options.parse_box(None) is None
    assert options.parse_filters(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


@pytest.mark.parametrize(
    ("count", "noun", "words"), [(1, "item", "1 item"), (0, "query", "0 queries")]
)
def test_plural(count, noun, words):
    assert console.plural(count, noun) == words


def test_export_prints_its_report(tmp_path, small_bundle, monkeypatch):
    calls = []

    def export_bundle(ckpt, out, precisions, **kwargs):
        calls.append((precisions, kwargs["gpu"]))
        shutil.copytree(small_bundle, out)

    monkeypatch.setattr("tigerfg.export.export_bundle", export_bundle)
    monkeypatch.chdir(tmp_path)
    args = ["--ckpt", str(tmp_path), "--out", "b", "--int8", "--engine", "cpu"]
    result = CliRunner().invoke(export.app, args)
    assert result.exit_code == 0, result.output
    assert calls == [(("int8",), None)]
    assert "parity with float32 PyTorch on 24 pictures of parity" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert any(row[:3] == ["item", "onnx", "int8"] for row in rows)
    assert "bundle: b\n" in result.stdout


@pytest.mark.parametrize(
    ("asked", "engine", "sms", "cpu", "gpu"),
    [
        ((), "cpu", (), ("fp32", "int8"), None),
        (("bf16",), "cpu", (), ("fp32",), None),
        (("int8", "fp32"), "cpu", (), ("fp32", "int8"), None),
        (("fp16",), "auto", (), ("fp32",), (("fp16",), "auto")),
        ((), "auto", (89,), ("fp32", "int8"), (("fp16",), "auto")),
        (("int8",), "tensorrt-rtx", (), ("fp32",), (("int8",), "tensorrt-rtx")),
        (("fp8", "bf16"), "none", (), ("fp32",), (("fp8", "bf16"), "none")),
    ],
)
def test_export_plan(asked, engine, sms, cpu, gpu):
    pytest.importorskip("torch")
    workspace = 512 if gpu else None
    precisions, request = export._plan(asked, engine, sms, "1,2-32", workspace, True)
    assert precisions == cpu
    assert (request and (request.precisions, request.engine)) == gpu
    if request:
        assert (request.sms, request.workspace) == (sms, 512 << 20)
        assert [tuple(profile) for profile in request.profiles] == [(1, 1, 1), (2, 8, 32)]


def test_export_refuses_what_it_cannot_do(tmp_path):
    pytest.importorskip("torch")
    base = ["--ckpt", str(tmp_path), "--out", str(tmp_path / "b")]

    def refused(*args: str, says: str) -> None:
        assert_one_line(CliRunner().invoke(export.app, [*base, *args]), 1, says)
        assert not (tmp_path / "b").exists()

    refused("--fp8", "--engine", "cpu", says="fp8 is for GPUs")
    refused("--engine", "caffe", says="'caffe' is unknown")
    refused("--fp16", "--profiles", "4-2", says="profiles")
    refused("--fp16", "--engine", "none", says="has no config.json")
    refused("--engine", "cpu", "--sm", "89", says="cpu takes no --sm")
    refused("--engine", "cpu", "--profiles", "x", says="profiles")
    pytest.importorskip("tritonclient")
    refused("--engine", "cpu", "--triton-repository", str(tmp_path / "b" / "t"), says="the bundle")
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("keep me")
    refused("--engine", "cpu", "--triton-repository", str(full), says="full")


def test_export_without_checkpoint_is_one_line(tmp_path):
    args = ["--ckpt", str(tmp_path / "gone"), "--out", str(tmp_path / "b")]
    assert_one_line(CliRunner().invoke(export.app, args), 1, "gone is no directory")


def test_train_configuration(tmp_path):
    pytest.importorskip("torch")
    from tigerfg.cli.train import train_config

    file = tmp_path / "train.json"
    settings = {"products": 7, "model": {"item_tower": "global", "grounding": {"heads": 4}}}
    stages = [{"kind": "crops", "steps": 1, "batch": 2, "lr": 0.1}]
    file.write_text(json.dumps({**settings, "stages": stages, "weights": {"map": 2.0}}))
    made = train_config(file, "tiny", tmp_path / "out", {"threads": 1})
    assert (made.products, made.threads, made.out) == (7, 1, tmp_path / "out")
    assert (made.model.item_tower, made.model.grounding.heads) == ("global", 4)
    assert made.model.grounding.queries_per_head == 1
    assert (made.stages[0].kind, made.weights.map) == ("crops", 2.0)
    assert train_config(None, "tiny", tmp_path, {}).products == 10_000
    assert train_config(None, None, tmp_path, {}).model.name == "tiny"
    further = {"init": Path("lite")}  # the model that it starts from, unless another is asked for
    assert train_config(None, None, tmp_path, further).model.name == "lite"
    assert train_config(None, "tiny", tmp_path, further).model.name == "tiny"


STAGE = {"kind": "crops", "steps": 1, "batch": 2, "lr": 0.1}


def stages(before=(STAGE,), **change):
    """A configuration of two stages, the second one changed."""
    return json.dumps({"stages": [*before, {**STAGE, **change}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ('{"speed": 1}', "^speed: there is no such setting; choose among model, "),
        ('{"out": "x"}', "^out: .*--out"),
        ('{"weights": {"mapp": 1}}', "^weights.mapp: there is no such setting; .* map, "),
        ('{"weights": {"map": "x"}}', "^weights.map: 'x'; give a number, 0 or more"),
        ('{"weights": {"map": -1}}', "^weights.map: -1; give a number, 0 or more"),
        ('{"weights": 3}', "^weights: 3; give an object"),
        ('{"model": {"colour": 1}}', "^model.colour: there is no such setting"),
        ('{"model": {"colours": {"red": 1}}}', "^model.colours: there is no such setting"),
        ('{"model": {"vision": {"depht": 3}}}', "^model.vision.depht: there is no such .* depth, "),
        ('{"model": {"vision": {"depth": "x"}}}', "^model.vision.depth: 'x'; give a whole number"),
        ('{"model": {"vision": {"patch": 0}}}', "^model.vision.patch: 0; give a whole number, 1"),
        ('{"model": {"vision": 3}}', "^model.vision: 3; give an object"),
        ('{"model": {"name": {"x": 1}}}', "^model.name: {'x': 1}; give a string"),
        ('{"model": {"mean": [0, 1]}}', r"^model.mean: \[0, 1\]; give a list of 3"),
        ('{"model": {"mean": [0, -1, 0]}}', "^model.mean.1: -1; give a number from 0 to 1"),
        ('{"model": {"std": [0, 0, 0]}}', "^model.std.0: 0; give a number from 0.001 to 1000"),
        ('{"model": {"std": [1, 1, NaN]}}', "^model.std.2: nan; give a number from 0.001 to 1000"),
        ('{"model": {"std": [1, 1e-300, 1]}}', "^model.std.1: 1e-300; give a number from 0.001"),
        ('{"model": {"grounding": {"heads": 7}}}', "^model.grounding.heads: 7 does not divide"),
        ('{"model": {"query_size": 0}}', "^model.query_size: 0; give .* from 1 to 4096"),
        ('{"model": {"item_size": 1000000000}}', "^model.item_size: 1000000000; give .* to 4096"),
        ('{"model": "tiny"}', "model is no JSON object"),
        ('{"validate_every": "x"}', "^validate_every: 'x'; give a whole number, 1 or more"),
        ('{"micro_batch": "4"}', "^micro_batch: '4'; give a whole number, 1 or more"),
        ('{"photo_share": "x"}', "^photo_share: 'x'; give a number from 0 to 1"),
        ('{"products": "abc"}', "^products: 'abc'; give a whole number, 1 or more"),
        ('{"products": true}', "^products: True; give a whole number, 1 or more"),
        ('{"products": null}', "^products: None; give a whole number, 1 or more"),
        ('{"photos": "shop"}', "^photos: 'shop'; give a list"),
        ('{"photos": null}', "^photos: None; give a list"),
        ('{"photos": ["shop", 3]}', "^photos.1: 3; give a path"),
        ('{"photos": ["shop", "x/../shop"]}', "^photos: x/../shop is given twice; leave one out"),
        ('{"photo_share": null}', "^photo_share: None; give a number from 0 to 1"),
        ('{"photo_share": [0.5, 1.5]}', "^photo_share.1: 1.5; give a number from 0 to 1"),
        (
            '{"photo_share": [0.5]}',
            "^photo_share: it lists 1, photos 0; give one share a",
        ),
        (
            '{"photos": ["a", "b"], "photo_share": [0.7, 0.4]}',
            r"^photo_share: \[0.7, 0.4\] sum to 1.1; give shares that sum to 1 at most",
        ),
        ('{"init": 3}', "^init: 3; give a path"),
        ('{"pretrained": 1}', "^pretrained: 1; give true or false"),
        ('{"precision": "fp8"}', "^precision: 'fp8'; give auto, fp32 or bf16"),
        ('{"seed": -1}', "^seed: -1; give a whole number from 0"),
        ('{"seed": "a"}', "^seed: 'a'; give a whole number from 0"),
        ('{"seed": 9223372036854775808}', "^seed: 9223372036854775808; give a whole number from 0"),
        ('{"save_seconds": "x"}', "^save_seconds: 'x'; give a number, 0 or more"),
        ('{"save_seconds": NaN}', "^save_seconds: nan; give a number, 0 or more"),
        ('{"save_seconds": 1e999}', "^save_seconds: inf; give a number, 0 or more"),
        ('{"threads": 0}', "^threads: 0; give a whole number, 1 or more"),
        ('{"stages": []}', "^stages: there are none; give at least one"),
        ('{"stages": {}}', "^stages: {}; give a list"),
        ('{"stages": ["joint"]}', "^stages.0: 'joint'; give an object"),
        ('{"stages": [{"kind": "map"}]}', "^stages.0.steps: it is missing; give a whole number"),
        (stages(kind="joint", before=[]), "^stages: a joint stage needs earlier .* or --init"),
        (stages(kind="crop"), "^stages.1.kind: 'crop'; give crops, regions, map or joint"),
        (stages(kind=["map"]), r"^stages.1.kind: \['map'\]; give crops, regions, map or joint"),
        (stages(lr="0.1"), "^stages.1.lr: '0.1'; give a number, 0 or more"),
        (stages(lr=-1), "^stages.1.lr: -1; give a number, 0 or more"),
        (stages(lr=10**400), "^stages.1.lr: 10{70,}[.]{3}; give a number, 0 or more"),
        (stages(matrix_lr=-0.1), "^stages.1.matrix_lr: -0.1; give a number, 0 or more"),
        (stages(batch=4.5), "^stages.1.batch: 4.5; give a whole number, 1 or more"),
        (stages(rate=1), "^stages.1.rate: there is no such setting; choose among kind, steps, "),
    ],
)
def test_bad_train_configuration(tmp_path, text, message):
    pytest.importorskip("torch")
    from tigerfg.cli.train import train_config

    file = tmp_path / "train.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        train_config(file, "tiny" if "init" not in text else None, tmp_path / "out", {})


def test_data_may_be_given_several_times(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from tigerfg.training import loop

    settings = []
    monkeypatch.setattr(loop, "train", lambda config, resume: settings.append(config) or tmp_path)
    for name in ("shop", "other"):
        (tmp_path / name).mkdir()
    file = tmp_path / "train.json"
    file.write_text('{"photos": ["elsewhere"]}')
    data = [text for name in ("shop", "other") for text in ("--data", tmp_path / name)]
    for given in ([], data[:2], data, ["--config", file]):
        assert run("train", "--out", tmp_path / "out", *given).exit_code == 0
    names = [[path.name for path in config.photos] for config in settings]
    assert names == [[], ["shop"], ["shop", "other"], ["elsewhere"]]
    file.write_text('{"photo_share": [0.2, 0.1]}')
    run("train", "--out", tmp_path / "out", *data, "--config", file)
    assert settings[-1].photo_shares == (0.2, 0.1)
    result = run("train", "--out", tmp_path / "out", *data[:2], "--config", file)
    assert_one_line(result, 1, "photo_share: it lists 2, photos 1; give one share a directory")


def test_shards_that_cannot_be_trained_on_are_refused_at_once(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "wrong").mkdir()
    result = run("train", "--shards", tmp_path / "wrong", "--out", tmp_path / "out")
    assert_one_line(result, 1, "wrong: no suite: it has no manifest.json")
    assert not (tmp_path / "out").exists()


def test_render_does_not_overwrite(tmp_path):
    own = tmp_path / "items.jsonl"
    own.write_text('{"mine": 1}\n')
    result = run("render", tmp_path, "--n", 2, "--layout", "standard")
    assert_one_line(result, 1, "items.jsonl exists already", "new directory")
    assert own.read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("text", ["[" * 60_000, "1" * 5_000], ids=["deep", "long number"])
def test_where_that_json_cannot_read_is_one_line(shop, text):
    assert_one_line(run("search", "0.png", "--where", text), 2, "--where")


def test_control_codes_of_a_catalogue_stay_out_of_the_table(shop):
    record = {"item_id": "x", "image": "0.png", "title": "a\x1b[31mred \x9b31m"}
    (shop / "items.jsonl").write_text(json.dumps(record) + "\n")
    assert run("index", "--items", "items.jsonl").exit_code == 0
    result = run("search", "0.png")
    assert "red" in result.stdout
    assert not CONTROL.search(result.stdout)
    assert "\x9b" not in result.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stdout_or_stderr_is_none_to_write_to(tmp_path: Path, closed: str) -> None:
    for args, code in ((["doctor", "--help"], 0), (["--version"], 0), (["stats"], 1)):
        script = ["sh", "-c", f'exec "$@" {closed}', "sh", *TIGERFG, *args]
        done = subprocess.run(script, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr


def test_snapshot_and_verify(shop: Path) -> None:
    assert run("index", "--items", "items.jsonl").exit_code == 0
    result = run("snapshot", "copy")
    assert result.exit_code == 0, result.output
    assert result.stdout == "copy holds 8 items\n"
    assert_one_line(run("snapshot", "copy"), 1, "neither new nor empty")
    assert_one_line(run("snapshot", "new", "--catalog", "nowhere"), 1, "is no catalogue")
    result = run("verify", "--catalog", "copy", "--sample", 5)
    assert result.exit_code == 0, result.output
    assert "copy: 8 items, no problem; 5 encoded again, least cosine 1.0000" in result.stdout
    index = shop / "copy" / "flat.index"
    index.write_bytes(index.read_bytes()[:-3])
    result = run("verify", "--catalog", "copy", "--sample", 0)
    assert_one_line(result, 1, "problem: flat.index", "rebuilds")
    assert "1 problem" in result.stdout


def test_items_and_delete(shop: Path) -> None:
    assert run("index", "--items", "items.jsonl").exit_code == 0
    where = ("--where", '{"price": {"$lt": 3}}')
    listed = run("items", *where)
    assert listed.exit_code == 0, listed.output
    (shop / "listed.jsonl").write_text(listed.stdout)
    found = [json.loads(line)["item_id"] for line in listed.stdout.splitlines()]
    assert found == ["i0", "i1", "i2"]
    assert len(run("items").stdout.splitlines()) == 8
    assert run("items", *where, "--count").stdout == "3\n"
    result = run("delete", "i7", "i0", "none")
    assert result.stdout == "2 items deleted; catalog holds 6 items\n"
    result = run("delete", *where)
    assert result.stdout == "2 items deleted; catalog holds 4 items\n"
    (shop / "ids.txt").write_text("i3\n\ni4\n")
    result = run("delete", "--ids", "ids.txt")
    assert result.stdout == "2 items deleted; catalog holds 2 items\n"
    (shop / "ids.txt").write_text("")  # an empty file of ids deletes nothing
    result = run("delete", "--ids", "ids.txt")
    assert result.stdout == "0 items deleted; catalog holds 2 items\n"
    assert "give ids or a filter" in run("delete").stderr
    assert run("delete", "i5", *where).exit_code == 2
    assert_one_line(run("delete", "--where", "{}"), 1, "where asks for nothing")
    assert_one_line(run("items", "--where", '{"$nor": []}'), 1, "unknown operator")
    assert run("items", "--count").stdout == "2\n"
    assert run("index", "--items", "listed.jsonl").exit_code == 0  # they are read back
    assert run("items", "--count").stdout == "5\n"


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    """As in `tigerfg items | head`."""
    Collection.create(
        tmp_path / "catalog",
        model="tiny",
        fingerprint=Bundle.open("tiny").fingerprint,
        embedding_dim=256,
    ).close()
    for arguments in (["items", "--count"], ["stats"], ["--help"], ["search", "--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        command = [*TIGERFG, *arguments]
        process = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
        assert (process.returncode, process.stderr) == (0, b"")


def test_another_broken_pipe_is_a_failure(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("tigerfg.searcher.Searcher.open", fail)
    assert run("items").exit_code == 1


def test_a_file_of_ids(shop: Path) -> None:
    names = ["a", "b", "a\u2028b", "c\x85d", "it's", 'q"', "Überzug 1", "left"]
    rows = [{"item_id": name, "image": f"{n}.png"} for n, name in enumerate(names)]
    (shop / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("index", "--items", "some.jsonl").exit_code == 0
    lines = ["\ufeffa\u2028b", "", "  ", "it's ", '\tq"', "Überzug 1", "c\x85d"]
    (shop / "ids.txt").write_bytes("\r\n".join(lines).encode())
    assert "5 items deleted" in run("delete", "--ids", "ids.txt").stdout
    left = [json.loads(line)["item_id"] for line in run("items").stdout.splitlines()]
    assert left == ["a", "b", "left"]
    (shop / "ids.txt").write_bytes("left".encode("utf-16"))
    assert_one_line(run("delete", "--ids", "ids.txt"), 1, "error: --ids", "no UTF-8 text")
    assert run("items", "--count").stdout == "3\n"


def test_stats(shop: Path) -> None:
    assert run("index", "--items", "items.jsonl", "--index", "IVF1,RaBitQ").exit_code == 0
    result = run("stats")
    assert result.exit_code == 0, result.output
    assert "8 items" in result.stdout
    assert "index flat (asked for: IVF1,RaBitQ): exact" in result.stdout
    result = run("optimize")
    assert result.exit_code == 0, result.output
    assert "index IVF1,RaBitQ (asked for: IVF1,RaBitQ): recall@10" in result.stdout
    assert result.stdout in run("stats").stdout
    facts = json.loads(run("stats", "--json").stdout)
    assert facts["kind"] == facts["index"] == "IVF1,RaBitQ"
    assert (facts["items"], facts["nprobe"], len(facts["curve"]) > 0) == (8, 1, True)
    result = run("optimize", "--queries", "queries.jsonl")
    assert "measured when it was built with 8 sample queries" in " ".join(result.stdout.split())
    Path("none.jsonl").write_text("")
    assert_one_line(run("optimize", "--queries", "none.jsonl"), 1, "none.jsonl holds none")
    result = run("optimize", "--target-recall", 0.99, "--memory-budget", 10**9)  # they are kept
    assert "with 8 sample queries" in " ".join(result.stdout.split())
    facts = json.loads(run("stats", "--json").stdout)
    assert (facts["target_recall"], facts["memory_budget"]) == (0.99, 10**9)
    result = run("optimize", "--index", "auto", "--memory-budget", 0)
    assert result.stdout == "index flat (asked for: auto): exact\n"
    assert json.loads(run("stats", "--json").stdout)["memory_budget"] is None
    assert_one_line(run("optimize", "--index", "HNSW32"), 1, "is no IVF index")
    assert_one_line(
        run("index", "--items", "items.jsonl", "--catalog", "new", "--index", ""), 1, "index ''"
    )
    assert not (shop / "new").exists()
