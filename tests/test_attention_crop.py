"""The attention crop: its window against a plain search, the second look, the manifest."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import PATCH, SIZE, FakeBundle, FakeEngine, save_picture
from PIL import Image

from tigerfg.attention_crop import AttentionCrop, Window
from tigerfg.bundle import MANIFEST_FILE, Bundle
from tigerfg.encoder import EncodedItem, Encoder
from tigerfg.engines.base import ItemEncoding
from tigerfg.errors import BundleError, InputError
from tigerfg.images import load_image, preprocess
from tigerfg.records import Item
from tigerfg.searcher import Searcher

CROP = AttentionCrop(threshold=0.6, weight=0.75)


def plain_window(grid: np.ndarray, size: tuple[int, int], patch: int, threshold: float) -> Window:
    """The oracle: the map smoothed and its patches reached one by one, pixels asked one by one."""
    sharp, last = grid.astype(np.float64), (grid.shape[0] - 1, grid.shape[1] - 1)
    grid = np.zeros(grid.shape)
    for place in np.ndindex(grid.shape):
        for step in itertools.product((-1, 0, 1), repeat=2):
            near = tuple(
                min(max(p + s, 0), end) for p, s, end in zip(place, step, last, strict=True)
            )
            grid[place] += sharp[near] * (2 - abs(step[0])) * (2 - abs(step[1]))
    peak = max(np.ndindex(grid.shape), key=lambda place: grid[place])
    reached, todo = set(), [peak]
    while todo:
        row, column = todo.pop()
        inside = 0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]
        if (row, column) in reached or not inside or grid[row, column] < threshold * grid[peak]:
            continue
        reached.add((row, column))
        todo += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    width, height = size
    # the last patch of a direction shows what lies behind it as well
    xs = [x for x in range(width) if min(x // patch, last[1]) in {c for _, c in reached}]
    ys = [y for y in range(height) if min(y // patch, last[0]) in {r for r, _ in reached}]
    return Window(min(xs), min(ys), max(xs) + 1, max(ys) + 1)


@pytest.mark.parametrize("seed", range(60))
def test_window_is_that_of_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    patch = int(rng.integers(1, 17))
    size = tuple(int(side) for side in rng.integers(1, 8 * patch + 1, 2))
    # as `patch_mask` has them: a patch is there if its centre lies inside, the first one always
    columns, rows = (max(1, math.ceil(side / patch - 0.5)) for side in size)
    grid = rng.random((rows, columns), np.float32) ** rng.integers(1, 6)
    crop = AttentionCrop(threshold=float(rng.uniform(0.05, 1)), weight=1.0)
    found = crop.window(grid, size, patch)
    assert found == plain_window(grid, size, patch, crop.threshold)
    assert 0 <= found.left < found.right <= size[0]
    assert 0 <= found.top < found.bottom <= size[1]


def test_a_snake_is_followed_and_what_only_touches_at_a_corner_is_not():
    cells = np.zeros((5, 5), np.float32)
    cells[0, :] = cells[:, 4] = 1
    cells[0, 0] = 2  # the peak, at one end of it
    cells[2, 1] = 2  # as strong, but an island
    # wide enough that smoothing, which reaches one patch, closes no gap and fills no corner
    crop, wide = AttentionCrop(threshold=0.3, weight=1.0), np.ones((4, 4), np.float32)
    assert crop.window(np.kron(cells, wide), (200, 200), 10) == Window(0, 0, 200, 200)
    cells[1:, 4] = 0
    assert crop.window(np.kron(cells, wide), (200, 200), 10) == Window(0, 0, 200, 40)
    cells[0, 2] = 0  # at its edges smoothed to 3/4 and 1/4 of 1 beside it
    assert crop.window(np.kron(cells, wide), (200, 200), 10) == Window(0, 0, 80, 40)


def test_one_patch_and_a_flat_map_are_the_whole_picture():
    assert CROP.window(np.ones((1, 1), np.float32), (3, 1), 16) == Window(0, 0, 3, 1)
    assert CROP.window(np.full((2, 3), 1 / 6, np.float32), (40, 32), 16) == Window(0, 0, 40, 32)


def test_join_is_the_mean_direction_of_both():
    rng = np.random.default_rng(0)
    both = rng.normal(size=(2, 7, 16)).astype(np.float32)
    items, crops = both / np.linalg.norm(both, axis=2, keepdims=True)
    found = CROP.join(items, crops)
    expected = items.astype(np.float64) + 0.75 * crops
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert found.dtype == np.float32
    # a few roundings of float32 in numbers up to 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7)
    assert CROP.join(items[:0], crops[:0]).shape == (0, 16)
    assert not AttentionCrop(0.25, 1.0).join(items, -items).any()  # no NaN; the encoder refuses it


class PeakEngine(FakeEngine):
    """Its map's peak is the brightest patch; counts the pictures of the query tower."""

    def __init__(self) -> None:
        super().__init__()
        self.queries_seen = 0

    def encode_queries(self, pixels: np.ndarray, patch_mask: np.ndarray) -> np.ndarray:
        self.queries_seen += len(pixels)
        return super().encode_queries(pixels, patch_mask)

    def encode_items(self, pixels, patch_mask, token_ids, token_mask) -> ItemEncoding:
        side = SIZE // PATCH
        shape = (len(pixels), 3, side, PATCH, side, PATCH)
        bright = pixels.reshape(shape).mean((1, 3, 5)).reshape(len(pixels), -1)
        weights = np.where(patch_mask, np.exp(8 * bright), 0)
        weights /= weights.sum(1, keepdims=True)
        embedding = super().encode_queries(pixels, patch_mask)
        return ItemEncoding(embedding, weights.astype(np.float32), token_mask.astype(np.float32))


def cropping(crop: AttentionCrop | None = CROP) -> FakeBundle:
    """Its queries are smaller than its items."""
    bundle = FakeBundle()
    bundle.attention_crop = crop
    bundle.preprocessing = replace(bundle.preprocessing, query_size=SIZE // 2)
    return bundle


def shot(column: int, row: int, seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A dark picture with a bright, coloured patch."""
    pixels = np.full((size[1], size[0], 3), 20, np.uint8)
    tile = np.random.default_rng(seed).integers(150, 256, (PATCH, PATCH, 3))
    part = pixels[row * PATCH :, column * PATCH :][:PATCH, :PATCH]
    part[:] = tile[: part.shape[0], : part.shape[1]]
    return Image.fromarray(pixels)


def turned_jpeg(image: Image.Image) -> bytes:
    """Three times as large, lying on its side, with the EXIF orientation that turns it upright."""
    lying = image.resize((3 * image.width, 3 * image.height)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(buffer := io.BytesIO(), "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def looked_at_twice(source: object, part: tuple[int, int, int, int], spec) -> np.ndarray:
    """The oracle: the embedding of a picture whose window is known."""
    image, engine = load_image(source, target_size=SIZE), FakeEngine()
    whole = engine.encode_queries(*preprocess([image], SIZE, spec)[:2])
    seen = engine.encode_queries(*preprocess([image.crop(part)], spec.query_size, spec)[:2])
    both = whole[0].astype(np.float64) + 0.75 * seen[0]
    return both / np.linalg.norm(both)


def test_items_are_looked_at_again_where_their_map_points():
    wide, grey = (SIZE, 30), np.asarray(shot(2, 2, 5).convert("L"))
    shots = [
        (shot(2, 1, 0), (16, 8, 24, 16)),
        (shot(0, 3, 1, wide), (0, 24, 8, 30)),  # of the last row and column less is there
        (shot(3, 0, 2, (29, SIZE)), (24, 0, 29, 8)),
        (turned_jpeg(shot(3, 2, 3)), (24, 16, 32, 24)),
        (np.asarray(shot(1, 0, 4).convert("RGBA")), (8, 0, 16, 8)),
        (grey, (16, 16, 24, 24)),
    ]
    bundle, engine = cropping(), PeakEngine()
    with closing(Encoder(bundle, engine, batch_size=2)) as encoder:
        found = encoder.encode_items([Item(f"i{n}", image) for n, (image, _) in enumerate(shots)])
    assert engine.queries_seen == len(shots)
    for (image, part), result in zip(shots, found, strict=True):
        expected = looked_at_twice(image, part, bundle.preprocessing)
        np.testing.assert_allclose(result.embedding, expected, rtol=0, atol=1e-6)
        assert result.embedding.dtype == np.float32
        assert result.grounding_map.sum() == pytest.approx(1, abs=1e-6)


def test_a_picture_of_the_callers_may_change_once_it_is_decoded():
    image, bundle = shot(2, 1, 0), cropping()
    expected = looked_at_twice(image.copy(), (16, 8, 24, 16), bundle.preprocessing)

    class Painter(PeakEngine):
        def encode_items(self, *arrays: np.ndarray) -> ItemEncoding:
            image.paste((255, 0, 0), (0, 0, SIZE, SIZE))
            return super().encode_items(*arrays)

    with closing(Encoder(bundle, Painter())) as encoder:
        (found,) = encoder.encode_items([Item("i", image)])
    np.testing.assert_allclose(found.embedding, expected, rtol=0, atol=1e-6)


def test_without_it_items_are_looked_at_once_and_queries_never_twice():
    engine = PeakEngine()
    with closing(Encoder(cropping(None), engine)) as encoder:
        encoder.encode_items([Item("i", shot(1, 1, 0))])
        assert engine.queries_seen == 0
    with closing(Encoder(cropping(), engine)) as encoder:
        encoder.encode_query(shot(1, 1, 0))
        assert engine.queries_seen == 1


class BrokenEngine(PeakEngine):
    """Items whose patch is in the first column: a map of NaN; in the second one: an embedding that
    is too short; in the third one: the crop's is."""

    def encode_items(self, pixels: np.ndarray, *arrays: np.ndarray) -> ItemEncoding:
        encoding = super().encode_items(pixels, *arrays)
        self.columns = encoding.grounding_map.argmax(1) % (SIZE // PATCH)
        encoding.grounding_map[self.columns == 0] = np.nan
        encoding.embedding[self.columns == 1] *= 0.5
        return encoding

    def encode_queries(self, pixels: np.ndarray, patch_mask: np.ndarray) -> np.ndarray:
        embedding = super().encode_queries(pixels, patch_mask)
        embedding[self.columns[self.columns != 1] == 2] = 0
        return embedding


def test_what_cannot_be_embedded_is_its_items_error_and_touches_no_other():
    bundle, columns = cropping(), (3, 0, 1, 2, 3)
    items = [Item(f"i{n}", shot(column, n % 4, n)) for n, column in enumerate(columns)]
    items.insert(1, Item("no", b"no picture"))
    with closing(Encoder(bundle, BrokenEngine())) as encoder:
        first, unread, lost, short, blind, last = encoder.encode_items(items)
    assert "not an image" in str(unread)
    assert isinstance(lost, EncodedItem)  # its window is the first patch; the map says what it is
    assert np.isnan(lost.grounding_map).all()
    assert "length 0.5 instead of 1" in str(short)
    assert "length 0 instead of 1" in str(blind)
    for result, column, number in ((first, 3, 0), (last, 3, 4)):
        part = (24, 8 * (number % 4), 32, 8 * (number % 4) + 8)
        expected = looked_at_twice(shot(column, number % 4, number), part, bundle.preprocessing)
        np.testing.assert_allclose(result.embedding, expected, rtol=0, atol=1e-6)


def test_two_looks_that_cancel_are_an_error():
    class Opposite(PeakEngine):
        def encode_items(self, *arrays: np.ndarray) -> ItemEncoding:
            self.items = super().encode_items(*arrays)
            return self.items

        def encode_queries(self, *_: np.ndarray) -> np.ndarray:
            return -self.items.embedding

    with closing(Encoder(cropping(AttentionCrop(0.6, 1.0)), Opposite())) as encoder:
        (found,) = encoder.encode_items([Item("i", shot(1, 1, 0))])
    assert "length 0 instead of 1" in str(found)


@pytest.fixture
def stored(tmp_path: Path):
    """Opens a catalogue of 100 pictures that were looked at twice, or once."""

    def make(name: str, *, twice: bool = True) -> Searcher:
        for number in range(100):
            save_picture(tmp_path / f"{number}.png", number)
        folder = tmp_path / name
        with Searcher.create(folder, cropping(CROP if twice else None), engine=PeakEngine()) as new:
            new.add(Item(f"i{n}", tmp_path / f"{n}.png", title="mug") for n in range(100))
        return Searcher.open(folder, cropping(), engine=PeakEngine())

    return make


@pytest.mark.parametrize(
    ("moved", "cosine", "says"),
    [
        (0, 1.0, None),
        (5, 0.9, None),
        (6, 0.9, "6 of 100 stored vectors .* below 0.99"),
        (1, 0.7, "1 of 100 stored vectors .* below 0.75"),
    ],
)
def test_verify_lets_a_few_windows_move(stored, monkeypatch, moved, cosine, says):
    encode = Encoder.encode_items

    def turned(self: Encoder, items: list[Item]) -> list[EncodedItem]:
        results = encode(self, items)
        for number, item in enumerate(results[:moved]):
            other = np.roll(item.embedding, 1)
            other -= (other @ item.embedding) * item.embedding
            other /= np.linalg.norm(other)
            vector = cosine * item.embedding + math.sqrt(1 - cosine**2) * other
            results[number] = item._replace(embedding=vector)
        return results

    monkeypatch.setattr(Encoder, "encode_items", turned)
    with stored("shop") as searcher:
        report = searcher.verify(sample=100)
    assert report.compared == 100
    assert report.ok is (says is None)
    assert report.moved == (moved if report.ok else 0)
    if says:
        assert re.search(says, report.problems[0])


@pytest.mark.parametrize(("found", "ok"), [((1.0, 1.0, 0.8), True), ((1.0, 0.8, 0.8), False)])
def test_of_a_few_one_window_may_move(stored, monkeypatch, found, ok):
    cosines = dict(zip("abc", found, strict=True))
    monkeypatch.setattr("tigerfg.verify._cosines", lambda *_: cosines)
    with stored("shop") as searcher:
        report = searcher.verify(sample=3)
    assert (report.ok, report.moved) == (ok, int(ok))


@pytest.mark.parametrize(
    ("least_parity", "cosine", "ok"),
    [(1.0, 0.985, False), (0.9955, 0.985, True), (0.9955, 0.98, False), (0.93, 0.74, True)],
)
@pytest.mark.parametrize("twice", [True, False])
def test_verify_lets_coarse_precisions_differ(stored, monkeypatch, least_parity, cosine, ok, twice):
    """As far as two of them may: 1 - .985 is 2.6 times .0045, at most it is four times."""
    monkeypatch.setattr(FakeBundle, "least_parity", least_parity)
    monkeypatch.setattr("tigerfg.verify._cosines", lambda *_: dict.fromkeys("abcd", cosine))
    with stored("shop", twice=twice) as searcher:
        assert searcher.verify(sample=4).ok is ok


def test_the_least_parity_is_that_of_the_report():
    parity = {
        "data": "x",
        "item": {"int8": {"cosine_min": 0.99, "batches": {"3": {"cosine_min": 1}}}},
    }
    bundle = Bundle(Path("x"), {"parity": {"query": {}, **parity}}, None)
    assert bundle.least_parity == 0.99
    assert Bundle(Path("x"), {}, None).least_parity == 1.0


def test_verify_sees_vectors_that_were_made_without_the_crop(stored):
    with stored("shop", twice=False) as searcher:
        (problem,) = searcher.verify(sample=100).problems
    assert "stored vectors are not what their pictures give now" in problem


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threshold": 0, "weight": 1}, "threshold: 0; give a number above 0, at most 1"),
        ({"threshold": 1.5, "weight": 1}, "threshold: 1.5"),
        ({"threshold": math.nan, "weight": 1}, "threshold: nan"),
        ({"threshold": 0.5, "weight": "1"}, "weight: '1'"),
        ({"threshold": 0.5, "weight": True}, "weight: True"),
        ({"threshold": 0.5}, "weight: it is missing"),
        ({"threshold": 0.5, "weight": 1, "pad": 0}, "pad: there is no such setting"),
        ([0.5, 1], "is no object"),
    ],
)
def test_bad_values_are_named(values, words, small_bundle: Path, tmp_path: Path):
    with pytest.raises(InputError, match="attention_crop") as refused:
        AttentionCrop.from_dict(values)
    assert words in str(refused.value)
    folder = tmp_path / "bundle"
    shutil.copytree(small_bundle, folder)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "attention_crop": values}))
    with pytest.raises(BundleError, match=MANIFEST_FILE) as refused:
        Bundle.open(folder)
    assert words in str(refused.value)


def test_exported_with_the_model_and_read_back(small_bundle: Path, tmp_path: Path, parity_folder):
    pytest.importorskip("torch")
    from small_models import CONV, build, tokenizer_file

    from tigerfg.export import export_bundle
    from tigerfg.model import load_checkpoint, save_checkpoint

    model = build(CONV, attention_crop=AttentionCrop(0.5, 1.0))
    checkpoint = save_checkpoint(model, tokenizer_file(tmp_path / "tokenizer.json"), tmp_path / "c")
    bundle = Bundle.open(export_bundle(checkpoint, tmp_path / "b", parity_data=parity_folder))
    assert bundle.attention_crop == AttentionCrop(0.5, 1.0)
    assert load_checkpoint(bundle.path).config == model.config
    plain = Bundle.open(small_bundle)  # the same weights
    assert plain.attention_crop is None
    assert plain.fingerprint != bundle.fingerprint  # a catalogue is of one of them
    with pytest.raises(InputError, match="attention_crop: a global item tower has no map"):
        replace(model.config, item_tower="global")
