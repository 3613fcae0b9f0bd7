"""Stage map: grounding and text alone, on cached features of the frozen tower, map loss only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tigerfg.training.batches import BatchMaker, Texts
from tigerfg.training.distillation import map_loss
from tigerfg.training.stages import Trainee

WORDINGS = 8  # texts kept of every cached picture


class FeatureCache:
    """Patch features of pictures that were encoded once by the frozen tower, in float16.

    Minutes of training shrink to seconds: a step costs only the text encoder and the grounding.
    """

    def __init__(self, trainee: Trainee, maker: BatchMaker, seed: int, rows: int, batch: int):
        self._maker = maker
        features, masks, regions, lines = [], [], [], []
        model = trainee.model.eval()
        with torch.no_grad():
            for step in range(-(-rows // batch)):
                draw = maker.start(seed, step, batch)
                scenes = draw.scenes()
                features.append(model.vision(scenes.pixels).half())
                masks.append(scenes.mask)
                regions.append(scenes.region)
                lines.append([draw.lines() for _ in range(WORDINGS)])
        model.train()
        self.features, self.masks = torch.cat(features), torch.cat(masks)
        self.regions = torch.cat(regions)
        self.lines = [wordings for part in lines for wordings in zip(*part, strict=True)]

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor, Texts]:
        """`size` random rows: patches, patch mask, target region, and fresh texts."""
        rows = torch.from_numpy(rng.integers(0, len(self.lines), size))
        wordings = rng.integers(0, WORDINGS, size).tolist()
        lines = [self.lines[row][n] for row, n in zip(rows.tolist(), wordings, strict=True)]
        return (
            self.features[rows].float(),
            self.masks[rows],
            self.regions[rows],
            self._maker.tokenize(lines),
        )


def map_steps(
    trainee: Trainee, cache: FeatureCache, seed: int, first: int, steps: int, batch: int
) -> Iterator[dict[str, Tensor]]:
    """Yield the map loss of steps first..steps-1; the caller does the optimiser's part."""
    model = trainee.model
    for step in range(first, steps):
        rng = np.random.default_rng((seed, 9, step))
        patches, mask, region, texts = cache.batch(rng, batch)
        grounding_map = model.grounding_map(patches, mask, texts.token_ids, texts.token_mask)
        yield {"map": map_loss(grounding_map, region)}
