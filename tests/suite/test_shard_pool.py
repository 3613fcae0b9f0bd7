"""Training batches from shards: exact pictures, slices to the bit, bad rows replaced, counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_suites import pairs_of, small

from tigerfg.benchmark.suite import Manifest, Pair, build
from tigerfg.benchmark.suite.shard_file import write_shard
from tigerfg.errors import InputError
from tigerfg.files import sha256_file
from tigerfg.images import letterbox, load_image
from tigerfg.text import item_text
from tigerfg.training.shards import ShardPool

Q, S = 24, 40


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """Three shards of 64, 64 and 20 pairs; not to be altered."""
    out = tmp_path_factory.mktemp("suite")
    build(out, small(148, 0, wrong_box=0.2), workers=1)
    return out


@pytest.fixture
def pool(suite) -> ShardPool:
    return ShardPool(suite, Q, S, unknown_words=0.0)


def draw(pool: ShardPool, count: int, step: int = 0):
    return pool.draw(count, np.random.default_rng((5, step)))


def by_crop(suite: Path) -> dict[bytes, Pair]:
    """The suite's pairs by the pixels of their letterboxed crops."""
    return {letterbox(pair.query_image, Q)[0].tobytes(): pair for pair in pairs_of(suite)}


def test_rows_are_the_pairs_of_the_suite(suite, pool):
    pairs = by_crop(suite)
    numbers = {pair.product_id: pair.product for pair in pairs.values()}
    rows = draw(pool, 148)
    crops, extents = rows.crops()
    targets, target_extents = rows.crops()
    scenes = rows.scenes()
    assert len({crop.tobytes() for crop in crops}) == 148  # a draw of all is every pair once
    assert crops.dtype == scenes.pictures.dtype == np.uint8
    for i, crop in enumerate(crops):
        pair = pairs[crop.tobytes()]
        assert rows.products[i] == pair.product
        np.testing.assert_array_equal(extents[i], letterbox(pair.query_image, Q)[1])
        picture = load_image(pair.item_image)
        pixels, extent = letterbox(picture, S)
        np.testing.assert_array_equal(scenes.pictures[i], pixels)
        np.testing.assert_array_equal(scenes.extents[i], extent)
        scale = np.float64(S / max(picture.size))
        # float32 keeps 24 bits of numbers up to 64
        np.testing.assert_allclose(scenes.boxes[i], np.array(pair.target_box) * scale, rtol=1e-6)
        others = [
            (numbers.get(name, -1), np.array(box) * scale) for name, box in pair.objects[1:]
        ] or [(-1, np.zeros(4))]
        shown = [n for n, box in others if np.abs(scenes.other_boxes[i] - box).max() < 1e-5]
        assert scenes.other_products[i] in shown
        target, target_extent = letterbox(load_image(pair.item_image, pair.target_box), Q)
        np.testing.assert_array_equal(targets[i], target)
        np.testing.assert_array_equal(target_extents[i], target_extent)
    assert scenes.boxed.all()
    assert scenes.other_products.dtype == np.int64
    assert (scenes.other_products >= 0).sum() > 20
    assert not pool.skipped


def test_a_draw_is_whole_row_groups(suite, pool):
    pairs = by_crop(suite)
    for step in range(8):
        crops, _ = draw(pool, 64, step).crops()
        shards = {pairs[crop.tobytes()].pair_id[:6] for crop in crops}
        assert len(shards) <= 2  # 64 of one shard, or the short one and another
    seen = {
        pairs[crop.tobytes()].pair_id
        for step in range(150)
        for crop in draw(pool, 20, step).crops()[0]
    }
    assert len(seen) == 148  # small draws reach every row: a chance of 1e-6 to miss one


def test_draws_are_deterministic_and_differ_by_step(pool):
    a, b, c = draw(pool, 30), draw(pool, 30), draw(pool, 30, step=1)
    np.testing.assert_array_equal(a.products, b.products)
    np.testing.assert_array_equal(a.scenes().pictures, b.scenes().pictures)
    assert a.texts() == b.texts()
    assert not np.array_equal(a.crops()[0], c.crops()[0])


@pytest.mark.parametrize("part", [slice(0, 7), slice(7, 20), slice(19, 20), slice(20, 20)])
def test_slices_give_what_the_whole_gives(suite, part):
    pool = ShardPool(suite, Q, S, unknown_words=0.5)
    whole, some = draw(pool, 20), draw(pool, 20)[part]
    np.testing.assert_array_equal(some.products, whole.products[part])
    for _ in range(2):
        for mine, theirs in zip(some.crops(), whole.crops(), strict=True):
            np.testing.assert_array_equal(mine, theirs[part])
        for mine, theirs in zip(some.scenes(), whole.scenes(), strict=True):
            np.testing.assert_array_equal(mine, theirs[part])
        assert some.texts() == whole.texts()[part]


def test_no_rows_and_more_rows_than_there_are(pool):
    nothing = draw(pool, 0)
    assert nothing.products.shape == (0,)
    assert nothing.products.dtype == np.int64
    assert nothing.crops()[0].shape == nothing.crops()[0].shape == (0, Q, Q, 3)
    assert nothing.scenes().pictures.shape == (0, S, S, 3)
    assert nothing.scenes().boxes.shape == (0, 4)
    assert nothing.texts() == []
    assert len(draw(pool, 400).products) == 400


def test_texts_are_full_for_half_and_shorter_else(suite, pool):
    full = {item_text(pair.item()) for pair in pairs_of(suite)}
    rows = draw(pool, 148)
    share = np.mean([text in full for text in rows.texts()])
    assert 0.4 < share < 0.75  # a half, and a few whose shorter text is the full one
    assert rows.texts() != rows.texts()
    strange = ShardPool(suite, Q, S, unknown_words=1.0)
    assert np.mean([text in full for text in draw(strange, 148).texts()]) < 0.1


def damaged(suite: Path, out: Path, changes: dict[int, dict]) -> ShardPool:
    """A copy of the suite whose first shard has rows with other values."""
    shutil.copytree(suite, out)
    path = out / "train" / "00000.parquet"
    rows = pairs_of(suite)[:64]
    write_shard(path, [Pair(**{**vars(row), **changes.get(i, {})}) for i, row in enumerate(rows)])
    manifest = Manifest.load(out)
    manifest.shards[0] |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest.save(out)
    return ShardPool(out, Q, S)


def test_bad_rows_are_replaced_counted_and_named(suite, tmp_path, caplog):
    pairs = pairs_of(suite)
    cut = pairs[5].item_image[: len(pairs[5].item_image) // 2]
    changes = {
        3: {"query_image": b"no picture"},
        4: {"query_image": b""},
        5: {"item_image": cut},
        6: {"product": 99},
        7: {"product": -1},
        8: {"target_box": (5, 5, 5, 9)},
        9: {"target_box": (900, 900, 950, 950)},
        10: {"title": "", "category": "", "attributes": {}, "description": ""},
    }
    pool = damaged(suite, tmp_path / "suite", changes)
    for _ in range(2):  # counted once, however often they are drawn
        rows = pool.read(np.stack([np.zeros(12, int), np.arange(12)], axis=1))
        assert [row.pair.pair_id for row in rows] == [
            f"p0000{int(i in (3, 4, 5, 6, 7))}-{i:05d}" for i in range(12)
        ]
        assert [row.box is None for row in rows] == [i in (8, 9) for i in range(12)]
        assert pool.skipped == {
            "query_image: not a picture that can be decoded": 2,
            "item_image: not a picture that can be decoded": 1,
            "product: not a number below the manifest's products": 2,
        }
    told = "\n".join(caplog.messages)
    picture = "query_image: not a picture that can be decoded"
    assert told.count(f"00000.parquet: row 3 left out: {picture}") == 1
    assert told.count(" left out: ") == 5
    rows = draw(pool, 148)
    scenes = rows.scenes()
    assert (~scenes.boxed).sum() == 2
    assert not scenes.boxes[~scenes.boxed].any()
    first, second = rows.crops(), rows.crops()  # without a box the crop itself is the second one
    np.testing.assert_array_equal(first[0][~scenes.boxed], second[0][~scenes.boxed])
    assert "" in rows.texts()
    parts = [draw(pool, 148)[:70], draw(pool, 148)[70:]]
    np.testing.assert_array_equal(rows.products, np.concatenate([p.products for p in parts]))


@pytest.mark.parametrize("read_before", [False, True])
def test_bad_rows_of_the_only_row_group_are_replaced_by_the_next(tmp_path, read_before):
    build(tmp_path / "whole", small(40, 0), workers=1)
    bad = {3: 5, 4: 5, 39: 0}  # row -> its replacement
    changes = {row: {"item_image": b"no picture"} for row in bad}
    pool = damaged(tmp_path / "whole", tmp_path / "suite", changes)
    places = np.stack([np.zeros(40, int), np.arange(40)], axis=1)
    if read_before:  # what is known to be bad changes no row
        pool.read(places[::-1])
    rows = [row.pair.pair_id for row in pool.read(places)]
    assert rows == [f"p00000-{bad.get(row, row):05d}" for row in range(40)]
    assert pool.skipped == {"item_image: not a picture that can be decoded": 3}


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "a flipped bit", "other columns", "attributes"]
)
def test_shards_damaged_later_are_counted_named_and_passed_over(suite, tmp_path, caplog, damage):
    shutil.copytree(suite, tmp_path / "suite")
    pool = ShardPool(tmp_path / "suite", Q, S)
    path = tmp_path / "suite" / "train" / "00001.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "a flipped bit":  # most likely in a picture, which might still be decoded
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        table = parquet.read_table(path)
        at = table.schema.get_field_index("attributes")
        if damage == "other columns":
            table = table.drop_columns(["title"])
        else:
            texts = pa.array(["{", "[1]"] * 32, pa.string())
            table = table.set_column(at, table.schema.field(at), texts)
        parquet.write_table(table, path)
    crops, _ = draw(pool, 148).crops()
    pairs = by_crop(suite)
    drawn = [pairs[crop.tobytes()].pair_id for crop in crops]
    assert len(drawn) == 148
    assert {name[:6] for name in drawn} == {"p00000", "p00002"}
    if damage == "attributes":
        assert pool.skipped == {"attributes: not a JSON object": 64}
        assert len(caplog.messages) == 11  # ten named, then that there are more
    else:
        reason = "row group: its shard is missing, damaged or of another schema"
        assert pool.skipped == {reason: 1}
        assert caplog.messages == [f"{path}: rows from 0 left out: {reason}"]


def test_a_product_of_a_wrong_number_is_unknown_beside_others(suite, tmp_path):
    pairs = pairs_of(suite)[:64]
    beside = next(pair.objects[1][0] for pair in pairs if len(pair.objects) > 1)
    wrong = {i: {"product": 99} for i, pair in enumerate(pairs) if pair.product_id == beside}
    pool = damaged(suite, tmp_path / "suite", wrong)
    rows = pool.read(np.stack([np.zeros(64, int), np.arange(64)], axis=1))
    numbers = {n for row in rows if row.pair.pair_id < "p00001" for n, _ in row.others}
    assert -1 in numbers
    assert 99 not in numbers


def test_a_suite_without_usable_rows_is_an_error(suite, tmp_path):
    shutil.copytree(suite, tmp_path / "suite")
    pool = ShardPool(tmp_path / "suite", Q, S)
    for path in (tmp_path / "suite" / "train").iterdir():
        path.write_bytes(b"nothing")
    remedy = f"delete the shards that `tigerfg suite {tmp_path / 'suite'} --verify` names, then run"
    with pytest.raises(InputError, match=f"none of its rows can be used: {remedy}"):
        draw(pool, 3).crops()


def test_directories_that_are_no_training_suite(suite, tmp_path):
    with pytest.raises(InputError, match="it has no manifest"):
        ShardPool(tmp_path, Q, S)
    build(tmp_path / "empty", small(0, 0), workers=1)
    with pytest.raises(InputError, match="0 of 0 training pairs"):
        ShardPool(tmp_path / "empty", Q, S)
    shutil.copytree(suite, tmp_path / "part")
    values = json.loads((suite / "manifest.json").read_text())
    values["shards"].pop()
    (tmp_path / "part" / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="128 of 148 training pairs are there"):
        ShardPool(tmp_path / "part", Q, S)


def test_a_shard_that_is_missing_or_of_another_size_is_named(tmp_path):
    build(tmp_path, small(70, 0), workers=1)
    path = tmp_path / "train" / "00001.parquet"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    told = f"{size - 100} bytes, and the manifest says {size}: delete it, then run the command"
    with pytest.raises(InputError, match=f"00001.parquet: {told}"):
        ShardPool(tmp_path, Q, S)
    path.unlink()  # as it says
    with pytest.raises(InputError, match=r"00001.parquet: missing: run the command"):
        ShardPool(tmp_path, Q, S)
    build(tmp_path, small(70, 0), workers=1)
    assert ShardPool(tmp_path, Q, S).products


def test_few_files_are_open(suite, pool, monkeypatch):
    opened = []
    real = pool._open
    monkeypatch.setattr("tigerfg.training.shards._OPEN_SHARDS", 1)
    monkeypatch.setattr(ShardPool, "_open", lambda self, shard: opened.append(shard) or real(shard))
    small_pool = ShardPool(suite, Q, S)
    for step in range(6):
        _ = draw(small_pool, 10, step).products
    assert small_pool._file.cache_info().currsize == 1
    assert set(opened) == {0, 1, 2}
