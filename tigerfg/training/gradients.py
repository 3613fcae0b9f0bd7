"""The gradient of one step, for one process or many, for whole batches or a few rows at a time.

Gradient caching is Gao et al. 2021 (arXiv 2101.06983): contrastive losses need the embeddings of
the whole batch at once, but not the towers' activations. So the embeddings are made first, the
losses' gradient stops there, and every row's share is taken through the towers afterwards, by a
second forward pass if the first one did not keep its activations. Nothing random happens inside the
towers (no dropout), so both passes are the same on a CPU; on a GPU the first one, which needs no
gradient, runs the fused kernels, and differs by their rounding (so that L_crop may see another
window in the second, of one item in a hundred). Ranks of a distributed run fit in between: what is
gathered are embeddings, and every rank goes on with the gradient of its own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tigerfg.training.distributed import World
from tigerfg.training.stages import Encoded, Gathered, RowLoss, Trainee, TrainingStage


def step_gradients(
    trainee: Trainee,
    stage: TrainingStage,
    step: int,
    size: int,
    micro_batch: int | None,
    world: World,
) -> dict[str, Tensor]:
    """Leave a step's gradient in `trainee`'s parameters; gradients there before are lost.

    With more ranks than one, the gradients are this rank's share; `World.sum_gradients` follows.

    Args:
        size: rows of the global batch, of which this rank encodes `world.rows(size)`.
        micro_batch: rows that are encoded at once; None: all of the rank's.

    Returns:
        The weighted losses of the global batch, scalars without gradient, alike on every rank.
    """
    trainee.zero_grad(set_to_none=True)
    slices = slices_of(world.rows(size), micro_batch)
    batches = [stage.prepare(stage.make(step, rows)) for rows in slices]
    cached = len(batches) > 1
    with torch.set_grad_enabled(not cached):
        parts = [stage.encode(trainee, batch) for batch in batches]
    products = torch.cat([batch.products for batch in batches])
    whole = _gather(parts, products, size, world)
    losses, gradients = _contrast(trainee, stage, whole, world)
    means = _row_means([part.row_losses for part in parts], world)
    own = world.rows(size).start
    for index, batch in enumerate(batches):
        part = stage.encode(trainee, batch) if cached else parts[index]
        rows = slice(own, own + len(batch.products))
        own = rows.stop
        _backward(part, {name: g[rows] for name, g in gradients.items()}, means)
    return {**losses, **{name: mean.total / mean.rows for name, mean in means.items()}}


def slices_of(rows: slice, micro_batch: int | None) -> list[slice]:
    """The parts of a rank's rows that are encoded at once, in order."""
    size = micro_batch or max(1, rows.stop - rows.start)
    return [slice(i, min(i + size, rows.stop)) for i in range(rows.start, rows.stop, size)]


def _gather(parts: Sequence[Encoded], products: Tensor, size: int, world: World) -> Gathered:
    """Everybody's embeddings, as leaves that collect gradients; one transfer for all of them."""
    names = list(parts[0].embeddings)
    if not names:
        return Gathered({}, {}, products)
    columns = [torch.cat([part.embeddings[name].detach() for part in parts]) for name in names]
    flags = torch.stack([torch.cat([p.present[name] for p in parts]) for name in names], dim=1)
    packed = torch.cat([*columns, flags.to(columns[0].dtype)], dim=1)
    *embeddings, flags = world.gather(packed, size).split(
        [*(column.shape[1] for column in columns), len(names)], dim=1
    )
    shown = list(parts[0].shown)
    ids = [products, *(torch.cat([part.shown[name] for part in parts]) for name in shown)]
    products, *others = world.gather(torch.stack(ids, dim=1), size).unbind(dim=1)
    return Gathered(
        {n: e.contiguous().requires_grad_() for n, e in zip(names, embeddings, strict=True)},
        {name: flags[:, i] > 0 for i, name in enumerate(names)},
        products,
        dict(zip(shown, others, strict=True)),
    )


def _contrast(
    trainee: Trainee, stage: TrainingStage, whole: Gathered, world: World
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of the whole batch, and their gradient on every embedding that they depend on."""
    losses = stage.contrast(trainee, whole)
    if not losses:
        return {}, {}
    names = list(whole.embeddings)
    scale, *rest = torch.autograd.grad(
        torch.stack(list(losses.values())).sum(),
        [trainee.log_scale, *(whole.embeddings[name] for name in names)],
        allow_unused=True,
    )
    if world.first:  # every rank has it whole, and gradients are summed
        trainee.log_scale.grad = scale
    gradients = {name: g for name, g in zip(names, rest, strict=True) if g is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def _row_means(parts: Sequence[dict[str, RowLoss]], world: World) -> dict[str, RowLoss]:
    """Sums and numbers of rows of the row losses over all ranks; at least one row."""
    names = list(parts[0])
    if not names:
        return {}
    pairs = [torch.stack([torch.stack(part[name]).detach() for name in names]) for part in parts]
    total = world.sum(torch.stack(pairs).sum(dim=0))  # [losses, 2]
    return {n: RowLoss(total[i, 0], total[i, 1].clamp(min=1.0)) for i, n in enumerate(names)}


def _backward(part: Encoded, gradients: dict[str, Tensor], means: dict[str, RowLoss]) -> None:
    """Take the gradients of one part's embeddings and row losses through the towers."""
    outputs: list[Any] = [part.embeddings[name] for name in gradients]
    upstream: list[Any] = list(gradients.values())
    for name, loss in part.row_losses.items():
        outputs.append(loss.total)
        upstream.append(1.0 / means[name].rows)
    pairs = [(o, g) for o, g in zip(outputs, upstream, strict=True) if o.requires_grad]
    if pairs:
        torch.autograd.backward(*zip(*pairs, strict=True))
