"""``tigerfg suite``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tigerfg.benchmark.suite import Manifest
from tigerfg.cli import app as cli

SMALL = ("--pairs", 20, "--eval", 3, "--query-size", 32, "--item-size", 48, "--workers", 1)


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.app, ["suite", *map(str, args)])


def test_build_again_verify_and_damage(tmp_path):
    out = tmp_path / "out"
    made = run(out, *SMALL, "--wrong-text", 0.5, "--items-per-product", 2)
    assert made.exit_code == 0, made.output
    assert "20 pairs of 3 products, 3 evaluation products in" in made.stdout
    assert "20 pairs made at " in made.stdout
    assert "GB a million" in made.stdout
    assert "were there" not in made.stdout
    size = (out / "train" / "00000.parquet").stat().st_size
    assert f": {size / 1e6:.1f} MB of shards" in made.stdout
    settings = Manifest.load(out).settings
    assert (settings["wrong_text"], settings["items_per_product"]) == (0.5, 2)
    again = run(out, *SMALL, "--wrong-text", 0.5, "--items-per-product", 2)
    assert again.exit_code == 0
    assert "made at" not in again.stdout
    assert "20 pairs in shards that were there, with the right size: --verify" in again.stdout
    assert "20 pairs in 1 shard and the evaluation sets are as" in run(out, "--verify").stdout
    other = run(out, *SMALL)
    assert other.exit_code == 1
    assert "made with settings" in other.stderr
    (out / "standard" / "items.jsonl").write_text("")
    damaged = run(out, "--verify")
    assert damaged.exit_code == 1
    assert "standard/items.jsonl: its bytes differ" in damaged.stderr
    assert "delete it, then run the command that made the suite again" in damaged.stderr


def test_rows_of_a_catalogue_that_were_left_out_are_listed(tmp_path):
    rows = []
    for number in range(8):
        picture = Image.new("RGB", (60, 60), "white" if number else "black")
        picture.paste((200, number * 20, 90), (10, 10, 50, 40))
        picture.save(tmp_path / f"{number}.png")
        rows.append({"item_id": f"i{number}", "image": f"{number}.png", "title": "box"})
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(tmp_path / "out", *SMALL, "--catalog", path)
    assert done.exit_code == 0, done.output
    assert "rows left out" in done.stdout
    assert "no target_box, no alpha channel and no white background" in done.stdout
    assert "i0: " in done.stdout
    assert "20 pairs of 7 products" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--verify"], "no suite: it has no manifest.json"),
        (["--pairs", "-1"], "--pairs"),
        (["--wrong-box", "2"], "--wrong-box"),
        (["--catalog", "nowhere.jsonl"], "--catalog"),
        (["--noise-in", "test"], "--noise-in"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, args, message):
    done = run(tmp_path / "out", *args)
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
