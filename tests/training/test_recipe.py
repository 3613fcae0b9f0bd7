"""A run is resumed as what it was, and a field that differs is told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from safetensors.torch import save_file
from tiny_run import MODEL, STAGES, config

from tigerfg.attention_crop import AttentionCrop
from tigerfg.benchmark.suite import Manifest, Settings
from tigerfg.errors import InputError
from tigerfg.model.checkpoint import CONFIG, TOKENIZER, WEIGHTS
from tigerfg.training import loop
from tigerfg.training.config import LossWeights, TrainConfig
from tigerfg.training.loop import train
from tigerfg.training.recipe import check_recipe, recipe_of
from tigerfg.training.state import STATE, load_progress

DEEPER = dataclasses.replace(MODEL.vision, depth=3)
OTHER = {
    "model.attention_crop.threshold": {
        "model": dataclasses.replace(MODEL, attention_crop=AttentionCrop(0.5, 1.0))
    },
    "model.vision.depth": {"model": dataclasses.replace(MODEL, vision=DEEPER)},
    "stages.1.lr": {"stages": (STAGES[0], dataclasses.replace(STAGES[1], lr=0.5), *STAGES[2:])},
    "stages.3.backbone_rate": {"stages": STAGES[:3]},
    "weights.map": {"weights": LossWeights(map=0.0, relation=0.7)},
    "seed": {"seed": 1},
    "products": {"products": 7},
    "product_seed": {"product_seed": 7},
    "photos": {"photos": (Path("there/shop"),)},
    "photos_split": {"photos_split": "val"},
    "photo_share": {"photo_share": 0.5},
    "photo_crops": {"photo_crops": 6},
    "photo_collages": {"photo_collages": 0},
    "shards": {"shards": Path("there/suite")},
    "init": {"init": Path("there/start")},
    "pretrained": {"pretrained": True},
    "teacher": {"teacher": "ema"},
    "teacher_decay": {"teacher_decay": 0.5},
    "layer_decay": {"layer_decay": 0.5},
}
SAME: dict[str, Any] = {
    "out": Path("moved"),
    "threads": 2,
    "micro_batch": 3,
    "save_seconds": 9.0,
    "validate_every": 7,
    "rank_timeout": 5.0,
}


def suite_manifest(sha256: str) -> Manifest:
    shard = {"name": "0", "rows": 64, "bytes": 9, "sha256": sha256}
    return Manifest(Settings(64, 0).to_dict(), {}, 3, shards=[shard])


def start_checkpoint(folder: Path, weights: bytes) -> None:
    """What is read of a checkpoint to tell it from another."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text("{}")
    (folder / TOKENIZER).write_text("{}")
    (folder / WEIGHTS).write_bytes(weights)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with there/shop of two photos, there/suite and there/start."""
    monkeypatch.chdir(tmp_path)
    shop = tmp_path / "there" / "shop"
    shop.mkdir(parents=True)
    lines = [json.dumps({"item_id": name, "image": f"{name}.png", "title": "mug"}) for name in "ab"]
    (shop / "items.jsonl").write_text("\n".join(lines))
    (shop / "queries.jsonl").write_text('{"query_id": "q", "image": "q.png"}\n')
    for name in "abq":
        (shop / f"{name}.png").write_bytes(name.encode())
    start_checkpoint(tmp_path / "there" / "start", b"weights")
    (tmp_path / "there" / "suite").mkdir()
    suite_manifest("ab").save(tmp_path / "there" / "suite")
    return tmp_path


@pytest.mark.parametrize("field", OTHER)
@pytest.mark.usefixtures("data")
def test_the_field_that_differs_is_named(field: str) -> None:
    saved = json.loads(json.dumps(recipe_of(config(Path("run")))))
    check_recipe(saved, recipe_of(config(Path("run"))))
    with pytest.raises(InputError, match=rf"resume: {field} is .*, and was .* when the run began"):
        check_recipe(saved, recipe_of(config(Path("run"), **OTHER[field])))


@pytest.mark.usefixtures("data")
def test_runs_from_before_attention_crops_are_resumed() -> None:
    saved = recipe_of(config(Path("run")))
    assert "attention_crop" not in saved["model"]  # as their states have it
    assert "crop" not in saved["weights"]
    check_recipe(
        saved, recipe_of(config(Path("run"), model={**MODEL.to_dict(), "attention_crop": None}))
    )


def test_what_does_not_define_the_run_may_change(data: Path) -> None:
    shutil.copytree(data / "there", data / "here")
    check_recipe(recipe_of(_with("there")), recipe_of(_with("here", **SAME)))


def _with(data: str, **changes: Any) -> TrainConfig:
    there = Path(data)
    settings = {"photos": [there / "shop"], "init": there / "start", "shards": there / "suite"}
    return config(**{"out": Path("run"), **settings, **changes})


@pytest.mark.parametrize(
    ("file", "text", "field"),
    [
        ("shop/items.jsonl", '{"item_id": "a", "image": "a.png", "title": "cup"}', "photos.0"),
        ("shop/queries.jsonl", "", "photos.0"),
        ("shop/a.png", "repaired", "photos.0"),
        ("shop/q.png", "repaired", "photos.0"),
        ("suite/manifest.json", None, "shards"),
    ],
)
def test_data_that_changed_since_are_refused(
    data: Path, file: str, text: str | None, field: str
) -> None:
    saved = recipe_of(_with("there"))
    if text is None:
        suite_manifest("cd").save(data / "there" / "suite")
    else:
        (data / "there" / file).write_text(text)
    with pytest.raises(InputError, match=f"resume: {field} is .* with data .*, and was "):
        check_recipe(saved, recipe_of(_with("there")))


def test_a_run_that_noted_only_the_name_of_its_start_is_resumed(data: Path) -> None:
    saved = {**recipe_of(_with("there")), "init": "start"}
    check_recipe(saved, recipe_of(_with("there")))
    start_checkpoint(data / "there" / "another", b"weights")
    with pytest.raises(InputError, match=r"init is another with weights .*, and was start when"):
        check_recipe(saved, recipe_of(_with("there", init=data / "there" / "another")))


def test_a_start_without_weights_is_named(data: Path) -> None:
    (data / "there" / "start" / WEIGHTS).unlink()
    with pytest.raises(InputError, match=rf"start/{WEIGHTS} cannot be read \(No such file"):
        recipe_of(_with("there"))


def test_weights_that_changed_since_are_refused(data: Path) -> None:
    """Of the same name, as all runs' are: in another place, or trained again."""
    saved = recipe_of(_with("there"))
    start_checkpoint(data / "other" / "start", b"weights")
    check_recipe(saved, recipe_of(_with("there", init=data / "other" / "start")))
    start_checkpoint(data / "other" / "start", b"others")
    with pytest.raises(InputError, match=r"init is start with weights .*, and was start with w"):
        check_recipe(saved, recipe_of(_with("there", init=data / "other" / "start")))


@pytest.mark.parametrize(
    ("names", "share", "wrong"),
    [
        (["shop"], 0.3, "photos.1 is absent, and was other with data .*"),
        (["shop", "other", "new"], 0.3, "photos.2 is new with data .*, and was absent"),
        (["other", "shop"], 0.3, "photos.0 is other with data .*, and was shop with data .*"),
        (["shop", "other"], [0.2, 0.1], "photo_share is absent, and was 0.3"),
    ],
)
def test_directories_of_photos_stay_as_many_and_in_their_order(
    data: Path, names: list[str], share: object, wrong: str
) -> None:
    for name in ("other", "new"):
        shutil.copytree(data / "there" / "shop", data / "there" / name)
    saved = recipe_of(_with("there", photos=[data / "there" / name for name in ("shop", "other")]))
    now = _with("there", photos=[data / "there" / name for name in names], photo_share=share)
    with pytest.raises(InputError, match=f"resume: {wrong} when the run began"):
        check_recipe(saved, recipe_of(now))


def test_data_that_changed_in_a_second_directory_are_refused(data: Path) -> None:
    shutil.copytree(data / "there" / "shop", data / "there" / "other")
    settings = _with("there", photos=[data / "there" / "shop", data / "there" / "other"])
    saved = recipe_of(settings)
    (data / "there" / "other" / "q.png").write_bytes(b"repaired")
    with pytest.raises(InputError, match=r"resume: photos.1 is other with data .*, and was other "):
        check_recipe(saved, recipe_of(settings))


def test_data_that_are_gone_are_named(data: Path) -> None:
    shutil.rmtree(data / "there" / "shop")
    with pytest.raises(InputError, match="shop: no such file or directory"):
        recipe_of(_with("there"))


def test_resume_with_another_recipe_is_refused_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.write_pools(tmp_path)
    train(config(tmp_path, stages=STAGES[:1]), show_progress=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(loop, "_Run", None)
    longer = (dataclasses.replace(STAGES[0], steps=9),)
    wider = dataclasses.replace(MODEL, embedding_dim=64)
    for wrong, change in (
        ("stages.0.steps is 9, and was 4", {"stages": longer}),
        ("model.embedding_dim is 64, and was 32", {"model": wider}),
    ):
        with pytest.raises(InputError, match=wrong):
            train(config(tmp_path, **{"stages": STAGES[:1], **change}), True, show_progress=False)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert load_progress(tmp_path / STATE).recipe == recipe_of(config(tmp_path, stages=STAGES[:1]))


def test_a_state_without_recipe_is_none(tmp_path: Path) -> None:
    save_file({}, tmp_path / STATE, {"progress": '{"stage": 1, "step": 2}'})
    with pytest.raises(InputError, match=r"holds no training state .*recipe"):
        train(config(tmp_path), resume=True, show_progress=False)
