"""Training of the `detect` baseline's box head, on cached features of the frozen backbone."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tigerfg.errors import InputError
from tigerfg.model.baselines import (
    BoxHead,
    BoxHeadConfig,
    BoxOutput,
    box_iou,
    choose_box,
    generalised_iou,
)
from tigerfg.model.towers import TigerFG
from tigerfg.training.batches import BatchMaker
from tigerfg.training.regions import box_regions, extent_masks

log = logging.getLogger("tigerfg")

PICTURES = 4096  # whose features are kept: 340 MB in float16 for `tiny`
WORDINGS = 4  # texts kept of every picture
ENCODED_AT_ONCE = 128
HELD_OUT = 0.1  # share of the products that only measure
WEIGHT_DECAY = 0.05
WARM_UP = 0.05  # share of the steps in which the rate rises; then it falls as a cosine


class BoxHeadRun(NamedTuple):
    """A trained head in evaluation mode; its mean IoU with the true boxes of held-out products
    (text: the first wording), None if there were none; and how many pictures these were."""

    head: BoxHead
    mean_iou: float | None
    held_out: int


def box_head_loss(output: BoxOutput, boxes: Tensor, patch_mask: Tensor) -> Tensor:
    """Heat: KL to the box's centre. Box: L1 + (1 - generalised IoU), over the target's patches.

        L = KL(c ‖ softmax heat) + Σ_n r_n (Σ_4 |b_n - t| + 1 - GIoU(b_n, t))

    r: soft overlap of the patches with the box t; c: with its inner half (half its width and
    height), both over valid patches, sum 1. Lengths are in sides of the letterboxed input.

    Args:
        output: of `BoxHead`. boxes: (B, 4) true boxes in sides of the input. patch_mask: (B, N).

    Returns:
        Scalar: the mean over the rows whose box's inner half has a valid patch; 0 without one.
    """
    side = round(patch_mask.shape[1] ** 0.5)
    centre = boxes.view(-1, 2, 2).mean(dim=1).repeat(1, 2)
    inner = _shares((boxes + centre) / 2.0, patch_mask, side)
    region = _shares(boxes, patch_mask, side)
    known = (inner.sum(dim=1) > 0) & (region.sum(dim=1) > 0)
    # A masked patch has no share, and 0 · -inf would be NaN.
    heat = output.heat.masked_fill(~patch_mask, 0.0)
    divergence = (torch.xlogy(inner, inner) - inner * heat).sum(dim=1)
    target = boxes[:, None].to(output.boxes.dtype)
    distance = (output.boxes - target).abs().sum(dim=-1)
    fit = distance + 1.0 - generalised_iou(output.boxes, target)  # [B, N]
    loss = divergence + (region * fit).sum(dim=1)
    return (loss * known).sum() / known.sum().clamp(min=1)


def _shares(boxes: Tensor, patch_mask: Tensor, side: int) -> Tensor:
    shares = box_regions(boxes * side, side, 1) * patch_mask
    return shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-6)


def train_box_head(
    model: TigerFG,
    maker: BatchMaker,
    *,
    steps: int = 600,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    text: bool = False,
    pictures: int = PICTURES,
) -> BoxHeadRun:
    """Train a box head for a model whose towers stay as they are.

    Every picture goes through the backbone once; a step costs the head alone (and, with text, the
    text encoder). A tenth of the products is held out. Deterministic by `seed`, on one machine.

    Args:
        model: backbone and, with `text`, text encoder; not changed. For a text-guided detector
            take a model whose text encoder is trained.
        maker: where the item pictures, their boxes and texts come from.
        steps, batch, lr: AdamW with warm-up and a cosine.
        text: whether the head is told the item's text.
        pictures: how many are kept, about; those without a box are left out.

    Raises:
        InputError: no picture has a box, or a number is out of range.
    """
    for name, value in (("steps", steps), ("batch", batch), ("pictures", pictures)):
        if value < 1:
            raise InputError(f"box head: {name} {value}; give at least 1")
    training = model.training
    model.eval()
    try:
        cache = _Cache(model, maker, seed, pictures, text)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = BoxHeadConfig(
                model.config.vision.width, text_width=model.text.width if text else None
            )
            head = BoxHead(config).to(cache.device)
        kept, held_out = cache.split(np.random.default_rng((seed, 1)))
        _fit(head, cache, kept, steps, batch, lr, seed)
        iou = _mean_iou(head, cache, held_out)
    finally:
        model.train(training)
    return BoxHeadRun(head.eval().requires_grad_(False), iou, len(held_out))


class _Cache:
    """Features of pictures with a box, each encoded once, in float16 on the CPU.

    Attributes:
        products: (R,) int64. features: (R, N, D). masks: (R, N). boxes: (R, 4) in sides of the
            input. lines: WORDINGS texts of every picture; empty for a head without text.
    """

    def __init__(
        self, model: TigerFG, maker: BatchMaker, seed: int, pictures: int, text: bool
    ) -> None:
        self._model, self._maker, self._text = model, maker, text
        self.device = next(model.parameters()).device
        self.lines: list[tuple[str, ...]] = []
        parts: list[tuple[Tensor, ...]] = []
        at_once = min(pictures, ENCODED_AT_ONCE)
        for step in range(-(-pictures // at_once)):
            parts.append(self._encode(seed, step, at_once))
        columns = (torch.cat(column) for column in zip(*parts, strict=True))
        self.products, self.features, self.masks, self.boxes = columns
        if not len(self.products):
            raise InputError("box head: no training picture has a box; add target_box to items")

    @torch.no_grad()
    def _encode(self, seed: int, step: int, count: int) -> tuple[Tensor, ...]:
        draw = self._maker.start(seed, step, count)
        scenes = draw.scenes()
        finite = torch.isfinite(scenes.pixels.flatten(1).sum(dim=1))
        usable = scenes.boxed & finite & (scenes.region.sum(dim=1) > 0)
        if self._text:
            lines = zip(*(draw.lines() for _ in range(WORDINGS)), strict=True)
            self.lines += [own for own, use in zip(lines, usable.tolist(), strict=True) if use]
        features = self._model.vision(scenes.pixels.to(self.device))[usable].half().cpu()
        boxes = scenes.boxes[usable] / scenes.pixels.shape[-1]
        return draw.products[usable], features, scenes.mask[usable], boxes

    def split(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Rows of most products, and of the held-out ones; a single product is not held out."""
        products = self.products.unique()
        count = min(max(1, round(HELD_OUT * len(products))), len(products) - 1)
        held = products[torch.from_numpy(rng.permutation(len(products))[:count])]
        out = torch.isin(self.products, held)
        return (~out).nonzero()[:, 0], out.nonzero()[:, 0]

    def run(self, head: BoxHead, rows: Tensor, wordings: list[int]) -> tuple[BoxOutput, Tensor]:
        """The head's output for these rows, and their patch masks, on the device."""
        mask = self.masks[rows].to(self.device)
        features = self.features[rows].to(self.device).float()
        if not self._text:
            return head(features, mask), mask
        lines = [self.lines[row][n] for row, n in zip(rows.tolist(), wordings, strict=True)]
        texts = self._maker.tokenize(lines)
        token_ids, token_mask = (t.to(self.device) for t in (texts.token_ids, texts.token_mask))
        with torch.no_grad():
            tokens = self._model.text(token_ids, token_mask)
        return head(features, mask, tokens, token_mask), mask


def _fit(
    head: BoxHead, cache: _Cache, rows: Tensor, steps: int, batch: int, lr: float, seed: int
) -> None:
    groups = [
        {"params": [p for p in head.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in head.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    warm = max(1, round(WARM_UP * steps))
    rates = torch.optim.lr_scheduler
    schedule = rates.SequentialLR(
        optimizer,
        [
            rates.LinearLR(optimizer, start_factor=1.0 / (warm + 1), total_iters=warm),
            rates.CosineAnnealingLR(optimizer, T_max=max(1, steps - warm)),
        ],
        milestones=[warm],
    )
    head.train()
    for step in range(steps):
        rng = np.random.default_rng((seed, 2, step))
        chosen = rows[torch.from_numpy(rng.integers(0, len(rows), batch))]
        output, mask = cache.run(head, chosen, rng.integers(0, WORDINGS, batch).tolist())
        loss = box_head_loss(output, cache.boxes[chosen].to(mask.device), mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == steps:
            log.info("box head: step %d of %d, loss %.3f", step + 1, steps, loss.item())


@torch.no_grad()
def _mean_iou(head: BoxHead, cache: _Cache, rows: Tensor) -> float | None:
    if not len(rows):
        return None
    head.eval()
    total = 0.0
    for part in rows.split(ENCODED_AT_ONCE):
        output, mask = cache.run(head, part, [0] * len(part))
        chosen = choose_box(output, _largest_extents(mask))
        total += float(box_iou(chosen.cpu(), cache.boxes[part]).sum())
    return total / len(rows)


def _largest_extents(patch_mask: Tensor) -> Tensor:
    """(B, N) -> (B, 2), at most half a patch above a picture's (w, h), in sides of the input."""
    side = round(patch_mask.shape[1] ** 0.5)
    valid = patch_mask.view(-1, side, side)
    counts = torch.stack([valid.any(dim=1).sum(dim=1), valid.any(dim=2).sum(dim=1)], dim=1)
    return ((counts + 0.5) / side).clamp(max=1.0)


@torch.no_grad()
def predict_boxes(
    model: TigerFG,
    head: BoxHead,
    pixels: Tensor,
    extents: Tensor,
    token_ids: Tensor | None = None,
    token_mask: Tensor | None = None,
) -> Tensor:
    """The target's box on every item picture.

    Args:
        pixels: (B, 3, S, S) normalised, letterboxed at the top left. extents: (B, 2) valid (w, h)
            in pixels. token_ids, token_mask: (B, L), for a head that reads text.

    Returns:
        (B, 4) float32 x0 < x1, y0 < y1 in pixels of `pixels`, inside the extents.
    """
    side = pixels.shape[-1]
    patch = model.config.vision.patch
    extents = extents.to(pixels.device, torch.float32)
    mask = extent_masks(extents, side // patch, patch)
    tokens = None if token_ids is None else model.text(token_ids, token_mask)
    output = head(model.vision(pixels), mask, tokens, token_mask)
    return choose_box(output, extents / side) * side
