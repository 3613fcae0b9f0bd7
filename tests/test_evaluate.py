from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tigerfg.benchmark.evaluate import evaluate
from tigerfg.catalog import Item
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


def test_boxes_of_turned_pictures_do_not_count(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7, corner=2).save(data.parent / "images/scene2.png", exif=exif)
    assert evaluate(data, ColourEncoder()).grounding.items == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split=dev; values of split: test"),
        ({"item_filter": {"colour": "red"}}, "colour=red; values of colour: none"),
        ({"query_kinds": ["prime"]}, "query_kind prime; there are even, odd"),
        ({"mode": "magic"}, "mode: 'magic'"),
        ({"item_filter": {"item_id": "0"}, "query_kinds": ["odd"]}, "no query has one of its"),
    ],
)
def test_nothing_left(data, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(data, ColourEncoder(), **options)


def test_a_directory_without_queries(tmp_path):
    with pytest.raises(InputError, match="queries"):
        evaluate(tmp_path, ColourEncoder())
