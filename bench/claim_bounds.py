"""What holds TIGER-FG back on a suite: the map, its leak to other objects, or the resolution.

    python bench/claim_bounds.py --checkpoint CKPT --suite SUITE [--items N]

The same item patches are pooled with other maps, from what the model attends to up to the truth,
and the query tower is given crops of lower and full resolution. Prints a table for both layouts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from engine_report import markdown
from torch import Tensor

from tigerfg.benchmark.pictures import stored_picture
from tigerfg.benchmark.selection import Selection
from tigerfg.images import load_image, preprocess
from tigerfg.model import TigerFG, load_checkpoint
from tigerfg.model.checkpoint import TOKENIZER
from tigerfg.records import Item
from tigerfg.text import TextTokenizer, item_text
from tigerfg.training.precision import cast_encoders, resolve
from tigerfg.training.regions import crop_boxes, extent_masks, item_regions

AT_ONCE = 128
SIGMA = 4.0  # of the window around the map's centre, in patches of its level
SHIFTS = 2  # mean-shift steps from the strongest patch
MOST_OBJECTS = 8

ROWS = {
    "item": "TIGER-FG: its own embedding, without attention crop",
    "map": "its map, averaged over the heads, as one region",
    "window": "that map times a Gaussian window around its centre (no training)",
    "object": "the object with most of the map, its true box as region",
    "inside": "the map inside the true box only",
    "region": "the true box as region (the map's bound)",
    "small crop": "query tower on the true box cut from the item's input",
    "crop": "query tower on the true box cut from the full picture (`oracle`)",
}


class Batch(NamedTuple):
    """Some items: network inputs, boxes (B, 4) in their pixels, boxes of all objects (B, O, 4)."""

    items: list[Item]
    pixels: Tensor
    mask: Tensor
    boxes: Tensor
    objects: Tensor


def batches(items: list[Item], model: TigerFG) -> Iterator[Batch]:
    config = model.config
    for start in range(0, len(items), AT_ONCE):
        part = items[start : start + AT_ONCE]
        pixels, mask, _ = preprocess(
            [item.image for item in part], config.item_size, config.preprocessing
        )
        objects = torch.zeros(len(part), MOST_OBJECTS, 4)
        for row, item in enumerate(part):
            picture = stored_picture(item.image)
            assert picture is not None
            scale = config.item_size / max(picture.size)
            own = item.extra["product_id"]
            others = [o["box"] for o in item.extra["objects"] if o["product_id"] != own]
            boxes = [item.target_box, *others][:MOST_OBJECTS]
            objects[row, : len(boxes)] = torch.tensor(boxes, dtype=torch.float32) * scale
        yield Batch(part, torch.from_numpy(pixels), torch.from_numpy(mask), objects[:, 0], objects)


def windowed(grounding_map: Tensor, model: TigerFG) -> Tensor:
    """The map times a Gaussian around its centre of mass near its strongest patch, sum 1."""
    side, levels = model.config.item_side, model.config.item_levels
    fine = model.fold_map(grounding_map)
    places = _places(side, 1)
    centre = places[fine.argmax(dim=1)]
    for _ in range(SHIFTS):
        near = fine * _window(places, centre, SIGMA)
        centre = near @ places / near.sum(dim=1, keepdim=True)
    windows = [
        _window(_places(side >> level, 1 << level), centre, SIGMA * (1 << level))
        for level in range(levels)
    ]
    focused = grounding_map * torch.cat(windows, dim=1)
    return focused / focused.sum(dim=1, keepdim=True)


def _places(side: int, scale: int) -> Tensor:
    """Centres (side², 2) of a level's patches, in patches of the finest level."""
    steps = (torch.arange(side) + 0.5) * scale
    return torch.stack([steps.repeat(side), steps.repeat_interleave(side)], dim=1)


def _window(places: Tensor, centre: Tensor, sigma: float) -> Tensor:
    return torch.exp(-(places[None] - centre[:, None]).square().sum(dim=-1) / (2 * sigma**2))


@torch.no_grad()
def embeddings(model: TigerFG, tokenizer: TextTokenizer, items: list[Item]) -> dict[str, Tensor]:
    """Row -> embeddings (I, E)."""
    config, patch = model.config, model.config.vision.patch
    found: dict[str, list[Tensor]] = {name: [] for name in ROWS}
    for batch in batches(items, model):
        ids, token_mask = map(torch.from_numpy, tokenizer([item_text(i) for i in batch.items]))
        patches = model.item_patches(batch.pixels)
        out = model.ground(patches, batch.mask, ids, token_mask)
        own = out.grounding_map.float()
        region = item_regions(batch.boxes, config)
        regions = torch.stack(
            [item_regions(batch.objects[:, n], config) for n in range(MOST_OBJECTS)], dim=1
        )
        best = (regions * own[:, None]).sum(dim=2).argmax(dim=1)
        inside = own * (region > 0) + 1e-9 * region
        weights = {
            "map": own,
            "window": windowed(own, model),
            "object": regions[torch.arange(len(best)), best],
            "inside": inside / inside.sum(dim=1, keepdim=True),
            "region": region,
        }
        found["item"].append(out.embedding.float())
        for name, weight in weights.items():
            found[name].append(model.encode_region(patches, weight.to(patches.dtype)).float())
        crops, extents = crop_boxes(batch.pixels, batch.boxes, config.query_size)
        mask = extent_masks(extents, config.query_side, patch)
        found["small crop"].append(model.encode_query(crops, mask).float())
        size = config.query_size
        cut = [load_image(i.image, i.target_box, target_size=size) for i in batch.items]
        found["crop"].append(_queries(model, cut))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _queries(model: TigerFG, images: list) -> Tensor:
    config = model.config
    pixels, mask, _ = preprocess(images, config.query_size, config.preprocessing)
    return model.encode_query(torch.from_numpy(pixels), torch.from_numpy(mask)).float()


@torch.no_grad()
def recall(checkpoint: Path, directory: Path, most: int | None) -> dict[str, float]:
    """Row -> Recall@1 in percent, of the first `most` items as gallery."""
    device = torch.device("cpu")
    model = cast_encoders(load_checkpoint(checkpoint).eval(), resolve("auto", device), device)
    tokenizer = TextTokenizer.from_file(checkpoint / TOKENIZER, model.config.text.max_length)
    chosen = Selection.read(directory, None)
    items = chosen.items[:most]
    column = {item.item_id: n for n, item in enumerate(items)}
    asked = [query for query in chosen.queries if query.item_ids[0] in column]
    parts = [asked[n : n + AT_ONCE] for n in range(0, len(asked), AT_ONCE)]
    queries = torch.cat([_queries(model, [query.image for query in part]) for part in parts])
    truth = torch.tensor([column[query.item_ids[0]] for query in asked])
    return {
        name: 100 * float(((queries @ vectors.T).argmax(dim=1) == truth).double().mean())
        for name, vectors in embeddings(model, tokenizer, items).items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--suite", type=Path, required=True, help="what `tigerfg suite` made")
    parser.add_argument("--items", type=int, help="only so many items; all unless told")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = {
        layout: recall(options.checkpoint, options.suite / layout, options.items)
        for layout in ("standard", "cluttered")
    }
    body = [[title, *(f"{found[x][name]:.1f}" for x in found)] for name, title in ROWS.items()]
    print("\n".join(markdown(["Recall@1 in %", *found], body)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
