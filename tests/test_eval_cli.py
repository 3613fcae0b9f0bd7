"""``tigerfg eval`` from end to end: the shipped model on a small rendered catalogue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tigerfg.benchmark.render import write_catalog
from tigerfg.bundle import DEFAULT_MODEL
from tigerfg.cli import app as cli


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.app, ["eval", *(str(arg) for arg in args)])


def good(*args: object) -> Result:
    result = run(*args, "--threads", 1, "--engine", "onnx", "--precision", "fp32")
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve products in both layouts, 64 pixels."""
    folder = tmp_path_factory.mktemp("rendered")
    write_catalog(folder, 12, seed=9, layout="both", image_size=64, workers=1)
    return folder


@pytest.fixture(scope="module")
def sop(tmp_path_factory: pytest.TempPathFactory, catalogue: Path) -> Path:
    """Stanford Online Products' layout: a picture and a query photo of six rendered products."""
    folder = tmp_path_factory.mktemp("sop")
    (folder / "cup_final").mkdir()
    lines = ["image_id class_id super_class_id path"]
    queries = (catalogue / "standard/queries.jsonl").read_text().splitlines()
    items = (catalogue / "standard/items.jsonl").read_text().splitlines()
    for product, pair in enumerate(zip(items[:6], queries[:6], strict=True)):
        for view, record in enumerate(map(json.loads, pair)):
            name = f"cup_final/{product}_{view}.JPG"
            (folder / name).write_bytes((catalogue / record["image"]).read_bytes())
            lines.append(f"{2 * product + view} {product} 1 {name}")
    (folder / "Ebay_test.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_every_output_in_one_command(catalogue, tmp_path):
    pytest.importorskip("matplotlib")
    outputs = ("--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md")
    outputs += ("--plot", tmp_path / "r.png", "--heatmaps", tmp_path / "r.html")
    rows = ("--mode", "item", "--mode", "detect", "--box-iou", 0.7, "--mode", "oracle")
    result = good(
        catalogue / "standard", catalogue / "cluttered", *rows, *outputs,
        "--heatmap-count", 3, "--gallery", "4,8,5000", "--compare",
    )  # fmt: skip
    results = json.loads((tmp_path / "r.json").read_text())
    labels = [(Path(entry["data"]).name, entry["mode"], entry["boxes"]) for entry in results]
    assert labels == [
        (layout, mode, boxes)
        for layout in ("standard", "cluttered")
        for mode, boxes in (("item", None), ("detect", "IoU 0.7"), ("oracle", None))
    ]
    for entry in results:
        assert [point["size"] for point in entry["curve"]] == [4, 8, 12]
        recalls = [point["recall"] for point in entry["curve"]]
        assert recalls == sorted(recalls, reverse=True)
        assert recalls[-1] == entry["overall"]["recall"]["1"]
        low, high = entry["overall"]["intervals"]["recall@1"]
        assert low <= recalls[-1] <= high
        assert (
            entry["comparison"] is None or entry["comparison"]["against"] == f"{DEFAULT_MODEL} item"
        )
    assert [entry["comparison"] is None for entry in results] == [True, False, False] * 2
    assert results[3]["grounding"]["items"] == 12
    text = (tmp_path / "r.md").read_text()
    assert "Paired with the first row of the same data." in text
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "r.html").read_text().count("<figure") == 6
    for word in ("results: ", "tables: ", "plot: ", "heat maps: "):
        assert word in result.stderr
    assert "paired with the first row" in result.stdout


def test_what_cannot_be_written_costs_the_others_nothing(catalogue, tmp_path):
    """As where one disk is full, which /dev/full always is."""
    table = tmp_path / "r.md"
    result = run(
        catalogue / "standard", "--model", "tiny", "--json", "/dev/full", "--markdown", table
    )
    assert result.exit_code == 1, result.output
    assert "error: /dev/full: No space left on device" in result.stderr
    assert "| R@1 |" in table.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["r.md"]


def test_results_files_are_compared_again(catalogue, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, mode in zip(files, ("item", "global"), strict=True):
        good(catalogue / "cluttered", "--mode", mode, "--json", file)
    result = run("--compare", *files, "--json", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    both = json.loads((tmp_path / "c.json").read_text())
    assert [entry["mode"] for entry in both] == ["item", "global"]
    first, second = (json.loads(file.read_text())[0] for file in files)
    assert both[0] == first
    assert both[1] | {"comparison": None} == second
    difference = both[1]["comparison"]["differences"]["recall@1"][0]
    recalls = [entry["overall"]["recall"]["1"] for entry in both]
    assert difference == pytest.approx(recalls[1] - recalls[0], abs=1e-12)


@pytest.mark.slow  # exports a model
def test_two_models_side_by_side(catalogue, small_bundle, tmp_path):
    data = catalogue / "cluttered"
    result = good(data, "--model", "tiny", "--model", small_bundle, "--compare", "--json",
                  tmp_path / "r.json")  # fmt: skip
    results = json.loads((tmp_path / "r.json").read_text())
    assert [entry["conditions"]["model"] for entry in results] == ["tiny", small_bundle.name]
    assert results[1]["comparison"]["queries"] == 12
    assert "paired with the first row" in result.stdout


def test_dataset(sop, tmp_path):
    result = good("--dataset", "sop", sop, "--mode", "global", "--json", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())[0]
    assert (found["data"], found["queries"], found["items"]) == ("sop test", 12, 12)
    # the query's own picture would stand first, and be wrong
    assert found["overall"]["recall"]["1"] > 0.2
    assert found["answers"]["candidates"] == [11] * 12
    assert found["overall"]["products"] == 6
    assert "leave-one-out" in result.stdout
    assert run("--dataset", "nosuch", sop).exit_code == 1


def test_predicted_boxes(catalogue, tmp_path):
    items = map(json.loads, (catalogue / "cluttered/items.jsonl").read_text().splitlines())
    lines = [json.dumps({"item_id": i["item_id"], "box": i["target_box"]}) for i in items]
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    out = tmp_path / "r.json"
    rows = ("--mode", "detect", "--boxes", tmp_path / "boxes.jsonl")
    good(catalogue / "cluttered", *rows, "--json", out)
    found = json.loads(out.read_text())[0]
    assert (found["boxes"], found["items_without_box"]) == ("boxes.jsonl", 2)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--mode", "detect"], "--box-iou or --boxes"),
        (["--box-iou", "0.5"], "--box-iou or --boxes"),
        (["--gallery", "10,x"], "100,500,1000"),
        (["--gallery", "0"], "100,500,1000"),
        (["--json", "nowhere/r.json"], "no such folder"),
        (["--json", "/"], "is a folder"),
        (["--mode", "text", "--heatmaps", "h.html"], "--heatmaps"),
        (["--boxes", "gone.jsonl", "--mode", "detect"], "does not exist"),
    ],
)
def test_wrong_usage(catalogue, args, words):
    result = run(catalogue / "standard", *args)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_directory_of_two_sets_is_told_which_to_give(catalogue):
    result = run(catalogue)
    assert result.exit_code == 1, result.output
    assert f": give {catalogue}/cluttered or {catalogue}/standard" in result.stderr
    assert "give" not in run(catalogue / "images").stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--mode", "detect", "--box-iou", "1.5"], "IoU 1.5: give a number above 0, at most 1"),
        (["--plot", "p.bmp"], "must end in .png"),
        (["--model", "tiny", "--model", "gone"], "gone: no such bundle"),
    ],
)
def test_bad_input(catalogue, args, words):
    result = run(catalogue / "standard", *args)
    assert result.exit_code == 1, result.output
    assert words in result.stderr


def test_boxes_of_a_file_are_for_one_directory(catalogue, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"item_id": "a", "box": null}\n')
    both = (catalogue / "standard", catalogue / "cluttered")
    result = run(*both, "--mode", "detect", "--boxes", tmp_path / "b.jsonl")
    assert (result.exit_code, "one directory" in result.stderr) == (2, True)


def test_one_result_is_shown_though_it_cannot_be_compared(catalogue, tmp_path):
    result = run(catalogue / "standard", "--compare", "--threads", 1, "--json", tmp_path / "r.json")
    assert result.exit_code == 1
    assert "nothing to compare" in result.stderr.splitlines()[-1]
    assert "recall and mean average precision" in result.stdout
    assert len(json.loads((tmp_path / "r.json").read_text())) == 1


def test_torch_is_not_needed(catalogue):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from tigerfg.cli import main\n"
        f"sys.argv = ['tigerfg', 'eval', {str(catalogue / 'standard')!r}, '--threads', '1']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "recall and mean average precision" in done.stdout
