"""Where the item tower looked: one HTML file with some items, their maps and their target boxes."""

from __future__ import annotations

import hashlib
import heapq
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image, ImageDraw

from tigerfg.benchmark import metrics
from tigerfg.benchmark.evaluation import Evaluation
from tigerfg.catalog import Item
from tigerfg.errors import InputError
from tigerfg.files import write_whole
from tigerfg.images import load_image
from tigerfg.sheet import GREEN, data_uri, heat_overlay, scaled
from tigerfg.text import item_text

SIDE = 320  # of a picture in pixels, the longer one
RED, WHITE = "#d02030", "#ffffff"


@dataclass(frozen=True)
class Shown:
    """An item with its target box, and its grounding map (h, w)."""

    item: Item
    grid: np.ndarray


class MapSample:
    """Keeps ``count`` of the items that it is called with, chosen by a hash of their ids.

    So the choice is nobody's taste, and the same items are shown for every model.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise InputError(f"heat-map count {count} is not at least 1")
        self.count = count
        self._kept: list[tuple[int, str, Shown]] = []  # a heap, the first to go in front

    def __call__(self, item: Item, grid: np.ndarray) -> None:
        digest = hashlib.blake2b(item.item_id.encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), item.item_id, Shown(item, grid))
        if len(self._kept) < self.count:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def shown(self) -> list[Shown]:
        """The kept items by their ids."""
        return [shown for _, _, shown in sorted(self._kept, key=lambda entry: entry[1])]


def write_heatmaps(sections: Sequence[tuple[Evaluation, MapSample]], file: Path) -> None:
    """Write one section an evaluation that has grounding maps, as one self-contained HTML file.

    Raises:
        InputError: no evaluation has a map that could be shown.
    """
    body = [_section(result, sample.shown()) for result, sample in sections if result.grounding]
    if not body:
        raise InputError("heat maps: no item has a target box, or mode item was not evaluated")
    write_whole(file, _PAGE.substitute(body="\n".join(body)))


def _section(result: Evaluation, shown: Sequence[Shown]) -> str:
    found = result.grounding
    title = f"{result.data}: {result.conditions['model']} ({result.conditions['fingerprint'][:12]})"
    ends = found.intervals and found.intervals["pointing"]
    between = f" (95 %: {100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
    summary = (
        f"Of all {found.items} items with a target box, the map's strongest cell lies in it for "
        f"<b>{100 * found.pointing:.1f} %</b>{between}; chance {100 * found.chance:.1f} %. "
        f"Share of the map in the box {100 * found.mass:.1f} %, IoU of the map's box with it "
        f"{100 * found.iou:.1f} %. {len(shown)} items, chosen by a hash of their ids."
    )
    figures = "\n".join(_figure(one) for one in shown)
    return f"<h2>{html.escape(title)}</h2>\n<p>{summary}</p>\n<section>{figures}</section>"


def _figure(shown: Shown) -> str:
    """The picture as it is and under its map, with the verdict and the text that guided it."""
    item, grid = shown.item, shown.grid
    picture = load_image(item.image)
    size, box = picture.size, item.target_box
    score = metrics.score_map(grid, box, size)
    plain = scaled(picture, SIDE)
    scale = max(plain.size) / max(size)
    heat = Image.alpha_composite(plain.convert("RGBA"), heat_overlay(grid, plain.size))
    drawn = heat.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    corners = [scale * edge for edge in metrics.clipped(box, size)]
    draw.rectangle([c - 1 for c in corners], outline=WHITE, width=4)
    draw.rectangle(corners, outline=GREEN, width=2)
    if np.isfinite(grid).all():
        x, y = (scale * place for place in metrics.peak(grid, size))
        for width, colour in ((5, WHITE), (3, GREEN if score.hit else RED)):
            draw.line((x - 8, y, x + 8, y), fill=colour, width=width)
            draw.line((x, y - 8, x, y + 8), fill=colour, width=width)
    verdict = "hit" if score.hit else "miss"
    caption = (
        f"<b>{verdict}</b>, {100 * score.mass:.0f} % of the map in the box, "
        f"IoU {100 * score.iou:.0f} %, chance {100 * score.chance:.0f} %<br>"
        f"{html.escape(item_text(item))}<br><small>{html.escape(item.item_id)}</small>"
    )
    return (
        f'<figure class="{verdict}"><img src="{data_uri(plain)}" alt="picture">'
        f'<img src="{data_uri(drawn)}" alt="grounding map"><figcaption>{caption}</figcaption>'
        "</figure>"
    )


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>grounding maps</title>
<style>
 body { font: 14px/1.4 system-ui, sans-serif; margin: 24px; color: #1c2024; background: #fff }
 section { display: flex; flex-wrap: wrap; gap: 18px }
 figure { margin: 0; width: 660px; padding: 6px; border: 3px solid #d02030 }
 figure.hit { border-color: #12964a }
 img { max-width: 320px; vertical-align: top; margin-right: 6px }
 small { color: #6a7178; overflow-wrap: anywhere }
</style></head><body>
<h1>Grounding maps</h1>
<p>Left the item's picture, right the map over it: green frame the target box, cross the strongest
cell, green in the box and red outside.</p>
$body
</body></html>
""")
