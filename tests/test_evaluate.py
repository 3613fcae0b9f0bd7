from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tigerfg.benchmark import evaluate as evaluating
from tigerfg.benchmark.boxsource import BoxSource
from tigerfg.benchmark.cost import Flops
from tigerfg.benchmark.datasets import EvalSet
from tigerfg.benchmark.evaluate import Row, evaluate, evaluate_rows
from tigerfg.benchmark.evaluation import Evaluation, read_results, write_results
from tigerfg.benchmark.gallery import EncodedQueries, Gallery
from tigerfg.benchmark.pictures import stored_picture
from tigerfg.benchmark.selection import product_numbers
from tigerfg.catalog import Item, Query, Rejected
from tigerfg.encoder import EncodedItem
from tigerfg.engines import EngineInfo
from tigerfg.errors import InputError
from tigerfg.images import Preprocessing, load_image

CODES = 8


def picture(code: int, corner: int | None = None) -> Image.Image:
    """A 64 x 64 picture that stands for a product; ``corner``: what its top left quarter shows."""
    image = Image.new("RGB", (64, 64), (code * 30, 0, 0))
    if corner is not None:
        image.paste((corner * 30, 0, 0), (0, 0, 32, 32))
    return image


class ColourEncoder:
    """Reads the product's number from the bottom right pixel and gives its unit vector.

    The item tower sees the last word of the title where it is given, as if grounding were perfect.
    """

    bundle = SimpleNamespace(
        name="colours",
        fingerprint="f" * 64,
        embedding_dim=CODES,
        preprocessing=Preprocessing(32, 64, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    )
    engine = SimpleNamespace(info=EngineInfo("fake", "fp32", "cpu", 1, "test"))

    def try_queries(self, queries: Sequence[tuple[Any, Any]]) -> list[np.ndarray | InputError]:
        return [self._look(image, box) for image, box in queries]

    def encode_items(self, items: Sequence[Item]) -> list[EncodedItem | InputError]:
        results: list[EncodedItem | InputError] = []
        for item in items:
            seen = self._look(item.image, None)
            if isinstance(seen, InputError):
                results.append(seen)
                continue
            grid = np.zeros((8, 8), np.float32)
            grid[1, 1] = 1.0  # pixels 8-16
            if item.title:
                seen = np.eye(CODES, dtype=np.float32)[int(item.title.split()[-1])]
            results.append(EncodedItem(seen, grid))
        return results

    def _look(self, source: Any, box: Any) -> np.ndarray | InputError:
        try:
            image = load_image(source, box)
        except InputError as error:
            return error
        red = image.getpixel((image.width - 1, image.height - 1))[0]
        return np.eye(CODES, dtype=np.float32)[round(red / 30)]


def write(folder: Path, items: list[dict], queries: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, records in (("items", items), ("queries", queries)):
        lines = [json.dumps(record) for record in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four items; the pictures of items 2 and 3 show their product in the top left quarter only."""
    (tmp_path / "images").mkdir()
    for code in range(CODES):
        picture(code).save(tmp_path / f"images/{code}.png")
        picture(7, corner=code).save(tmp_path / f"images/scene{code}.png")
    items = [
        {
            "item_id": str(code),
            "image": f"images/{'scene' if code > 1 else ''}{code}.png",
            "title": f"number {code}",
            "target_box": [0, 0, 32, 32] if code > 1 else None,
            "image_kind": "scene" if code > 1 else "plain",
            "split": "test",
            "surprise": {"any": 1},
        }
        for code in range(4)
    ]
    queries = [
        {
            "query_id": f"q{code}",
            "image": f"images/{code}.png",
            "item_ids": [str(code)],
            "query_kind": "even" if code % 2 == 0 else "odd",
            "split": "test",
        }
        for code in range(4)
    ]
    return write(tmp_path / "set", items, queries)


def test_perfect_model(data):
    result = evaluate(data, ColourEncoder(), split="test")
    assert result.overall.recall == {1: 1.0, 5: 1.0, 10: 1.0}
    assert result.overall.map == 1.0
    assert {kind: scores.queries for kind, scores in result.per_kind.items()} == {
        "even": 2,
        "odd": 2,
    }
    assert (result.items, result.queries, result.queries_without_item) == (4, 4, 0)
    assert result.text_words == 2.0
    assert result.conditions["model"] == "colours"
    json.dumps(result.to_dict(), allow_nan=False)


def test_grounding_of_the_items_with_a_box(data):
    grounding = evaluate(data, ColourEncoder()).grounding
    assert grounding.items == 2
    assert grounding.pointing == 1.0
    assert grounding.mass == pytest.approx(1.0, abs=1e-9)
    assert grounding.chance == pytest.approx(0.25, abs=1e-9)
    # one cell of 8 x 8 pixels in a target of 32 x 32
    assert grounding.iou == pytest.approx(1 / 16, abs=1e-9)
    assert grounding.intervals["pointing"] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("mode", "first"),
    # global: the scenes look like product 7; oracle: the box shows it; text: the title tells it
    [("item", 1.0), ("global", 0.5), ("oracle", 1.0), ("text", 1.0)],
)
def test_modes(data, mode, first):
    result = evaluate(data, ColourEncoder(), mode=mode)
    assert result.overall.recall[1] == first
    assert (result.grounding is None) == (mode != "item")


def test_text_mode_hides_the_picture(data):
    items = [json.loads(line) for line in (data / "items.jsonl").read_text().splitlines()]
    for item in items:
        item["title"] = ""
    write(data, items, [json.loads(q) for q in (data / "queries.jsonl").read_text().splitlines()])
    result = evaluate(data, ColourEncoder(), mode="text")
    # every item is black, as item 0 is: query 0 ties with all of them and ranks last
    assert result.overall.recall[1] == 0.0


def test_filter_counts_the_queries_without_item(data):
    result = evaluate(data, ColourEncoder(), item_filter={"image_kind": "plain"})
    assert (result.items, result.queries, result.queries_without_item) == (2, 2, 2)


def test_query_kind(data):
    result = evaluate(data, ColourEncoder(), query_kinds=["odd"])
    assert list(result.per_kind) == ["odd"]
    assert result.queries == 2


def test_broken_entries_are_left_out_and_listed(data):
    (data.parent / "images/3.png").write_bytes(b"no image")
    (data.parent / "images/scene2.png").unlink()
    with open(data / "items.jsonl", "a") as file:
        file.write("{broken\n")
    result = evaluate(data, ColourEncoder())
    assert [r.item_id for r in result.rejected_items] == [None, "2"]
    assert result.rejected_items[0].line == 5
    assert [r.item_id for r in result.rejected_queries] == ["q3"]
    # query 2 has lost its item, query 3 its picture
    assert (result.items, result.queries, result.queries_without_item) == (3, 2, 1)
    assert result.overall.recall[1] == 1.0


def test_one_to_many(data):
    queries = [{"query_id": "q", "image": "images/1.png", "item_ids": ["1", "3", "gone"]}]
    items = [json.loads(line) for line in (data / "items.jsonl").read_text().splitlines()]
    result = evaluate(write(data, items, queries), ColourEncoder())
    # item 1 ranks first; item 3 scores 0 like both wrong items and ranks last: (1/1 + 2/4) / 2
    assert result.overall.map == pytest.approx(0.75, abs=1e-12)
    assert list(result.per_kind) == ["all"]


def write_leave_one_out(data: Path, excluded: list) -> Path:
    """Pictures 0, 0, 1, 1 search each other; scores are 1 within a product, else 0."""
    items = [{"item_id": f"p{n}", "image": f"images/{n // 2}.png"} for n in range(4)]
    queries = [
        {
            "query_id": f"q{n}",
            "image": f"images/{n // 2}.png",
            "item_ids": [f"p{n ^ 1}"],
            **({} if excluded[n] is None else {"exclude_item_id": excluded[n]}),
        }
        for n in range(4)
    ]
    return write(data.parent / "pairs", items, queries)


def test_an_excluded_item_is_taken_out_of_its_querys_ranking(data):
    pairs = write_leave_one_out(data, [None] * 4)
    # the query's own picture ties with the right one, and stands before it
    assert evaluate(pairs, ColourEncoder(), mode="global").overall.recall[1] == 0.0
    pairs = write_leave_one_out(data, ["p0", ["p1"], ["p2", "unknown"], None])
    result = evaluate(pairs, ColourEncoder(), mode="global")
    assert result.answers.rank == [1, 1, 1, 2]
    assert result.answers.candidates == [3, 3, 3, 4]
    assert result.answers.product == [0, 0, 1, 1]


def test_a_query_whose_only_answer_is_excluded_has_none(data):
    pairs = write_leave_one_out(data, ["p1", "p1", "p2", "p3"])
    result = evaluate(pairs, ColourEncoder(), mode="global")
    assert (result.queries, result.queries_without_item) == (3, 1)


def test_queries_linked_by_items_ask_for_one_product():
    def query(*ids: str, out: object = None) -> Query:
        return Query(
            "q", "x.png", item_ids=ids, extra={} if out is None else {"exclude_item_id": out}
        )

    queries = [query("a", "b"), query("c"), query("b", "d"), query("e", out="d"), query("c", "f")]
    assert product_numbers(queries) == [0, 1, 0, 0, 1]
    assert product_numbers([]) == []


def test_detect_mode_crops_to_the_given_boxes(data):
    good = BoxSource("good", lambda item: item.target_box)
    result = evaluate(data, ColourEncoder(), mode="detect", boxes=good)
    assert result.overall.recall[1] == 1.0
    assert (result.label, result.items_without_box) == ("detect good", 2)
    off = BoxSource("off", lambda item: (0, 32, 64, 64))
    assert evaluate(data, ColourEncoder(), mode="detect", boxes=off).overall.recall[1] == 0.5
    outside = BoxSource("outside", lambda item: (0, 64, 64, 99) if item.item_id == "1" else None)
    lost = evaluate(data, ColourEncoder(), mode="detect", boxes=outside)
    assert [r.item_id for r in lost.rejected_items] == ["1"]
    assert (lost.items, lost.items_without_box) == (3, 3)


def test_rows_share_the_queries(data):
    class Counting(ColourEncoder):
        asked = 0

        def try_queries(self, queries):
            self.asked += len(queries)
            return super().try_queries(queries)

    encoder, seen, calls = Counting(), [], []
    rows = [Row(), Row("text", on_map=lambda *_: 1 / 0), Row(on_map=lambda i, g: seen.append(i))]
    results = list(
        evaluate_rows(data, encoder, rows, progress=lambda done, total: calls.append((done, total)))
    )
    assert [result.mode for result in results] == ["item", "text", "item"]
    assert encoder.asked == 5  # four, and one before the clock starts
    assert [item.item_id for item in seen] == ["2", "3"]
    assert calls == [(4, 16), (8, 16), (12, 16), (16, 16)]


@pytest.mark.parametrize("width", [8, 96, 256])
@pytest.mark.parametrize("copies", [1, 2, 7])
def test_equal_vectors_tie_and_ties_are_pessimistic(width, copies):
    """At every size: products of matrices add up their columns in different orders."""
    rng = np.random.default_rng(width)
    for count in [2, 3, 5, 6, 9, 15, 17, 31, 33, 63, 65, 100, 129, 200]:
        own = rng.standard_normal((copies, width)).astype(np.float32)
        own[0, 0] = 0.0
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        gallery = Gallery(width)
        for number in range(count * copies):
            sign = -1 if number % 2 else 1  # 0.0 and -0.0 are equal
            vector = own[number % copies] * np.where(own[number % copies] == 0, sign, 1)
            gallery.add(Item(str(number), "x.png"), vector.astype(np.float32))
        asked = rng.integers(0, count * copies, 13).tolist()
        queries = [Query(f"q{n}", None, item_ids=(str(number),)) for n, number in enumerate(asked)]
        vectors = np.stack([own[number % copies] for number in asked])
        answers = evaluating._answers(EncodedQueries(queries, vectors, [], 0.0), gallery)
        assert answers.rank == [count] * 13  # behind all others of its kind


def test_smaller_galleries(data):
    result = evaluate(data, ColourEncoder(), mode="global", gallery_sizes=[1, 2, 3, 99])
    # two queries hit; two score 0 like every wrong item: rank 4, and 1 of 3 wrong ones drawn is
    # enough to lose
    assert [point.size for point in result.curve] == [1, 2, 3, 4]
    recalls = [point.recall for point in result.curve]
    assert recalls == pytest.approx([1.0, 0.5, 0.5, 0.5], abs=1e-12)
    assert all(point.interval for point in result.curve)
    assert evaluate(data, ColourEncoder()).curve == []


def test_one_query_has_no_interval(data):
    queries = [{"query_id": "q", "image": "images/1.png", "item_ids": ["1"]}]
    items = [json.loads(line) for line in (data / "items.jsonl").read_text().splitlines()]
    result = evaluate(write(data, items, queries), ColourEncoder(), gallery_sizes=[2])
    assert (result.overall.queries, result.overall.products) == (1, 1)
    assert result.overall.intervals is None
    assert result.curve[0].interval is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_cost_follows_the_mode(data):
    flops = Flops(10, 70, "counted by hand")
    for mode, expected in (("item", 70), ("text", 70), ("global", 10), ("oracle", 10)):
        cost = evaluate(data, ColourEncoder(), mode=mode, flops=flops).cost
        assert (cost.item_flops, cost.query_flops) == (expected, 10)
        assert cost.item_ms > 0
        assert cost.query_ms > 0
    assert evaluate(data, ColourEncoder()).cost.note == "FLOPs not counted"


def test_results_survive_json(data, tmp_path):
    (data.parent / "images/3.png").write_bytes(b"no image")
    result = evaluate(data, ColourEncoder(), gallery_sizes=[2])
    write_results([result], tmp_path / "r.json")
    assert read_results(tmp_path / "r.json") == [result]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable results file"),
        ("[1]", "not results of this version"),
        ('[{"overall": {}}]', "not results of this version"),
        ("{}", "not results of this version"),
    ],
)
def test_other_json_is_refused(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_results(tmp_path / "r.json")


def test_results_with_a_column_cut_short_are_refused(data):
    values = evaluate(data, ColourEncoder()).to_dict()
    values["answers"]["rank"].pop()
    with pytest.raises(ValueError, match="different lengths"):
        Evaluation.from_dict(values)


def test_digest_is_that_of_the_data_and_not_of_its_place(data, tmp_path):
    first = evaluate(data, ColourEncoder())
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy/set"
    copy.mkdir()
    for name in ("items.jsonl", "queries.jsonl"):
        (copy / name).write_text((data / name).read_text())
    (tmp_path / "copy/images").symlink_to(tmp_path / "images")
    assert evaluate(copy, ColourEncoder()).data_digest == first.data_digest
    assert evaluate(data, ColourEncoder(), mode="text").data_digest == first.data_digest
    fewer = evaluate(data, ColourEncoder(), query_kinds=["odd"])
    assert fewer.data_digest != first.data_digest


def test_a_benchmarks_set(data):
    folder = data.parent / "images"
    items = [Item(str(code), str(folder / f"{code}.png"), f"number {code}") for code in range(3)]
    queries = [Query("q", str(folder / "1.png"), item_ids=("1",))]
    lost = Rejected("x", "image missing", 3, "list.txt")
    data_set = EvalSet("toy", "test", items, queries, "the same number", ["a note"], [lost])
    result = evaluate(data_set, ColourEncoder())
    assert (result.data, result.split) == ("toy test", "test")
    assert result.notes == ["right answers: the same number", "a note"]
    assert result.rejected_items == [lost]
    assert result.overall.recall[1] == 1.0


def test_a_map_of_nothing_counts_as_a_miss(data):
    class Blind(ColourEncoder):
        def encode_items(self, items):
            return [
                EncodedItem(encoded.embedding, np.full((8, 8), np.nan, np.float32))
                for encoded in super().encode_items(items)
            ]

    grounding = evaluate(data, Blind()).grounding
    assert (grounding.items, grounding.pointing, grounding.iou) == (2, 0.0, 0.0)
    assert grounding.chance == 0.25


def test_boxes_of_turned_pictures_do_not_count(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7, corner=2).save(data.parent / "images/scene2.png", exif=exif)
    assert evaluate(data, ColourEncoder()).grounding.items == 1


def test_turned_pictures_of_every_source_are_known(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("png", "jpeg", "tiff"):
        file = tmp_path / f"turned.{kind}"
        Image.new("RGB", (53, 37)).save(file, exif=exif)
        data = file.read_bytes()
        for source in (file, str(file), data, bytearray(data), Image.open(file)):
            assert stored_picture(source) == ((53, 37), 6)
            assert not stored_picture(source).upright
    assert stored_picture(np.zeros((37, 53, 3), np.uint8)) == ((53, 37), 1)
    assert stored_picture(b"no picture") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split=dev; values of split: test"),
        ({"item_filter": {"colour": "red"}}, "colour=red; values of colour: none"),
        ({"query_kinds": ["prime"]}, "query_kind prime; there are even, odd"),
        ({"mode": "magic"}, "mode: 'magic'"),
        ({"mode": "detect"}, "detect needs boxes"),
        ({"mode": "item", "boxes": BoxSource("x", lambda item: None)}, "for mode detect"),
        ({"gallery_sizes": [5, 0]}, "gallery size 0"),
        ({"item_filter": {"item_id": "0"}, "query_kinds": ["odd"]}, "no query has one of its"),
    ],
)
def test_nothing_left(data, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(data, ColourEncoder(), **options)


def test_a_directory_without_queries(tmp_path):
    with pytest.raises(InputError, match="queries"):
        evaluate(tmp_path, ColourEncoder())
