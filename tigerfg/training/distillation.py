"""The two distillation losses: target-region spatial consistency and similarity structure.

The teacher is a frozen crop encoder (the query tower after the crop stages); it plays no part in
inference. Mathematics: TIGER-FG (arXiv 2605.18434), README "The model".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def map_loss(grounding_map: Tensor, region: Tensor) -> Tensor:
    """KL(region ‖ map), the map half of L_spatial, in nats.

    Args:
        grounding_map: (B, N), rows sum to 1. region: (B, N) soft target region, rows sum to 1
            (a row of zeros is left out).
    """
    known = region.sum(dim=1) > 0
    log_map = grounding_map.float().clamp(min=1e-8).log()
    log_region = region.clamp(min=1e-12).log()
    divergence = (region * (log_region - log_map)).sum(dim=1)
    return (divergence * known).sum() / known.sum().clamp(min=1)


def map_target_without_box(teacher_crop: Tensor, teacher_patches: Tensor, tau: float) -> Tensor:
    """Region for pictures without a box: softmax over patches of cos(teacher(crop), patch)/τ.

    Args:
        teacher_crop: (B, D) pooled feature of the target's crop. teacher_patches: (B, N, D).
    """
    cosine = torch.einsum(
        "bd,bnd->bn", F.normalize(teacher_crop, dim=-1), F.normalize(teacher_patches, dim=-1)
    )
    return (cosine / tau).softmax(dim=1)


def dense_loss(
    patches: Tensor,
    boxes: Tensor,
    region: Tensor,
    teacher_map: Tensor,
    teacher_extents: Tensor,
    patch: int,
) -> Tensor:
    """Cosine distance to the teacher's crop features, place by place: dense half of L_spatial.

    Args:
        patches: (B, N, D) item patches of the student.
        boxes: (B, 4) target boxes in pixels of the item input. region: (B, N), sums to 1.
        teacher_map: (B, n, n, D) patch features of the target's crop.
        teacher_extents: (B, 2) valid (w, h) of the crops in pixels. patch: pixels a patch.

    Returns:
        Scalar in [0, 2]: mean over the region's patches, then over items.
    """
    grid, side = int(patches.shape[1] ** 0.5), teacher_map.shape[1]
    centres = (torch.arange(grid, device=patches.device, dtype=torch.float32) + 0.5) * patch
    scale = teacher_extents / (boxes[:, 2:] - boxes[:, :2])  # crop pixels per item pixel [B, 2]
    x = (centres[None] - boxes[:, 0, None]) * scale[:, 0, None]
    y = (centres[None] - boxes[:, 1, None]) * scale[:, 1, None]
    places = torch.stack(
        [x[:, None, :].expand(-1, grid, -1), y[:, :, None].expand(-1, -1, grid)], dim=-1
    )
    sampled = F.grid_sample(
        teacher_map.permute(0, 3, 1, 2),
        places * (2.0 / (side * patch)) - 1.0,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # [B, D, grid, grid]
    distance = 1.0 - F.cosine_similarity(patches, sampled.flatten(2).transpose(1, 2), dim=-1)
    return (distance * region).sum(dim=1).mean()


def relation_loss(
    queries: Tensor, items: Tensor, teacher_queries: Tensor, teacher_items: Tensor, tau: float
) -> Tensor:
    """L_rel: KL between the teacher's and the student's query-item similarity structure.

    softmax over items per query and over queries per item, both at temperature τ, averaged.

    Args:
        queries, items: student embeddings (B, E). teacher_queries, teacher_items: the teacher's
            embeddings of the query crops and of the items' target crops (B, E).
    """
    student = queries.float() @ items.float().T / tau
    teacher = teacher_queries.float() @ teacher_items.float().T / tau

    def divergence(s: Tensor, t: Tensor) -> Tensor:
        return F.kl_div(
            s.log_softmax(dim=1), t.log_softmax(dim=1), reduction="batchmean", log_target=True
        )

    return 0.5 * (divergence(student, teacher) + divergence(student.T, teacher.T))
