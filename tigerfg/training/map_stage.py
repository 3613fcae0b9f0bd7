"""Stage map: grounding and text alone, on cached features of the frozen tower, map loss only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tigerfg.training.batches import BatchMaker, Texts
from tigerfg.training.distillation import map_loss
from tigerfg.training.stages import Trainee


class FeatureCache:
    """Patch features of pictures that were encoded once by the frozen tower, in float16.

    Minutes of training shrink to seconds: a step costs only the text encoder and the grounding.
    """

    def __init__(self, trainee: Trainee, maker: BatchMaker, seed: int, rows: int, batch: int):
        self._maker = maker
        features, masks, regions, products = [], [], [], []
        model = trainee.model.eval()
        with torch.no_grad():
            for step in range(-(-rows // batch)):
                scenes = maker.start(seed, step, batch).scenes()
                features.append(model.vision(scenes.pixels).half())
                masks.append(scenes.mask)
                regions.append(scenes.region)
                products.append(scenes.products)
        model.train()
        self.features, self.masks = torch.cat(features), torch.cat(masks)
        self.regions, self.products = torch.cat(regions), torch.cat(products)

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor, Texts]:
        """`size` random rows: patches, patch mask, target region, and fresh texts."""
        rows = torch.from_numpy(rng.integers(0, len(self.products), size))
        pools, offsets = self._maker.pools, self._maker.offsets
        texts: list[str] = []
        for product in self.products[rows].tolist():
            source = int(np.searchsorted(offsets, product, side="right")) - 1
            texts += pools[source].pick_texts(np.array([product - offsets[source]]), rng)
        token_ids, token_mask = self._maker.tokenizer(texts)
        return (
            self.features[rows].float(),
            self.masks[rows],
            self.regions[rows],
            Texts(torch.from_numpy(token_ids), torch.from_numpy(token_mask)),
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
