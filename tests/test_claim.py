"""`make claim` with a model of a few thousand weights: results, resume, and what it refuses."""

# ruff: noqa: E402
from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "bench"))  # scripts beside the package, not part of it
sys.path.append(str(ROOT / "tests" / "training"))

import claim
import claim_evaluation
import tiny_run
from claim_report import write_report

from tigerfg.benchmark.suite import Settings, build
from tigerfg.errors import InputError
from tigerfg.model.config import preset
from tigerfg.training.box_head import train_box_head
from tigerfg.training.config import Stage, TrainConfig

MODEL = replace(tiny_run.MODEL, name="small")
VARIANTS = ("tiger", "clip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claim")
    settings = Settings(pairs=0, eval_products=12, query_size=32, item_size=64)
    build(folder / "suite", settings, workers=1)
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that are trained from now on, in the order in which they are."""
    runs: list[str] = []
    train = claim.train

    def noted(config: Any, **options: Any) -> Path:
        runs.append(config.out.name)
        return train(config, **options)

    monkeypatch.setattr(claim, "train", noted)
    monkeypatch.setattr(claim, "preset", lambda name: MODEL)
    crops, regions, mapped, joint = (
        Stage(k, 1, 8, 1e-3) for k in ("crops", "regions", "map", "joint")
    )
    monkeypatch.setitem(claim.RECIPES, "short", claim.Recipe((crops, regions), mapped, joint, 1))
    monkeypatch.setattr(
        claim_evaluation,
        "train_box_head",
        lambda *a, **k: train_box_head(*a, **k, steps=1, batch=8, pictures=16),
    )
    return runs


def run(folder: Path, *changes: str) -> int:
    values = ["--suite", folder / "suite", "--out", folder / "runs", "--results", folder / "res"]
    values += ["--seeds", 3, "--variants", *VARIANTS, "--products", 24, "--threads", 1, *changes]
    return claim.main([str(value) for value in values])


def results(folder: Path) -> dict[str, Any]:
    return {name: json.loads((folder / "res" / f"3-{name}.json").read_text()) for name in VARIANTS}


@pytest.mark.slow
def test_the_claim_is_trained_once(
    folder: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(folder, "--suite", str(folder)) == 1  # before anything is trained
    assert "has no items.jsonl" in capsys.readouterr().out
    assert run(folder, "--real", f"x={folder}") == 1
    assert trained == []

    assert run(folder, "--train-only") == 0
    assert trained == ["towers", "tiger", "clip"]
    assert not (folder / "res").exists()
    assert run(folder) == 0
    assert trained == ["towers", "tiger", "clip"]
    found = results(folder)
    query_tower = {"global", "oracle", "iou 0.9", "iou 0.7", "iou 0.5", "detector"}
    query_tower |= {"detector with text"}
    wanted = {"item", "text"} | query_tower | {f"towers: {name}" for name in query_tower}
    assert {row["row"] for row in found["tiger"]["rows"]} == wanted
    assert len(found["tiger"]["rows"]) == 2 * len(wanted)
    assert [row["row"] for row in found["clip"]["rows"]] == ["item", "item"]
    assert "grounding" in found["tiger"]["rows"][0]
    assert not any("grounding" in row for row in found["clip"]["rows"])  # a flat map finds nothing
    assert [s["steps"] for s in found["clip"]["settings"]["stages"]] == [2]  # 1, and 1 for the map
    for content in found.values():
        assert content["threads"] == 1
        assert min(content["seconds"].values()) > 0
        assert content["fingerprints"]["towers"] == found["tiger"]["fingerprints"]["towers"]
    table = (folder / "res" / "claim.md").read_text()
    assert "Towers: crops 1 x 8, regions 1 x 8" in table
    assert "Then TIGER-FG: map 1 x 8, joint 1 x 8." in table
    assert "no grounding: joint 2 x 8." in table
    assert "(towers before the joint stage)" in table
    assert "training s" in table

    trained.clear()
    shutil.rmtree(folder / "res")  # copies: what is done is known to the runs
    assert run(folder) == 0
    assert trained == []
    assert results(folder) == found
    assert (folder / "res" / "claim.md").read_text() == table

    capsys.readouterr()
    assert run(folder, "--products", "25") == 1
    assert "products 24, now 25" in capsys.readouterr().out
    assert run(folder, "--products", "25", "--out", str(folder / "other")) == 1  # beside these
    assert "products 24, now 25; take another --results" in capsys.readouterr().out
    recipe = claim.RECIPES["short"]
    longer = replace(recipe, joint=replace(recipe.joint, batch=9))
    monkeypatch.setitem(claim.RECIPES, "short", longer)
    assert run(folder) == 1
    assert "stages.1.batch 8, now 9" in capsys.readouterr().out
    assert trained == []


def test_the_results_that_are_there_are_those_of_the_claim(tmp_path: Path) -> None:
    """More seeds of the claim may join them: nothing that makes them has changed."""
    base = TrainConfig(out=tmp_path, model=preset("tiny"), photos=(Path("grocery"),))
    recipe = claim.RECIPES["short"]
    for name in claim.VARIANTS:
        config = claim.variant_run(tmp_path, 0, name, base, recipe)
        claim.check_same(
            ROOT / f"bench/results/claim/0-{name}.json", claim.settings_of(config, recipe), ""
        )


@pytest.mark.parametrize(
    ("names", "told"), [([], None), (["shop"], "shop"), (["shop", "other"], "shop, other")]
)
def test_photos_are_told_by_name(tmp_path: Path, names: list[str], told: str | None) -> None:
    config = tiny_run.config(tmp_path, photos=[tmp_path / name for name in names])
    assert claim.settings_of(config, claim.RECIPES["short"])["photos"] == told


def test_photos_that_are_not_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, gone = str(tmp_path), str(tmp_path / "gone")
    assert run(tmp_path, "--train-only", "--photos", there, gone) == 1
    assert f"--photos: {gone} is not a directory" in capsys.readouterr().out


def content(seed: int, **changes: Any) -> dict[str, Any]:
    stage = {"kind": "joint", "steps": 2, "batch": 8}
    settings = {
        "products": 24, "photos": None, "preset": "small", "towers": [stage], "stages": [stage],
        "model": {}, "weights": {}, "data": {"cluttered": "abc"},
    }  # fmt: skip
    row = {
        "data": "cluttered", "row": "item", "items": 9, "queries": 8, "precision": "fp32",
        "r1": 10.0 * seed, "r5": 60.0, "r10": 70.0, "gallery": {}, "distractors": {},
    }  # fmt: skip
    row |= {key: changes.pop(key) for key in ("precision",) if key in changes}
    return {
        "seed": seed, "variant": "clip", "title": "CLIP", "settings": {**settings, **changes},
        "seconds": {"towers": 5.0, "variant": 7.0 + seed}, "threads": None, "rows": [row],
        "training_commit": "abc", "conditions": {"cpu": "a CPU"},
    }  # fmt: skip


def put(folder: Path, *contents: dict[str, Any]) -> None:
    for one in contents:
        (folder / f"{one['seed']}-clip.json").write_text(json.dumps(one))


def test_report_gives_means_over_seeds(tmp_path: Path) -> None:
    put(tmp_path, content(1), content(3))
    write_report(tmp_path)
    table = (tmp_path / "claim.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| CLIP"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["CLIP", "2", "20.0 ± 14.1", "60.0 ± 0.0", "70.0 ± 0.0", "–", "–", "9"]


def test_report_of_nothing(tmp_path: Path) -> None:
    write_report(tmp_path / "new")
    assert (tmp_path / "new" / "claim.md").read_text() == "No results yet.\n"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"products": 25}, "products: 24 and 25"),
        ({"photos": "shop"}, 'photos: null and "shop"'),
        ({"precision": "bf16"}, "precision"),
        ({"towers": []}, "towers"),
        ({"stages": []}, "stages"),
        ({"data": {"cluttered": "x"}}, "data cluttered"),
    ],
)
def test_results_that_differ_are_not_averaged(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    put(tmp_path, content(1), content(2, **change))
    with pytest.raises(InputError, match=f"1-clip.json and 2-clip.json differ in {named}"):
        write_report(tmp_path)


def test_results_of_an_older_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0-clip.json").write_text('{"variant": "clip", "rows": []}')
    with pytest.raises(InputError, match=r"0-clip\.json: not a result"):
        write_report(tmp_path)


@pytest.mark.parametrize("text", ["", "grocery", "=there", "name=", "a/b=there", "a b=there"])
def test_what_is_no_data_set_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="NAME=DIR"):
        claim_evaluation.DataSet.parse(text)


def test_split_of_a_data_set_is_respected(tmp_path: Path) -> None:
    part = claim_evaluation.DataSet.parse(f"shop={tmp_path}:val")
    with pytest.raises(InputError, match=r"shop: .* has no items.jsonl"):
        part.read()
    records = [
        {"item_id": "a", "image": "a.png", "title": "a", "split": "val"},
        {"item_id": "b", "image": "b.png", "title": "b", "split": "train"},
    ]
    query = {"query_id": "q", "image": "a.png", "item_ids": ["a"], "split": "val"}
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "queries.jsonl").write_text(json.dumps(query))
    assert [item.item_id for item in part.read().items] == ["a"]
    (tmp_path / "queries.jsonl").write_text(json.dumps({**query, "item_ids": ["b"]}))
    with pytest.raises(InputError, match="has one of its item_ids"):
        part.read()
