"""What one training step of each stage computes: the two-stage recipe, its losses summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tigerfg.model.towers import TigerFG
from tigerfg.training.batches import Crops, Draw, Scenes
from tigerfg.training.distillation import dense_loss, map_loss, relation_loss
from tigerfg.training.losses import info_nce
from tigerfg.training.regions import crop_boxes, extent_masks


@dataclass(frozen=True)
class LossWeights:
    """L = L_nce + region·L_region + dense·L_dense + map·L_map + relation·L_rel; τ of L_rel."""

    region: float = 0.5
    dense: float = 0.2
    map: float = 0.5
    relation: float = 0.5
    relation_tau: float = 0.1


class Trainee(nn.Module):
    """The model together with the loss's temperature, which is trained too."""

    def __init__(self, model: TigerFG) -> None:
        super().__init__()
        self.model = model
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    def logit_scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=100.0)


Step = Callable[[Trainee, TigerFG | None, Draw, LossWeights], dict[str, Tensor]]


def _encode(model: TigerFG, crops: Crops) -> Tensor:
    return model.encode_query(crops.pixels, crops.mask)


def _region_loss(
    trainee: Trainee, queries: Tensor, patches: Tensor, scenes: Scenes
) -> tuple[Tensor, Tensor]:
    """L_region, and the region embeddings; a distractor of the same picture is a hard negative."""
    model = trainee.model
    items = model.encode_region(patches, scenes.region)
    has_other = scenes.other_region.sum(dim=1) > 0
    others = model.encode_region(patches[has_other], scenes.other_region[has_other])
    loss = info_nce(queries, items, scenes.products, trainee.logit_scale(), others)
    return loss, items


def crop_step(
    trainee: Trainee, teacher: TigerFG | None, draw: Draw, weights: LossWeights
) -> dict[str, Tensor]:
    """Stage crops: two crops of one product are a pair."""
    first, second = draw.crops(), draw.crops()
    embeddings = _encode(
        trainee.model,
        Crops(
            torch.cat([first.pixels, second.pixels]),
            torch.cat([first.mask, second.mask]),
            first.products,
        ),
    )
    a, b = embeddings.chunk(2)
    return {"nce": info_nce(a, b, first.products, trainee.logit_scale())}


def region_step(
    trainee: Trainee, teacher: TigerFG | None, draw: Draw, weights: LossWeights
) -> dict[str, Tensor]:
    """Stage regions: crop against the full picture pooled with the true region, and crop pairs."""
    model = trainee.model
    crops, more, scenes = draw.crops(), draw.crops(), draw.scenes()
    half = torch.arange(0, len(crops.products), 2)
    queries = _encode(model, crops)
    pairs = _encode(model, Crops(more.pixels[half], more.mask[half], crops.products[half]))
    region, _ = _region_loss(trainee, queries, model.vision(scenes.pixels), scenes)
    nce = info_nce(queries[half], pairs, crops.products[half], trainee.logit_scale())
    return {"region": region, "nce": 0.5 * nce}


def joint_step(
    trainee: Trainee, teacher: TigerFG | None, draw: Draw, weights: LossWeights
) -> dict[str, Tensor]:
    """Stage joint: the whole item tower with all losses; needs the teacher.

    For the `clip` baseline (item_tower "global") there is no map to supervise, so only L_nce
    and L_rel apply.
    """
    assert teacher is not None
    model, scale = trainee.model, trainee.logit_scale()
    crops, scenes, texts = draw.crops(), draw.scenes(), draw.texts()
    queries, patches = _encode(model, crops), model.vision(scenes.pixels)
    item = model.ground(patches, scenes.mask, texts.token_ids, texts.token_mask)
    config = model.config
    patch = config.vision.patch
    with torch.no_grad():
        targets, extents = crop_boxes(scenes.pixels, scenes.boxes, config.query_size)
        grid = config.query_size // patch
        teacher_patches = teacher.vision(torch.cat([crops.pixels, targets]))
        mask = torch.cat([crops.mask, extent_masks(extents, grid, patch)])
        teacher_queries, teacher_items = teacher.encode_region(teacher_patches, mask).chunk(2)
        teacher_map = teacher_patches[len(queries) :].unflatten(1, (grid, grid))
    losses = {
        "nce": info_nce(queries, item.embedding, crops.products, scale),
        "relation": weights.relation
        * relation_loss(
            queries, item.embedding, teacher_queries, teacher_items, weights.relation_tau
        ),
    }
    if config.item_tower == "global":
        return losses
    region, _ = _region_loss(trainee, queries, patches, scenes)
    losses["region"] = weights.region * region
    losses["dense"] = weights.dense * dense_loss(
        patches, scenes.boxes, scenes.region, teacher_map, extents, patch
    )
    losses["map"] = weights.map * map_loss(item.grounding_map, scenes.region)
    return losses


STEPS: dict[str, Step] = {"crops": crop_step, "regions": region_step, "joint": joint_step}
