"""Batches for the training stages: gathered from pools, augmented, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tigerfg.model.config import ModelConfig
from tigerfg.text import TextTokenizer
from tigerfg.training.pool import Pool
from tigerfg.training.regions import box_regions, extent_masks, extent_pixels


@dataclass
class Crops:
    """pixels (B, 3, S, S) normalised, mask (B, N) bool, products (B,) int64."""

    pixels: Tensor
    mask: Tensor
    products: Tensor


@dataclass
class Scenes(Crops):
    """Item pictures with boxes (B, 4), target regions (B, N) and distractor regions (B, N).

    A picture without a distractor has a distractor region of zeros.
    """

    boxes: Tensor
    region: Tensor
    other_region: Tensor


@dataclass
class Texts:
    """token_ids (B, L) int64, token_mask (B, L) bool."""

    token_ids: Tensor
    token_mask: Tensor


def augment(
    pictures: np.ndarray,
    extents: np.ndarray,
    config: ModelConfig,
    rng: torch.Generator,
    erase: float,
) -> Tensor:
    """uint8 (B, S, S, 3) -> normalised (B, 3, S, S): light, colour, noise, and a hole.

    Args:
        extents: (B, 2) valid (w, h); the rest stays zero, as in serving.
        erase: probability that a rectangle of 10-40 % of each side is replaced by one colour.
    """
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255.0
    batch, _, side, _ = x.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) * (high - low) + low

    mean = x.mean(dim=(2, 3), keepdim=True)
    x = (x - mean) * uniform(0.75, 1.3, batch, 1, 1, 1) + mean * uniform(0.8, 1.2, batch, 1, 1, 1)
    gray = x.mean(dim=1, keepdim=True)
    x = gray + (x - gray) * uniform(0.75, 1.3, batch, 1, 1, 1)
    x = x * uniform(0.92, 1.08, batch, 3, 1, 1)
    x = x + torch.randn(x.shape, generator=rng) * uniform(0.0, 0.03, batch, 1, 1, 1)
    places = torch.arange(side, dtype=torch.float32)

    def stripe(extent: Tensor) -> Tensor:  # [B] -> [B, side] bool
        length = extent * uniform(0.1, 0.4, batch)
        start = uniform(0.0, 1.0, batch) * (extent - length)
        return (places >= start[:, None]) & (places < (start + length)[:, None])

    valid = torch.from_numpy(extents).float()
    hole = stripe(valid[:, 0])[:, None, :] & stripe(valid[:, 1])[:, :, None]
    hole &= (torch.rand(batch, generator=rng) < erase)[:, None, None]
    x = torch.where(hole[:, None], torch.rand(batch, 3, 1, 1, generator=rng), x)
    x = (x.clamp(0.0, 1.0) - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[
        :, None, None
    ]
    return x * extent_pixels(valid, side)


class BatchMaker:
    """Makes batches from several pools, with fixed shares; deterministic by seed and step.

    Args:
        pools: training pools; product ids are made unique over them.
        shares: how much of a batch comes from each pool, e.g. (0.7, 0.3).
        config: the model's sizes. tokenizer: the item text tokenizer.
    """

    def __init__(
        self, pools: list[Pool], shares: list[float], config: ModelConfig, tokenizer: TextTokenizer
    ) -> None:
        self.pools, self.shares = pools, shares
        self.config, self.tokenizer = config, tokenizer
        self.offsets = np.cumsum([0] + [pool.products for pool in pools])

    def start(self, seed: int, step: int, batch: int) -> Draw:
        """Draw the products of step `step`'s batch."""
        rng = np.random.default_rng((seed, step))
        counts = [round(batch * share) for share in self.shares]
        counts[0] += batch - sum(counts)
        products = [
            pool.pick_products(count, rng) for pool, count in zip(self.pools, counts, strict=True)
        ]
        return Draw(self, products, rng, torch.Generator().manual_seed(seed * 1_000_003 + step))


class Draw:
    """The products of one batch; gives crops, scenes and texts of them, rows in one order."""

    def __init__(
        self,
        maker: BatchMaker,
        products: list[np.ndarray],
        rng: np.random.Generator,
        torch_rng: torch.Generator,
    ) -> None:
        self._maker, self._products, self._rng, self._torch_rng = maker, products, rng, torch_rng
        self.products = torch.from_numpy(
            np.concatenate([p + o for p, o in zip(products, maker.offsets, strict=False)])
        )

    def crops(self) -> Crops:
        """A fresh random crop of every product."""
        pools, config = self._maker.pools, self._maker.config
        chosen = [
            p.pick_crops(ids, self._rng) for p, ids in zip(pools, self._products, strict=True)
        ]
        pictures = np.concatenate([p.crops[i] for p, i in zip(pools, chosen, strict=True)])
        extents = np.concatenate([p.crop_extents[i] for p, i in zip(pools, chosen, strict=True)])
        patch = config.vision.patch
        return Crops(
            augment(pictures, extents, config, self._torch_rng, erase=0.3),
            extent_masks(torch.from_numpy(extents), config.query_size // patch, patch),
            self.products,
        )

    def scenes(self) -> Scenes:
        """A fresh random item picture of every product."""
        pools, config = self._maker.pools, self._maker.config
        chosen = [
            p.pick_scenes(ids, self._rng) for p, ids in zip(pools, self._products, strict=True)
        ]

        def gather(name: str) -> np.ndarray:
            return np.concatenate([getattr(p, name)[i] for p, i in zip(pools, chosen, strict=True)])

        extents = gather("scene_extents")
        boxes = torch.from_numpy(gather("scene_boxes"))
        patch, grid = config.vision.patch, config.item_size // config.vision.patch
        return Scenes(
            augment(gather("scenes"), extents, config, self._torch_rng, erase=0.0),
            extent_masks(torch.from_numpy(extents), grid, patch),
            self.products,
            boxes,
            box_regions(boxes, grid, patch),
            box_regions(torch.from_numpy(gather("other_boxes")), grid, patch),
        )

    def texts(self) -> Texts:
        """One text of every product, parts left out for half of them."""
        texts: list[str] = []
        for pool, ids in zip(self._maker.pools, self._products, strict=True):
            texts += pool.pick_texts(ids, self._rng)
        token_ids, token_mask = self._maker.tokenizer(texts)
        return Texts(torch.from_numpy(token_ids), torch.from_numpy(token_mask))
