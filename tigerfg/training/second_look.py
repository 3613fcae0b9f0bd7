"""The attention crop while training: items embedded by both towers, nearly as they are served.

See `tigerfg.attention_crop`. The query tower meets the windows that the map really chooses, with
parts of other products in them, and the item tower learns what the crop does not tell. What differs
from serving is how a window is resized (`crop_boxes`): where it shrinks by half, the query tower's
cosine between both is some .995 (`lite`, photos).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tigerfg.attention_crop import AttentionCrop
from tigerfg.images import crop_map
from tigerfg.model.towers import ItemOutput, TigerFG
from tigerfg.training.regions import crop_boxes, extent_masks


def second_look(model: TigerFG, item: ItemOutput, pixels: Tensor, extents: Tensor) -> Tensor:
    """Embeddings (B, E) of items with their attention crops in them, norm 1.

    Both towers have a gradient, the choice of the window has none.

    Args:
        model: with an `attention_crop` in its configuration.
        item: what `model.ground` says, its map over all item levels.
        pixels: (B, 3, S, S) of the item pictures. extents: (B, 2) their valid (w, h).
    """
    config = model.config
    crop = config.attention_crop
    maps = model.fold_map(item.grounding_map.detach()).float().cpu().numpy()
    windows = _windows(crop, maps, extents.cpu().numpy(), config.item_size, config.vision.patch)
    boxes = torch.from_numpy(windows).to(pixels)
    crops, shown = crop_boxes(pixels, boxes, config.query_size)
    mask = extent_masks(shown, config.query_side, config.vision.patch)
    both = item.embedding + crop.weight * model.encode_query(crops, mask)
    return F.normalize(both, dim=1, eps=1e-6)


def _windows(
    crop: AttentionCrop, maps: np.ndarray, extents: np.ndarray, side: int, patch: int
) -> np.ndarray:
    """Maps (B, N) of the full size -> float32 (B, 4): x0, y0, x1, y1 in pixels."""
    found = [
        crop.window(crop_map(values, extent, side, patch), tuple(extent), patch)
        for values, extent in zip(maps, extents.astype(int).tolist(), strict=True)
    ]
    return np.array(found, np.float32).reshape(-1, 4)
