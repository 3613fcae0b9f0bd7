"""Building a suite: the same bytes however it is made, kills included; nothing else is accepted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from pyarrow import parquet
from small_suites import pairs_of, small, tree

from tigerfg.benchmark.suite import Manifest, build, verify
from tigerfg.benchmark.suite.files import sole_builder
from tigerfg.catalog import read_items, read_queries
from tigerfg.errors import InputError

PAIRS = 300


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """A finished suite, made by one process; not to be altered."""
    out = tmp_path_factory.mktemp("suite")
    build(out, small(PAIRS), workers=1)
    return out


def test_everything_is_there_and_verifies(suite):
    manifest = Manifest.load(suite)
    assert manifest.complete
    assert manifest.pairs == PAIRS
    assert [shard["rows"] for shard in manifest.shards] == [64, 64, 64, 64, 44]
    assert len(pairs_of(suite)) == PAIRS
    assert len({pair.pair_id for pair in pairs_of(suite)}) == PAIRS
    assert verify(suite) == []


def test_two_workers_make_the_same_bytes(suite, tmp_path):
    told = []
    report = build(tmp_path, small(PAIRS), workers=2, progress=lambda *args: told.append(args))
    assert tree(tmp_path) == tree(suite)
    assert (report.pairs, report.made, report.products) == (PAIRS, PAIRS, 4 * 8 + 6)
    assert report.bytes == sum(p.stat().st_size for p in (suite / "train").iterdir())
    assert told[0] == ("evaluation", 0, 6)
    assert told[-1] == ("pairs", PAIRS, PAIRS)
    assert ("pairs", 0, PAIRS) in told


def test_a_finished_suite_is_left_alone(suite, tmp_path):
    shutil.copytree(suite, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()}
    assert build(tmp_path, small(PAIRS), workers=1).made == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()} == before
    assert tree(tmp_path) == tree(suite)


def test_what_is_missing_is_made_again(suite, tmp_path):
    shutil.copytree(suite, tmp_path, dirs_exist_ok=True)
    (tmp_path / "train" / "00002.parquet").unlink()
    (tmp_path / "train" / ".00003.parquet.77.part").write_bytes(b"half")
    assert build(tmp_path, small(PAIRS), workers=1).made == 64
    assert tree(tmp_path) == tree(suite)


def test_a_shard_that_was_changed_is_not_taken(suite, tmp_path):
    shutil.copytree(suite, tmp_path, dirs_exist_ok=True)
    shard = tmp_path / "train" / "00004.parquet"
    shard.write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"00004\.parquet: not the shard that was made"):
        build(tmp_path, small(PAIRS), workers=1)
    manifest = Manifest.load(tmp_path)
    manifest.shards.pop()  # as if it had appeared right before a kill
    manifest.save(tmp_path)
    with pytest.raises(InputError, match=r"00004\.parquet: not a whole shard"):
        build(tmp_path, small(PAIRS), workers=1)
    shutil.copy(tmp_path / "train" / "00003.parquet", shard)
    with pytest.raises(InputError, match="not the shard that was made"):
        build(tmp_path, small(PAIRS), workers=1)
    shutil.copy(suite / "train" / "00004.parquet", shard)
    assert build(tmp_path, small(PAIRS), workers=1).made == 0
    assert tree(tmp_path) == tree(suite)


def test_verify_names_what_is_wrong(suite, tmp_path):
    shutil.copytree(suite, tmp_path, dirs_exist_ok=True)
    shard, other = tmp_path / "train" / "00001.parquet", tmp_path / "train" / "00003.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    other.unlink()
    next((tmp_path / "images" / "cluttered").iterdir()).write_bytes(b"other")
    with open(tmp_path / "standard" / "items.jsonl", "a") as stream:
        stream.write("\n")
    problems = "\n".join(verify(tmp_path))
    assert "train/00001.parquet: its bytes differ" in problems
    assert "train/00003.parquet: missing" in problems
    assert "standard/items.jsonl: its bytes differ" in problems
    assert "images: 18 pictures, 18 expected" in problems
    assert len(verify(tmp_path)) == 4


def test_what_verify_says_mends_the_suite(suite, tmp_path):
    shutil.copytree(suite, tmp_path, dirs_exist_ok=True)
    shard, items = tmp_path / "train" / "00001.parquet", tmp_path / "standard" / "items.jsonl"
    for path in (shard, items, next((tmp_path / "images" / "cluttered").iterdir())):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    again = "run the command that made the suite again"
    assert [problem.rpartition(": ")[2] for problem in verify(tmp_path)] == [
        f"delete it, then {again}",
        f"delete it, then {again}",
        f"delete images/, then {again}",
    ]
    with pytest.raises(
        InputError, match=r"standard/items\.jsonl: not the file that was made: delete"
    ):
        build(tmp_path, small(PAIRS), workers=1)
    shard.unlink()
    items.unlink()
    assert [problem.partition(": ")[2] for problem in verify(tmp_path)[:2]] == 2 * [
        f"missing: {again}"
    ]
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "eval-records").mkdir()  # as if killed right before it was removed
    (tmp_path / "eval-records" / "00000.json").write_text("{}")
    assert build(tmp_path, small(PAIRS), workers=1).made == 64
    assert tree(tmp_path) == tree(suite)
    assert verify(tmp_path) == []


def test_evaluation_sets_are_made_again_after_a_stop_in_the_middle(suite, tmp_path):
    shutil.copytree(suite, tmp_path, dirs_exist_ok=True)
    for picture in (tmp_path / "images" / "queries").iterdir():
        picture.unlink()

    def stop(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, small(PAIRS), workers=1, progress=stop)
    assert not Manifest.load(tmp_path).complete
    build(tmp_path, small(PAIRS), workers=1)
    assert tree(tmp_path) == tree(suite)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": PAIRS + 1}, "settings pairs = 300, not 301"),
        ({"seed": 1}, "settings seed = 0, not 1"),
        ({"wrong_text": 0.5}, "settings wrong_text = 0.0, not 0.5"),
    ],
)
def test_other_settings_on_a_suite_are_refused(suite, changes, message):
    before = tree(suite)
    with pytest.raises(InputError, match=message):
        build(suite, small(**{"pairs": PAIRS, **changes}), workers=1)
    assert tree(suite) == before


def test_other_versions_are_refused(suite, tmp_path):
    shutil.copytree(suite, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "version": 99}))
    with pytest.raises(InputError, match="version 99, this tigerfg reads version 1"):
        Manifest.load(tmp_path)
    path.write_text(json.dumps({**values, "writers": {**values["writers"], "pillow": "1.0"}}))
    with pytest.raises(InputError, match=r"writers pillow = '1\.0'"):
        build(tmp_path, small(PAIRS), workers=1)
    for broken in (b"{", b"[]", b"{}", b'{"format": "other"}', b"\xff", b"[" * 200_000):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="not the manifest of a suite"):
            Manifest.load(tmp_path)
    shard = values["shards"][0]
    for damaged, place in (
        ({"shards": None}, "shards: None; give a list"),
        ({"shards": [{**shard, "bytes": None}]}, "shards.0.bytes: None"),
        ({"settings": {**values["settings"], "pairs": "64"}}, "settings.pairs: '64'"),
        ({"evaluation": {}}, "evaluation.files: it is missing"),
        ({"products": -1}, "products: -1"),
    ):
        path.write_text(json.dumps({**values, **damaged}))
        with pytest.raises(InputError, match=f"manifest.json: damaged: {place}"):
            Manifest.load(tmp_path)
    with pytest.raises(InputError, match="it has no manifest"):
        Manifest.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["standard/items.jsonl", "train/00000.parquet", "photo.jpg", "manifest.json", "train"]
)
def test_a_directory_of_other_files_is_left_as_it_is(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    (tmp_path / ".download.part").write_text("half")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"give a new or empty directory|not the manifest"):
        build(tmp_path, small(PAIRS), workers=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_start_left_is_built_on_and_parts_of_others_are_kept(suite, tmp_path):
    (tmp_path / "train").mkdir()
    for name in (".lock", "cutouts.sqlite", "cutouts.sqlite-wal", ".manifest.json.77.part"):
        (tmp_path / name).touch()
    build(tmp_path, small(PAIRS), workers=1)
    assert tree(tmp_path) == tree(suite)
    kept = [tmp_path / ".mine.part", tmp_path / "notes" / ".mine.part"]
    kept[1].parent.mkdir()
    for part in kept:
        part.touch()
    build(tmp_path, small(PAIRS), workers=1)
    assert all(part.exists() for part in kept)


def test_one_builder_at_a_time(suite):
    with sole_builder(suite), pytest.raises(InputError, match="another process is building"):
        build(suite, small(PAIRS), workers=1)


BUILDER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from small_suites import small
    from tigerfg.benchmark.suite import build

    if __name__ == "__main__":
        build(Path(sys.argv[2]), small(int(sys.argv[3])), workers=2)
"""


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def test_a_killed_build_goes_on_to_the_same_bytes(suite, tmp_path):
    """kill -9 of the builder at three moments; its workers end too, then the build is finished."""
    script, out = tmp_path / "builder.py", tmp_path / "suite"
    script.write_text(textwrap.dedent(BUILDER))
    rng = random.Random(7)
    made = 0
    for _ in range(3):
        builder = subprocess.Popen(
            [sys.executable, str(script), str(Path(__file__).parent), str(out), str(PAIRS)]
        )
        wanted = made + 1  # one shard more than the last time
        while builder.poll() is None and len(list(out.glob("train/*.parquet"))) < wanted:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        alive = children(builder.pid) if builder.poll() is None else []
        builder.kill()
        builder.wait()
        deadline = time.monotonic() + 100  # a busy machine takes its time
        while any(Path(f"/proc/{pid}").exists() for pid in alive):
            assert time.monotonic() < deadline, "a worker outlived its parent"
            time.sleep(0.02)
        whole = list(out.glob("train/*.parquet"))
        made = len(whole)
        assert all(parquet.read_metadata(path).num_rows in (64, 44) for path in whole)
    assert builder.returncode == -signal.SIGKILL
    build(out, small(PAIRS), workers=1)
    assert tree(out) == tree(suite)
    assert verify(out) == []


def test_interrupting_leaves_whole_files_only(tmp_path):
    def interrupt(what: str, done: int, total: int | None) -> None:
        if what == "pairs" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, small(64 * 6, 0), workers=2, progress=interrupt)
    names = [name for name in os.listdir(tmp_path / "train") if not name.endswith(".parquet")]
    assert names == []
    assert not Manifest.load(tmp_path).complete
    assert verify(tmp_path) == [
        "the suite is not complete: run the command that made the suite again"
    ]


def test_evaluation_sets_are_what_the_readers_read(suite):
    read = {
        layout: (list(read_items(suite / layout)), list(read_queries(suite / layout)))
        for layout in ("standard", "cluttered")
    }
    assert read["standard"][1] == read["cluttered"][1]
    training = {pair.product_id for pair in pairs_of(suite)}
    for layout, (items, queries) in read.items():
        assert len(items) == len(queries) == 6
        for item, query in zip(items, queries, strict=True):
            assert Path(item.image).is_file()
            assert Path(query.image).is_file()
            assert query.item_ids == (item.item_id,)
            assert item.extra["layout"] == layout
            shown = [entry["product_id"] for entry in item.extra["objects"]]
            assert shown[0] == item.extra["product_id"]
            assert len(shown) == 1 if layout == "standard" else 3 <= len(shown) <= 6
            assert list(item.target_box) == item.extra["objects"][0]["box"]
            assert not training & set(shown)


def test_several_items_a_product_are_all_right_answers(tmp_path):
    settings = small(0, 5, items_per_product=3, queries_per_product=2, wrong_text=0.4)
    build(tmp_path, settings, workers=1)
    assert Manifest.load(tmp_path).complete
    for layout in ("standard", "cluttered"):
        items = {item.item_id: item for item in read_items(tmp_path / layout)}
        queries = list(read_queries(tmp_path / layout))
        assert len(items) == 15
        assert len(queries) == 10
        for query in queries:
            assert len(query.item_ids) == 3
            shown = {items[item_id].extra["product_id"] for item_id in query.item_ids}
            assert shown == {query.extra["product_id"]}
        pictures = {Path(item.image).read_bytes() for item in items.values()}
        assert len(pictures) == 15
        assert any(item.extra["wrong_text"] for item in items.values())
    assert verify(tmp_path) == []


@pytest.mark.parametrize(("pairs", "products"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_tiny_suites(tmp_path, pairs, products):
    report = build(tmp_path, small(pairs, products), workers=1)
    assert report.pairs == pairs
    assert verify(tmp_path) == []
