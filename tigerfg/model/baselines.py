"""The `detect` baseline's detector: a small head over the patches of the same frozen backbone.

A detection pipeline predicts a box on the item picture and embeds the crop with the query tower.
The head is anchor-free (FCOS, Tian et al. 2019): every patch says how likely it is the centre of
the target, and which box it would then give. The strongest patch's box is taken, so that of several
products one is chosen, where regressing a single box would average them.

Without text it can only learn which product is the most salient one. That is what shops run, and
the default. With text, the tokens of the model's text encoder modulate the features before every
block (FiLM, Perez et al. 2018): the strongest fair detector, which knows what is looked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tigerfg.errors import InputError
from tigerfg.model.backbones import ConvBlock

FIRST_DISTANCE = -1.5  # before softplus: a box of 0.4 of the picture around every patch


@dataclass(frozen=True)
class BoxHeadConfig:
    """Sizes of a box head.

    Attributes:
        width: of the backbone's patches. text_width: of the text encoder's tokens, None without
            text. hidden, blocks, kernel: width, depth and kernel side of the head's ConvBlocks.
    """

    width: int
    text_width: int | None = None
    hidden: int = 96
    blocks: int = 2
    kernel: int = 5

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "blocks", "kernel"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"box head: {name} {value!r} is no positive integer")


class BoxOutput(NamedTuple):
    """Of every patch: heat (B, N), the log of its share of being the target's centre (shares sum
    to 1); boxes (B, N, 4) x0, y0, x1, y1 in sides of the letterboxed input, not clipped."""

    heat: Tensor
    boxes: Tensor


class BoxHead(nn.Module):
    """Predicts the target's box from patch features, and from text if its config has a width."""

    def __init__(self, config: BoxHeadConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.project = nn.Linear(config.width, hidden)
        self.places = nn.Linear(2, hidden, bias=False)
        self.blocks = nn.ModuleList(
            ConvBlock(hidden, config.kernel, 2.0) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.heat = nn.Linear(hidden, 1)
        self.distances = nn.Linear(hidden, 4)
        nn.init.zeros_(self.distances.weight)
        nn.init.constant_(self.distances.bias, FIRST_DISTANCE)
        if config.text_width is not None:
            self.token_query = nn.Parameter(torch.zeros(config.text_width))
            self.norm_text = nn.LayerNorm(config.text_width, eps=1e-6)
            self.modulations = nn.ModuleList(
                nn.Linear(config.text_width, 2 * hidden) for _ in range(config.blocks)
            )

    def forward(
        self,
        patches: Tensor,
        patch_mask: Tensor,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> BoxOutput:
        """Heat and a box of every patch.

        Args:
            patches: (B, N, D) of a square grid. patch_mask: (B, N) bool; what other patches hold
                changes nothing, and none of them is chosen.
            tokens, token_mask: (B, L, text width) and (B, L) bool, for a head with text.

        Raises:
            InputError: the head reads text and gets none, or the other way round.
        """
        if (tokens is None) != (self.config.text_width is None):
            raise InputError(
                "box head: text "
                + ("is missing: this head reads it" if tokens is None else "is not read by it")
            )
        batch, count, _ = patches.shape
        side = round(count**0.5)
        valid = patch_mask.view(batch, side, side)
        shown = valid[..., None].to(patches.dtype)
        x = self.project(F.layer_norm(patches, patches.shape[-1:], eps=1e-6))
        x = x.view(batch, side, side, self.config.hidden)
        x = (x + self.places(_relative_places(valid, x.dtype))) * shown
        text = None if tokens is None else self._pooled(tokens, token_mask)
        for number, block in enumerate(self.blocks):
            if text is not None:
                scale, shift = self.modulations[number](text)[:, None, None].chunk(2, dim=-1)
                x = (x * (1.0 + scale) + shift) * shown
            x = block(x) * shown  # else a neighbour would read what padding was turned into
        x = self.norm(x).flatten(1, 2)
        heat = self.heat(x)[..., 0].float()
        heat = heat.masked_fill(~patch_mask, torch.finfo(heat.dtype).min).log_softmax(dim=1)
        centres = (torch.arange(side, device=x.device, dtype=heat.dtype) + 0.5) / side
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        centre = torch.stack([columns, rows], dim=-1).flatten(0, 1)  # [N, 2]
        near, far = F.softplus(self.distances(x).float()).chunk(2, dim=-1)
        return BoxOutput(heat, torch.cat([centre - near, centre + far], dim=-1))

    def _pooled(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """tokens (B, L, text width) -> (B, text width), by one learnt query (starts flat)."""
        t = self.norm_text(tokens)
        logits = t @ self.token_query
        weights = logits.masked_fill(~token_mask, torch.finfo(logits.dtype).min).softmax(dim=1)
        return (weights[:, None] @ t)[:, 0]


def choose_box(output: BoxOutput, extents: Tensor) -> Tensor:
    """The strongest patch's box, clipped to the picture.

    Args:
        extents: (B, 2) valid (w, h) in sides of the letterboxed input.

    Returns:
        (B, 4) x0 < x1 and y0 < y1 in sides of the input: a box never vanishes, because its patch
        lies in the picture. (A picture thinner than half a patch gives its whole thickness.)
    """
    peak = output.heat.argmax(dim=1)
    boxes = output.boxes[torch.arange(len(peak), device=peak.device), peak].view(-1, 2, 2)
    clipped = torch.minimum(boxes.clamp(min=0.0), extents[:, None].to(boxes.dtype))
    whole = torch.stack([torch.zeros_like(extents), extents], dim=1).to(boxes.dtype)
    gone = clipped[:, 1:] <= clipped[:, :1]  # [B, 1, (x, y)]
    return torch.where(gone, whole, clipped).flatten(1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union: (..., 4) x0, y0, x1, y1 each -> (...); 0 for boxes without area."""
    intersection, union, _ = _areas(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU - (hull - union) / hull, in (-1, 1], of boxes (..., 4) with x0 <= x1 and y0 <= y1.

    hull: the smallest box around both (Rezatofighi et al. 2019). Unlike IoU it has a gradient for
    boxes that do not touch. Two boxes at one point give 0.
    """
    intersection, union, hull = _areas(a, b)
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of intersection, union and hull."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0.0).prod(dim=-1)

    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = area(low, high)
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - intersection
    outer = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    return intersection, union, area(*outer)


def _relative_places(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Where in the picture a patch lies: valid (B, n, n) -> (B, n, n, (x, y)), -1 to 1 inside."""
    side = valid.shape[1]
    steps = torch.arange(side, device=valid.device, dtype=dtype) + 0.5
    columns = valid.any(dim=1).sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]
    rows = valid.any(dim=2).sum(dim=1, keepdim=True).clamp(min=1)
    x, y = 2.0 * steps / columns - 1.0, 2.0 * steps / rows - 1.0  # [B, n]
    return torch.stack(
        [x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1
    )
