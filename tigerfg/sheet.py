"""Contact sheets: queries, their hits and where the item tower looked, as PNG or as one HTML file.

Both writers take :class:`SheetRow` objects. A hit's picture is shown twice: as it is, and under its
grounding map. With known ground truth correct hits are framed green. Nothing is fetched: of a
picture behind an address the PNG has an empty tile, and the page refers to the address.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tigerfg.download import is_address
from tigerfg.errors import InputError
from tigerfg.files import whole_file, write_whole
from tigerfg.images import ImageSource, load_image

if TYPE_CHECKING:
    from tigerfg.catalog import Item
    from tigerfg.searcher import Hit

TILE = 168  # side of a picture in pixels
GAP = 12
LINE = 16
MAX_OPACITY = 0.72

GREEN, GREY, INK, PALE, PAPER = "#12964a", "#c4c8cc", "#1c2024", "#6a7178", "#ffffff"
# anchors of the heat map's colours from no attention to the strongest cell
HEAT_COLOURS = np.array(
    [(0, 0, 60), (86, 16, 140), (188, 50, 100), (249, 130, 10), (255, 246, 120)], np.float64
)


@dataclass(frozen=True)
class SheetRow:
    """One query and its hits, best first.

    ``box`` is the searched crop in pixels of the query picture; ``correct`` the ids of the right
    items where they are known, else None; ``caption`` a line under the query.
    """

    query: ImageSource
    hits: Sequence[Hit]
    box: tuple[float, float, float, float] | None = None
    correct: Collection[str] | None = None
    caption: str = ""


def heat_overlay(grid: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A grounding map as a transparent picture to lay over an image.

    Args:
        grid: (h, w) float, non-negative; scaled by its own maximum.
        size: (width, height) of the image, of the same aspect ratio as the item's picture.

    Returns:
        RGBA image of ``size``; clear where the map is 0, most opaque at the strongest cell.
    """
    grid = np.nan_to_num(np.asarray(grid, np.float32))
    peak = float(grid.max(initial=0.0))
    if peak <= 0:
        return Image.new("RGBA", size)
    side = max(size) / max(grid.shape)  # of one cell in pixels
    padded = Image.fromarray(np.pad(grid / peak, 1, mode="edge"))
    # the picture's frame in cells of the padded grid: cell centres stay where they belong
    right = min(1 + size[0] / side, padded.width)
    lower = min(1 + size[1] / side, padded.height)
    smooth = np.asarray(padded.resize(size, Image.Resampling.BILINEAR, box=(1, 1, right, lower)))
    level = np.clip(smooth, 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(HEAT_COLOURS))
    channels = [np.interp(level, stops, HEAT_COLOURS[:, c]) for c in range(3)]
    rgba = np.stack([*channels, 255 * MAX_OPACITY * level], axis=-1)
    return Image.fromarray(rgba.round().astype(np.uint8))


def write_png(rows: Sequence[SheetRow], path: str | os.PathLike[str], title: str = "") -> None:
    """Write the contact sheet as one PNG picture.

    Raises:
        InputError: no rows, or a query picture that cannot be read. A hit whose picture is gone
            gets an empty tile.
    """
    columns = 1 + max((len(row.hits) for row in _checked(rows)), default=0)
    row_height = 2 * TILE + 4 * LINE + 2 * GAP
    head = 2 * LINE + GAP
    sheet = Image.new(
        "RGB", (columns * (TILE + GAP) + 2 * GAP, head + row_height * len(rows)), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=INK, font=_font(15))
    for number, row in enumerate(rows):
        top = head + number * row_height
        draw.line((GAP, top - GAP // 2, sheet.width - GAP, top - GAP // 2), fill=GREY)
        sheet.paste(_fit(_query_picture(row)), (GAP, top))
        lines = ["query", row.caption, _verdict(row)]
        _write_lines(draw, (GAP, top + TILE + 4), lines)
        for rank, hit in enumerate(row.hits, start=1):
            left = 2 * GAP + rank * (TILE + GAP)
            picture = _item_picture(hit)
            sheet.paste(_fit(picture), (left, top))
            sheet.paste(_fit(_with_heat(picture, hit.grounding_map)), (left, top + TILE + 4))
            right = row.correct is not None and hit.item_id in row.correct
            frame = (left - 3, top - 3, left + TILE + 2, top + 2 * TILE + 6)
            draw.rectangle(frame, outline=GREEN if right else GREY, width=4 if right else 1)
            _write_lines(draw, (left, top + 2 * TILE + 8), [_headline(rank, hit), *_describe(hit)])
    with whole_file(Path(path)) as part:
        sheet.save(part, format="PNG", optimize=True)


def write_html(rows: Sequence[SheetRow], path: str | os.PathLike[str], title: str = "") -> None:
    """Write the contact sheet as one HTML file, pictures inside.

    Those behind addresses (http, https) are fetched by the browser that shows it.

    Raises:
        InputError: as :func:`write_png`.
    """
    body = []
    for row in _checked(rows):
        query = data_uri(_query_picture(row))
        verdict = html.escape(_verdict(row))
        tiles = [
            f'<figure class="query"><img src="{query}" alt="query">'
            f"<figcaption><b>query</b><br>{html.escape(row.caption)}<br>{verdict}</figcaption>"
            "</figure>"
        ]
        for rank, hit in enumerate(row.hits, start=1):
            right = row.correct is not None and hit.item_id in row.correct
            name, detail = (html.escape(text) for text in _describe(hit))
            tiles.append(
                f'<figure class="{"hit right" if right else "hit"}"><div>'
                f"{_picture_tags(hit, name)}</div>"
                f"<figcaption><b>{html.escape(_headline(rank, hit))}</b><br>{name}<br>"
                f"<small>{detail}</small></figcaption></figure>"
            )
        body.append(f"<section>{''.join(tiles)}</section>")
    page = _PAGE.substitute(title=html.escape(title or "tigerfg"), body="\n".join(body))
    write_whole(Path(path), page)


def item_price(item: Item) -> str:
    """The item's price as text from its attributes or extra fields; empty where it has none."""
    for fields in (item.attributes, item.extra):
        if fields.get("price") not in (None, ""):
            return str(fields["price"])
    return ""


def _checked(rows: Sequence[SheetRow]) -> Sequence[SheetRow]:
    if not rows:
        raise InputError("contact sheet: there is no query to show")
    return rows


def _headline(rank: int, hit: Hit) -> str:
    return f"{rank}   {hit.score:.3f}"


def _describe(hit: Hit) -> tuple[str, str]:
    price = item_price(hit.item)
    return hit.item.title or hit.item_id, f"{hit.item_id}   {price}" if price else hit.item_id


def _verdict(row: SheetRow) -> str:
    if row.correct is None:
        return ""
    for rank, hit in enumerate(row.hits, start=1):
        if hit.item_id in row.correct:
            return f"right item at rank {rank}"
    return f"right item not in the first {len(row.hits)}"


def _query_picture(row: SheetRow) -> Image.Image:
    return scaled(load_image(row.query, row.box, target_size=TILE))


def _item_picture(hit: Hit) -> Image.Image:
    try:
        return scaled(load_image(hit.item.image, target_size=TILE))
    except InputError:
        blank = Image.new("RGB", (TILE, TILE), "#e8eaec")
        why = "behind an address" if is_address(hit.item.image) else "picture missing"
        ImageDraw.Draw(blank).text((GAP, TILE // 2), why, fill=PALE, font=_font(13))
        return blank


def _picture_tags(hit: Hit, name: str) -> str:
    """The picture and the map over it as HTML; the name is escaped already."""
    if not is_address(hit.item.image):
        picture = _item_picture(hit)
        return f'<img src="{data_uri(picture)}" alt="{name}">' + _heat_tag(hit, picture.size)
    height, width = hit.grounding_map.shape
    longer = "height" if height > width else "width"  # is a tile's, in pixels
    cell = TILE / max(height, width)
    # the picture's other side is known to half a cell: what lies beyond it is cut off
    size = tuple(min(TILE, round((cells + 0.5) * cell)) for cells in (width, height))
    return (
        f'<span><img src="{html.escape(hit.item.image)}" alt="{name}" {longer}="{TILE}" '
        f'loading="lazy" referrerpolicy="no-referrer">{_heat_tag(hit, size)}</span>'
    )


def _heat_tag(hit: Hit, size: tuple[int, int]) -> str:
    heat = data_uri(heat_overlay(hit.grounding_map, size))
    return f'<img class="heat" src="{heat}" alt="grounding map">'


def scaled(picture: Image.Image, longest: int = TILE) -> Image.Image:
    """The picture with a longer side of so many pixels."""
    scale = longest / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _fit(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a square tile."""
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return tile


def _with_heat(picture: Image.Image, grid: np.ndarray) -> Image.Image:
    overlay = heat_overlay(grid, picture.size)
    return Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write_lines(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        font = _font(13 if number == 0 else 11)
        text = " ".join(line.split())
        while text and draw.textlength(text, font=font) > TILE:
            text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
        place = (at[0], at[1] + number * LINE)
        draw.text(place, text, fill=INK if number < 2 else PALE, font=font)


def data_uri(picture: Image.Image) -> str:
    """The picture as a data address: JPEG, or PNG where it has transparency."""
    buffer = io.BytesIO()
    if picture.mode == "RGBA":
        picture.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        picture.save(buffer, format="JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
 body { font: 14px/1.35 system-ui, sans-serif; margin: 24px; color: #1c2024; background: #fff }
 section { display: flex; flex-wrap: wrap; gap: 14px; padding: 14px 0;
           border-top: 1px solid #c4c8cc }
 figure { margin: 0; width: 176px }
 figure div { position: relative; width: 168px; border: 1px solid #c4c8cc; padding: 3px }
 figure.right div { border: 4px solid #12964a; padding: 0 }
 figure.query { margin-right: 16px }
 img { display: block; max-width: 168px }
 img.heat { position: absolute; top: 3px; left: 3px }
 figure span { display: inline-block; position: relative; overflow: hidden; vertical-align: top }
 figure.right img.heat, figure span img.heat { top: 0; left: 0 }
 #heat:not(:checked) ~ section img.heat { display: none }
 small { color: #6a7178; overflow-wrap: anywhere }
</style></head><body>
<h1>$title</h1>
<input type="checkbox" id="heat" checked> <label for="heat">grounding maps</label>
$body
</body></html>
""")
