"""Stage map: grounding and text alone, on cached features of the frozen tower, map loss only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tigerfg.errors import InputError
from tigerfg.model.towers import TigerFG
from tigerfg.training.batches import BatchMaker, Texts
from tigerfg.training.distillation import known_rows, map_loss
from tigerfg.training.distributed import World
from tigerfg.training.item_stages import row_loss
from tigerfg.training.stages import Encoded, Gathered, Trainee, on_device, usable_rows

WORDINGS = 8  # texts kept of every cached picture
ENCODED_AT_ONCE = 128  # by all ranks together


@dataclass
class MapBatch:
    """products (B,), patches (B, N, D), mask (B, N) bool, region (B, N), texts."""

    products: Tensor
    patches: Tensor
    mask: Tensor
    region: Tensor
    texts: Texts


class MapStage:
    """Patch features of pictures that were encoded once by the frozen tower, in float16.

    Minutes of training shrink to seconds: a step costs only the text encoder and the grounding.
    Pictures without a box are left out: the map has no target there.

    Args:
        model: the trained towers as they are when the stage begins.
        maker, seed: where the pictures come from. rows: how many, about. size: rows of a step.
        world: the ranks, which share the encoding; each then holds all features, in memory.

    Raises:
        InputError: no picture has a box.
    """

    def __init__(
        self, model: TigerFG, maker: BatchMaker, seed: int, rows: int, size: int, world: World
    ) -> None:
        self.maker, self.seed, self.size, self.device = maker, seed, size, world.device
        self.skipped: Counter[str] = Counter()
        self.lines: list[list[str]] = []
        batch = min(rows, ENCODED_AT_ONCE)
        batches = -(-rows // batch)
        cache: list[Tensor] = []  # made once: parts and their concatenation would need it twice
        for step in range(batches):
            *columns, lines = self._encode(model, step, batch, world)
            boxed = known_rows(columns[-1])
            cache = cache or [c.new_empty(batches * batch, *c.shape[1:]) for c in columns]
            kept = slice(len(self.lines), len(self.lines) + int(boxed.sum()))
            for column, part in zip(cache, columns, strict=True):
                column[kept] = part[boxed]
            self.lines += [line for line, known in zip(lines, boxed.tolist(), strict=True) if known]
        kept = slice(len(self.lines))
        self.products, self.features, self.masks, self.regions = (column[kept] for column in cache)
        if not self.lines:
            raise InputError("stages: no training picture has a box; leave the map stage out")

    @torch.no_grad()
    def _encode(
        self, model: TigerFG, step: int, batch: int, world: World
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[list[str]]]:
        """Products, features, masks, regions and wordings of one batch of pictures."""
        draw = self.maker.start(self.seed, step, batch, world.rows(batch))
        scenes = draw.scenes()
        lines = [draw.lines() for _ in range(WORDINGS)]
        usable_rows(self.skipped, scenes.pixels, scenes.region)  # others have no region
        features = model.item_patches(scenes.pixels.to(self.device)).half()
        own = (draw.products, features, scenes.mask, scenes.region)
        gathered = (world.gather(column.to(self.device), batch).cpu() for column in own)
        wordings = world.collect([list(texts) for texts in zip(*lines, strict=True)])
        return (*gathered, [texts for part in wordings for texts in part])

    def make(self, step: int, rows: slice) -> MapBatch:
        """Rows of a step's batch: random pictures of the cache, each with one of its wordings."""
        rng = np.random.default_rng((self.seed, 9, step))
        chosen = rng.integers(0, len(self.lines), self.size)[rows]
        wordings = rng.integers(0, WORDINGS, self.size)[rows].tolist()
        lines = [self.lines[row][n] for row, n in zip(chosen.tolist(), wordings, strict=True)]
        index = torch.from_numpy(chosen)
        return MapBatch(
            self.products[index],
            self.features[index].float(),
            self.masks[index],
            self.regions[index],
            self.maker.tokenize(lines),
        )

    def prepare(self, made: MapBatch) -> MapBatch:
        return on_device(made, self.device)

    def encode(self, trainee: Trainee, batch: MapBatch) -> Encoded:
        texts = batch.texts
        grounding_map = trainee.model.grounding_map(
            batch.patches, batch.mask, texts.token_ids, texts.token_mask
        )
        loss = map_loss(grounding_map, batch.region)
        return Encoded({}, {}, row_losses={"map": row_loss(1.0, loss, batch.region)})

    def contrast(self, trainee: Trainee, batch: Gathered) -> dict[str, Tensor]:
        return {}
