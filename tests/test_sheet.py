from __future__ import annotations

import io
import re
from base64 import b64decode
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tigerfg import sheet
from tigerfg.catalog import Item
from tigerfg.errors import InputError

GREEN = (18, 150, 74)


def hit(item_id: str, image: object, **fields: object) -> SimpleNamespace:
    grid = np.zeros((4, 6), np.float32)
    grid[3, 5] = 1.0
    item = Item(item_id=item_id, image=image, **fields)
    return SimpleNamespace(item_id=item_id, score=0.5, item=item, grounding_map=grid)


@pytest.fixture
def rows() -> list[sheet.SheetRow]:
    photo = Image.new("RGB", (60, 40), "#3355aa")
    hits = [
        hit("a", photo, title="Mug <b>&", attributes={"price": "9.50"}),
        hit("b", photo, title="[red]two\nlines", extra={"price": 7}),
    ]
    return [sheet.SheetRow(query=photo, hits=hits, box=(0, 0, 30, 30), correct={"b"}, caption="q")]


def test_heat_overlay_is_strongest_where_the_map_is():
    grid = np.zeros((4, 6), np.float32)
    grid[0, 5] = 2.0
    overlay = np.asarray(sheet.heat_overlay(grid, (180, 120)))
    assert overlay.shape == (120, 180, 4)
    alpha = overlay[..., 3]
    row, column = np.unravel_index(alpha.argmax(), alpha.shape)
    assert row < 30  # the cell's 30 pixels
    assert column >= 150
    assert alpha[60:, :90].max() == 0


def test_heat_overlay_follows_the_letterbox_of_a_cut_off_row():
    # 12 x 5.4 cells: the map has 5 rows of 20 pixels, the last 8 pixels have no cell of their own
    grid = np.zeros((5, 12), np.float32)
    grid[4, 0] = 1.0
    alpha = np.asarray(sheet.heat_overlay(grid, (240, 108)))[..., 3]
    rows = np.flatnonzero(alpha[:, 5] > alpha.max() * 0.95)
    assert rows.min() >= 85  # the centre of row 4 is at 90; a stretched map would start below 97
    assert rows.min() <= 92


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_heat_overlay_without_attention_is_clear(value):
    overlay = sheet.heat_overlay(np.full((3, 3), value, np.float32), (20, 20))
    assert np.asarray(overlay)[..., 3].max() == 0


def test_png_frames_the_right_hit_green(rows, tmp_path):
    sheet.write_png(rows, tmp_path / "s.png", title="Title")
    picture = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    green = (picture == GREEN).all(axis=-1)
    columns = np.flatnonzero(green.sum(axis=0) > 2 * sheet.TILE)
    assert columns.size == 8  # two vertical lines of 4 pixels, one frame
    assert columns.min() > 2 * (sheet.TILE + sheet.GAP)  # around the second hit


def test_png_without_ground_truth_has_no_green_frame(rows, tmp_path):
    row = sheet.SheetRow(query=rows[0].query, hits=rows[0].hits)
    sheet.write_png([row], tmp_path / "s.png")
    picture = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    assert not (picture == GREEN).all(axis=-1).any()


def test_html_is_self_contained_and_escaped(rows, tmp_path):
    sheet.write_html(rows, tmp_path / "s.html", title="<Title> $body")
    text = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:image/)', text)
    assert "<b>&" not in text
    assert "Mug &lt;b&gt;&amp;" in text
    assert "&lt;Title&gt; $body" in text
    assert "9.50" in text
    assert text.count('class="hit right"') == 1
    assert "right item at rank 2" in text

    class Counter(HTMLParser):
        pictures = 0

        def handle_starttag(self, tag, attrs):
            self.pictures += tag == "img"

    counter = Counter()
    counter.feed(text)
    assert counter.pictures == 1 + 2 * 2  # the query; picture and map of both hits


def test_a_missing_item_picture_gets_an_empty_tile(rows, tmp_path):
    gone = hit("gone", tmp_path / "gone.jpg", title="Gone")
    row = sheet.SheetRow(query=rows[0].query, hits=[gone], correct={"x"})
    sheet.write_png([row], tmp_path / "s.png")
    sheet.write_html([row], tmp_path / "s.html")
    assert "right item not in the first 1" in (tmp_path / "s.html").read_text()


def test_a_broken_query_picture_is_an_input_error(rows, tmp_path):
    row = sheet.SheetRow(query=b"no image", hits=rows[0].hits)
    with pytest.raises(InputError):
        sheet.write_png([row], tmp_path / "s.png")


def test_no_rows(tmp_path):
    with pytest.raises(InputError, match="no query"):
        sheet.write_html([], tmp_path / "s.html")


def images(page: str) -> list[dict[str, str]]:
    """Attributes of the page's pictures."""
    found = []

    class Images(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag == "img":
                found.append(dict(attrs))

    Images().feed(page)
    return found


@pytest.mark.parametrize(("shape", "longer"), [((4, 6), "width"), ((6, 4), "height")])
def test_html_refers_to_addresses(rows, tmp_path, shape, longer):
    address = 'https://shop.invalid/a.jpg?w=1&h="><script>alert(1)</script>'
    far = hit("far", address, title="Far")
    far.grounding_map = np.full(shape, 1 / 24, np.float32)
    sheet.write_html([sheet.SheetRow(query=rows[0].query, hits=[far])], tmp_path / "s.html")
    page = (tmp_path / "s.html").read_text()
    assert "<script" not in page
    _, picture, heat = images(page)
    assert (picture["src"], picture["alt"]) == (address, "Far")
    assert picture[longer] == str(sheet.TILE)
    assert {"width", "height"} - {longer} - picture.keys(), "the other side is the browser's"
    assert heat["class"] == "heat"
    overlay = Image.open(io.BytesIO(b64decode(heat["src"].partition(",")[2])))
    # four and a half of six cells of 28 pixels: the picture may end half a cell after the last
    assert sorted(overlay.size) == [126, 168]
    assert (overlay.width > overlay.height) == (longer == "width")


@pytest.mark.parametrize("image", ["javascript:alert(1)", "ftp://shop/a.jpg", "//shop/a.jpg", None])
def test_html_refers_to_nothing_else(rows, tmp_path, image):
    row = sheet.SheetRow(query=rows[0].query, hits=[hit("x", image)])
    sheet.write_html([row], tmp_path / "s.html")
    sources = [picture["src"] for picture in images((tmp_path / "s.html").read_text())]
    assert all(source.startswith("data:image/") for source in sources)
    assert len(sources) == 3


def test_png_says_that_a_picture_is_behind_an_address(rows, tmp_path):
    drawn = []
    for image in ("https://shop.invalid/a.jpg", str(tmp_path / "gone.jpg")):
        row = sheet.SheetRow(query=rows[0].query, hits=[hit("x", image)])
        sheet.write_png([row], tmp_path / "s.png")
        drawn.append((tmp_path / "s.png").read_bytes())
    assert drawn[0] != drawn[1]
