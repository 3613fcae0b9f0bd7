"""The two distillation losses: target-region spatial consistency and similarity structure.

The teacher is a frozen crop encoder (the query tower after the crop stages); it plays no part in
inference. Mathematics: TIGER-FG (arXiv 2605.18434), README "The model".

L_spatial (`dense_loss`, `map_loss`) is a mean over the rows that have a target region. Over
several ranks the mean of the global batch is the ranks' means weighted by their `known_rows`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tigerfg.errors import InputError
from tigerfg.levels import level_sides
from tigerfg.training.losses import in_full_precision

# Below it a share of the map has no gradient. Far above the smallest float32 (1e-38), so that the
# gradient 1/share does not overflow; the gradient of the logits behind the map stays below 1.
LEAST_SHARE = 1e-30


def known_rows(region: Tensor) -> Tensor:
    """(B, N) target regions -> (B,) bool: the row has one; rows of zeros have none."""
    return region.sum(dim=1) > 0


@in_full_precision
def map_loss(grounding_map: Tensor, region: Tensor) -> Tensor:
    """KL(region ‖ map), the map half of L_spatial: mean_b Σ_n p_n (log p_n - log a_n), in nats.

    Args:
        grounding_map: (B, N), rows sum to 1. region: (B, N) soft target region, rows sum to 1
            (a row of zeros is left out): `box_regions`, or `map_target_without_box`.

    Returns:
        The mean over the rows that have a region, a scalar; 0 if none has.
    """
    log_map = grounding_map.clamp(min=LEAST_SHARE).log()
    divergence = (torch.xlogy(region, region) - region * log_map).sum(dim=1)
    return _mean_of_known(divergence, region)


def map_target_without_box(
    teacher_crop: Tensor, teacher_patches: Tensor, tau: float, patch_mask: Tensor | None = None
) -> Tensor:
    """Region for pictures without a box: softmax over patches of cos(teacher(crop), patch)/τ.

    Args:
        teacher_crop: (B, D) pooled feature of a crop of the target. teacher_patches: (B, N, D).
        tau: temperature τ_p, above 0.
        patch_mask: (B, N) bool, patches inside the picture: only they get a share. None: all.

    Returns:
        (B, N) in at least float32, rows sum to 1; a row whose mask is empty is all zero.

    Raises:
        InputError: tau is not above 0.
    """
    if not tau > 0:
        raise InputError(f"tau: the temperature of the map's target is {tau}, it must be above 0")
    return _softmax_of_cosines(teacher_crop, teacher_patches, tau, patch_mask)


@in_full_precision
def _softmax_of_cosines(
    crop: Tensor, patches: Tensor, tau: float, patch_mask: Tensor | None
) -> Tensor:
    cosine = torch.einsum("bd,bnd->bn", F.normalize(crop, dim=-1), F.normalize(patches, dim=-1))
    if patch_mask is None:
        return (cosine / tau).softmax(dim=1)
    # a finite filling: softmax of nothing but -inf would be NaN
    return (cosine / tau).masked_fill(~patch_mask, -1e30).softmax(dim=1) * patch_mask


@in_full_precision
def dense_loss(
    patches: Tensor,
    boxes: Tensor,
    region: Tensor,
    teacher_map: Tensor,
    teacher_extents: Tensor,
    patch: int,
    levels: int = 1,
) -> Tensor:
    """Cosine distance to the teacher's crop features, place by place: dense half of L_spatial.

        mean_b Σ_n p_n (1 - cos(v_n, t(c_n)))

    c_n is the centre of patch n in the target's crop, t the teacher's feature map of the crop,
    bilinear between the centres of its valid patches and constant outside them.

    Args:
        patches: (B, N', D) item patches of the student at all levels, finest first.
        boxes: (B, 4) target boxes in pixels of the item input. region: (B, N'), sums to 1; a row
            of zeros is left out.
        teacher_map: (B, n, n, D) patch features of the target's crop.
        teacher_extents: (B, 2) valid (w, h) of the crops in pixels. patch: pixels a patch.
        levels: item levels, each with a quarter of the patches of the one before.

    Returns:
        Scalar in [0, 2]: mean over the region's patches, then over items that have a region.
    """
    finest = sum(0.25**level for level in range(levels))
    side = math.isqrt(round(patches.shape[1] / finest))
    sampled = [
        _sample(teacher_map, teacher_extents, boxes / (side // grid), grid, patch)
        for grid in level_sides(side, levels)
    ]
    distance = 1.0 - F.cosine_similarity(patches, torch.cat(sampled, dim=1), dim=-1, eps=1e-6)
    return _mean_of_known((distance * region).sum(dim=1), region)


def _sample(teacher_map: Tensor, extents: Tensor, boxes: Tensor, grid: int, patch: int) -> Tensor:
    """The teacher's features at the centres of grid x grid item patches: (B, grid², D)."""
    side, dtype = teacher_map.shape[1], teacher_map.dtype
    centres = (torch.arange(grid, device=boxes.device, dtype=dtype) + 0.5) * patch
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)  # a box without area has no region
    scale = extents / sides  # crop pixels per item pixel [B, 2]
    valid = (extents / patch - 0.5).ceil().clamp(min=1)  # patches whose centre shows the crop
    last = (valid - 0.5) * patch  # centres of the last of them

    def along(axis: int) -> Tensor:  # [B, grid]
        place = (centres[None] - boxes[:, axis, None]) * scale[:, axis, None]
        return torch.minimum(place, last[:, axis, None])

    places = torch.stack(
        [
            along(0)[:, None, :].expand(-1, grid, -1),
            along(1)[:, :, None].expand(-1, -1, grid),
        ],
        dim=-1,
    )
    sampled = F.grid_sample(
        teacher_map.permute(0, 3, 1, 2),
        places * (2.0 / (side * patch)) - 1.0,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # [B, D, grid, grid]
    return sampled.flatten(2).transpose(1, 2)


@in_full_precision
def relation_loss(
    queries: Tensor, items: Tensor, teacher_queries: Tensor, teacher_items: Tensor, tau: float
) -> Tensor:
    """L_rel: KL between the teacher's and the student's query-item similarity structure.

        ½ mean_i [ KL(softmax_j(tq_i·tz_j/τ) ‖ softmax_j(q_i·z_j/τ)) + the same for items ]

    Over several ranks give the gathered tensors of the global batch.

    Args:
        queries, items: student embeddings (B, E). teacher_queries, teacher_items: the teacher's
            embeddings of the query crops and of the items' target crops (B, E).
        tau: temperature τ, above 0.

    Returns:
        A scalar in nats; 0 for an empty batch.

    Raises:
        InputError: tau is not above 0.
    """
    if not tau > 0:
        raise InputError(f"tau: the temperature of the relation loss is {tau}, it must be above 0")
    if len(queries) == 0:
        return (queries.sum() + items.sum()) * 0.0
    student = queries @ items.T / tau
    teacher = teacher_queries @ teacher_items.T / tau

    def divergence(s: Tensor, t: Tensor) -> Tensor:
        return F.kl_div(
            s.log_softmax(dim=1), t.log_softmax(dim=1), reduction="batchmean", log_target=True
        )

    return 0.5 * (divergence(student, teacher) + divergence(student.T, teacher.T))


def _mean_of_known(values: Tensor, region: Tensor) -> Tensor:
    known = known_rows(region)
    return torch.where(known, values, 0.0).sum() / known.sum().clamp(min=1)
