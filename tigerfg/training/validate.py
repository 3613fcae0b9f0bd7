"""Validation while training: recall, the true-map bound, pointing accuracy on held-out pools."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tigerfg.model.towers import TigerFG
from tigerfg.text import TextTokenizer
from tigerfg.training.pool import Pool
from tigerfg.training.regions import extent_masks, extent_pixels, item_regions
from tigerfg.training.second_look import second_look

AT_ONCE = 128  # pictures


def _pixels(pictures: Tensor, extents: Tensor, model: TigerFG) -> Tensor:
    """uint8 (B, S, S, 3) -> normalised (B, 3, S, S), zero outside the pictures."""
    x = pictures.permute(0, 3, 1, 2).float() / 255.0
    mean, std = (x.new_tensor(v)[:, None, None] for v in (model.config.mean, model.config.std))
    return (x - mean) / std * extent_pixels(extents, x.shape[-1])


def points_inside(peak: Tensor, boxes: Tensor, grid: int, patch: int) -> Tensor:
    """Whether the centres of patches lie in boxes: (B,) bool.

    Args:
        peak: (B,) int64, a patch of each picture. boxes: (B, 4) in pixels of the network's input.
        grid: patches a side. patch: pixels a patch.
    """
    centre = (torch.stack([peak % grid, peak // grid], dim=1) + 0.5) * patch  # x, y
    return ((boxes[:, :2] <= centre) & (centre <= boxes[:, 2:])).all(dim=1)


@torch.no_grad()
def validate(model: TigerFG, pool: Pool, tokenizer: TextTokenizer) -> dict[str, float]:
    """Recall@1 with one crop a product as query, in percent of all products.

    Args:
        pool: one standard picture (the first of a product) and one cluttered picture (the second)
            a product, as `rendered_pool(..., views=1, cluttered=1)` makes it.

    Returns:
        For standard and cluttered pictures: `r1` (item tower), `crop` (with its attention crop, of
        a model that has one), `bound` (true region as map), `whole` (all patches pooled), and
        `pointing` (centre of the map's strongest patch in the target box, as
        `tigerfg.benchmark.metrics.points_inside`).
    """
    patch, device = model.config.vision.patch, model.gate_text.device
    q_grid, grid = model.config.query_side, model.config.item_side

    def there(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    def encode(start: int) -> Tensor:
        rows = slice(start, start + AT_ONCE)
        extents = there(pool.crop_extents[rows])
        pixels = _pixels(there(pool.crops[rows]), extents, model)
        return model.encode_query(pixels, extent_masks(extents, q_grid, patch))

    queries = torch.cat([encode(start) for start in range(0, len(pool.crops), AT_ONCE)])
    truth = there(pool.crop_products).long()
    results: dict[str, float] = {}
    for first, layout in enumerate(("standard", "cluttered")):
        index = np.arange(first, len(pool.scenes), 2)
        embeddings: dict[str, list[Tensor]] = {"r1": [], "bound": [], "whole": []}
        hits = []
        for start in range(0, len(index), AT_ONCE):
            rows = index[start : start + AT_ONCE]
            extents = there(pool.scene_extents[rows])
            mask = extent_masks(extents, grid, patch)
            pixels = _pixels(there(pool.scenes[rows]), extents, model)
            patches = model.item_patches(pixels)
            texts = [pool.texts[p][0] for p in pool.scene_products[rows]]
            token_ids, token_mask = (there(t) for t in tokenizer(texts))
            item = model.ground(patches, mask, token_ids, token_mask)
            boxes = there(pool.scene_boxes[rows])
            region = item_regions(boxes, model.config)
            embeddings["r1"].append(item.embedding)
            if model.config.attention_crop is not None:
                looked = second_look(model, item, pixels, extents)
                embeddings.setdefault("crop", []).append(looked)
            embeddings["bound"].append(model.encode_region(patches, region))
            embeddings["whole"].append(model.encode_region(patches, model.item_mask(mask)))
            peak = model.fold_map(item.grounding_map).argmax(dim=1)
            hits.append(points_inside(peak, boxes, grid, patch))
        targets = there(pool.scene_products[index]).long()
        for name, parts in embeddings.items():
            best = targets[(queries @ torch.cat(parts).T).argmax(dim=1)]
            results[f"{layout}_{name}"] = 100.0 * float((best == truth).float().mean())
        results[f"{layout}_pointing"] = 100.0 * float(torch.cat(hits).float().mean())
    return results
