"""Batches for the training stages: gathered from sources, augmented, as tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from tigerfg.errors import InputError
from tigerfg.model.config import ModelConfig
from tigerfg.text import TextTokenizer
from tigerfg.training.regions import extent_masks, extent_pixels, item_regions
from tigerfg.training.sources import Rows, SceneArrays, Source


@dataclass
class Crops:
    """pixels (B, 3, S, S) normalised, mask (B, N) bool, products (B,) int64."""

    pixels: Tensor
    mask: Tensor
    products: Tensor


@dataclass
class Scenes(Crops):
    """Item pictures with boxes (B, 4), target regions and distractor regions (B, N').

    The regions are over all item levels, the mask (B, N) is that of the full-size picture, of
    which `extents` (B, 2) are the valid (w, h).
    `other_products` (B,) int64 says whose region the distractor's is: an id as in `products`, or
    -1 where that is not known.

    A picture without a distractor has a distractor region of zeros. Where the target's box is
    not known (`boxed` (B,) bool is False) `boxes` is the whole picture, and the region zeros.
    """

    extents: Tensor
    boxes: Tensor
    region: Tensor
    other_region: Tensor
    other_products: Tensor
    boxed: Tensor


@dataclass
class Texts:
    """token_ids (B, L) int64, token_mask (B, L) bool."""

    token_ids: Tensor
    token_mask: Tensor


def augment(
    pictures: np.ndarray,
    extents: np.ndarray,
    config: ModelConfig,
    rngs: Sequence[np.random.Generator],
    erase: float,
) -> Tensor:
    """uint8 (B, S, S, 3) -> normalised (B, 3, S, S): light, colour, noise, and a hole.

    Row i comes from row i's picture and generator alone, to the bit, whatever the batch around
    it: there is no floating-point sum in here whose order could depend on the batch.

    Args:
        extents: (B, 2) valid (w, h); the rest stays zero, as in serving.
        rngs: B generators, one a row.
        erase: probability that a rectangle of 10-40 % of each side is replaced by one colour.
    """
    batch, side = pictures.shape[:2]
    draws = np.empty((batch, 15), np.float32)
    noise = np.empty((batch, 3, side, side), np.float32)
    for rng, numbers, values in zip(rngs, draws, noise, strict=True):
        rng.random(dtype=np.float32, out=numbers)
        rng.standard_normal(dtype=np.float32, out=values)
    unit = torch.from_numpy(draws)[:, :, None, None]  # [B, 15, 1, 1]
    valid = torch.from_numpy(np.asarray(extents, np.float32))
    sums = torch.from_numpy(pictures.sum(axis=(1, 2), dtype=np.int64)).float()  # [B, 3], exact
    mean = (sums / (255.0 * valid.prod(dim=1, keepdim=True)))[:, :, None, None]
    contrast, light = 0.75 + 0.55 * unit[:, :1], 0.8 + 0.4 * unit[:, 1:2]
    x = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float()
    x = x.mul_(contrast / 255.0).add_(mean * (light - contrast))  # in place: half the time
    gray = x[:, :1].add(x[:, 1:2]).add_(x[:, 2:]).div_(3.0)
    x = x.sub_(gray).mul_(0.75 + 0.55 * unit[:, 2:3]).add_(gray)
    x = x.mul_(0.92 + 0.16 * unit[:, 3:6])
    x = x.add_(torch.from_numpy(noise).mul_(0.03 * unit[:, 6:7]))
    places = torch.arange(side, dtype=torch.float32)

    def stripe(extent: Tensor, first: int) -> Tensor:  # [B] -> [B, side] bool
        length = extent * (0.1 + 0.3 * unit[:, first, 0, 0])
        start = unit[:, first + 1, 0, 0] * (extent - length)
        return (places >= start[:, None]) & (places < (start + length)[:, None])

    hole = stripe(valid[:, 0], 7)[:, None, None, :] & stripe(valid[:, 1], 9)[:, None, :, None]
    hole &= unit[:, 11:12] < erase
    x = torch.where(hole, unit[:, 12:15], x).clamp_(0.0, 1.0)
    x = x.sub_(torch.tensor(config.mean)[:, None, None])
    x = x.div_(torch.tensor(config.std)[:, None, None])
    return x.mul_(extent_pixels(valid, side))


class BatchMaker:
    """Makes batches from several sources, with fixed shares; deterministic by seed and step.

    Args:
        sources: where data come from; product ids are made unique over them.
        shares: how much of a batch comes from each source, e.g. (0.7, 0.3); the first one has what
            whole rows leave.
        config: the model's sizes. tokenizer: the item text tokenizer.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        shares: Sequence[float],
        config: ModelConfig,
        tokenizer: TextTokenizer,
    ) -> None:
        if not sources or len(sources) != len(shares) or abs(sum(shares) - 1.0) > 1e-6:
            raise InputError(f"shares: {list(shares)} must be one a source and sum to 1")
        self.sources, self.shares = sources, shares
        self.config, self.tokenizer = config, tokenizer
        self.offsets = np.cumsum([0] + [source.products for source in sources])

    @property
    def skipped(self) -> Counter[str]:
        """What the sources could not use until now, reason -> count."""
        return sum((source.skipped for source in self.sources), Counter())

    def start(self, seed: int, step: int, batch: int, rows: slice | None = None) -> Draw:
        """Draw step `step`'s batch, of which only `rows` (None: all) are decoded.

        The rows are the same, bit for bit, whatever the slices that a batch is cut into.
        Exception: `Texts` are padded to the longest text of the slice.
        """
        rng = np.random.default_rng((seed, step))
        # rounded as sums: each on its own, two parts of 1.5 rows are more than a batch of 3
        ends = [0, *(round(batch * share) for share in accumulate(self.shares[1:]))]
        counts = [batch - ends[-1], *(end - begin for begin, end in pairwise(ends))]
        first, last, _ = (rows or slice(None)).indices(batch)
        parts: list[Rows] = []
        begin = 0
        for source, count in zip(self.sources, counts, strict=True):
            drawn = source.draw(count, rng)
            parts.append(drawn[max(0, first - begin) : max(0, last - begin)])
            begin += count
        seeds = (np.random.SeedSequence((seed, step, row)) for row in range(first, last))
        rngs = [np.random.Generator(np.random.SFC64(seed)) for seed in seeds]  # fast at noise
        return Draw(self, parts, torch.arange(first, last), rngs)

    def tokenize(self, texts: Sequence[str]) -> Texts:
        """Texts as tensors, padded to the longest."""
        token_ids, token_mask = self.tokenizer(texts)
        return Texts(torch.from_numpy(token_ids), torch.from_numpy(token_mask))


class Draw:
    """Rows of one batch; gives crops, scenes and texts of them, always in the same order.

    Every rank must ask for the same things in the same order: a row's augmentation goes on where
    the row's last one ended.

    Attributes:
        rows: (B,) int64, the rows' numbers in the whole batch.
        products: (B,) int64 product ids, unique over the sources.
    """

    def __init__(
        self,
        maker: BatchMaker,
        parts: Sequence[Rows],
        rows: Tensor,
        rngs: Sequence[np.random.Generator],
    ) -> None:
        self.rows = rows
        self._maker, self._rngs = maker, rngs
        numbers = [part.products for part in parts]
        used = [n for n, part in enumerate(numbers) if len(part)] or [0]
        self._parts = [parts[n] for n in used]
        self._offsets = [maker.offsets[n] for n in used]
        ids = [numbers[n] + maker.offsets[n] for n in used]
        self.products = torch.from_numpy(np.concatenate(ids))

    def crops(self) -> Crops:
        """Another crop of every product at each call."""
        config = self._maker.config
        arrays = [part.crops() for part in self._parts]
        pictures, extents = (np.concatenate(column) for column in zip(*arrays, strict=True))
        patch = config.vision.patch
        return Crops(
            augment(pictures, extents, config, self._rngs, erase=0.3),
            extent_masks(torch.from_numpy(extents), config.query_side, patch),
            self.products,
        )

    def scenes(self) -> Scenes:
        """Another item picture of every product at each call."""
        config = self._maker.config
        parts = [part.scenes() for part in self._parts]
        others = [
            np.where(part.other_products < 0, -1, part.other_products + offset)
            for part, offset in zip(parts, self._offsets, strict=True)
        ]
        arrays = SceneArrays(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        patch, grid = config.vision.patch, config.item_side
        extents, boxed = torch.from_numpy(arrays.extents), torch.from_numpy(arrays.boxed)
        boxes, other_boxes = torch.from_numpy(arrays.boxes), torch.from_numpy(arrays.other_boxes)
        whole = torch.cat([torch.zeros_like(extents), extents], dim=1)
        return Scenes(
            augment(arrays.pictures, arrays.extents, config, self._rngs, erase=0.0),
            extent_masks(extents, grid, patch),
            self.products,
            extents,
            torch.where(boxed[:, None], boxes, whole),
            item_regions(boxes, config) * boxed[:, None],
            item_regions(other_boxes, config),
            torch.from_numpy(np.concatenate(others)),
            boxed,
        )

    def lines(self) -> list[str]:
        """One item text of every row, for the picture that the last `scenes` gave.

        Another wording at each call: parts left out for half of them, invented words in some.
        """
        return [line for part in self._parts for line in part.texts()]

    def texts(self) -> Texts:
        """`lines` as tensors."""
        return self._maker.tokenize(self.lines())
