"""The other product of a picture as a hard negative: never of the query that looks for it.

In float64, where nothing but the order of sums differs, see `test_gradients`.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny_run
import torch
from gradient_run import ALONE, SIZE, STEP, WideMaker, Words, stage, trainee
from torch import Tensor

from tigerfg.training.batches import BatchMaker
from tigerfg.training.gradients import step_gradients
from tigerfg.training.pool import Pool
from tigerfg.training.stages import Gathered, Trainee


def one_picture_each(products: int, others: list[int], shown: list[int] | None = None) -> Pool:
    """A picture of each product, in which product `others` is beside it (-1: none).

    Args:
        shown: what the pool says of it, if not the truth.
    """
    pool = tiny_run.pool(products, views=1, cluttered=0)
    pool.unknown_words = 0.0
    beside = np.array(others) >= 0
    pool.other_boxes = np.float32([[8, 0, 60, 40]]).repeat(products, 0) * beside[:, None]
    pool.other_products = np.array(others if shown is None else shown, np.int32)
    return pool


def step(
    kind: str, pool: Pool, size: int, micro_batch: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Gathered, Tensor]:
    """Losses and gradients of a step, what was compared, and d(region loss)/d(queries)."""
    source, trained = stage(kind), trainee()
    source.maker, source.size = WideMaker([pool], [1.0], tiny_run.MODEL, Words()), size
    contrast, seen = source.contrast, []

    def watched(trainee: Trainee, batch: Gathered) -> dict[str, Tensor]:
        losses = contrast(trainee, batch)
        queries = batch.embeddings["queries"]
        (gradient,) = torch.autograd.grad(losses["region"], queries, retain_graph=True)
        seen.extend((batch, gradient))
        return losses

    source.contrast = watched
    losses = step_gradients(trained, source, STEP, size, micro_batch, ALONE)
    gradients = {n: p.grad for n, p in trained.named_parameters() if p.grad is not None}
    return losses, gradients, *seen


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("kind", ["regions", "joint"])
def test_query_of_the_product_beside_the_target_is_not_pushed_away(
    kind: str, micro_batch: int | None
) -> None:
    """The picture of product 0 shows product 1, too, of which there is a query in the batch."""
    found, without, unknown = (
        step(kind, one_picture_each(3, *others), 3, micro_batch)
        for others in (([1, -1, -1],), ([-1, -1, -1],), ([1, -1, -1], [-1, -1, -1]))
    )
    products = found[2].products
    for product, pushed in ((0, True), (1, False), (2, True)):
        row = products == product
        alone = without[3][row]
        assert torch.equal(found[3][row], alone) is not pushed
        assert not torch.equal(unknown[3][row], alone)
    assert found[0]["region"] < unknown[0]["region"]


@pytest.mark.parametrize("kind", ["regions", "joint"])
def test_a_distractor_of_the_only_product_gives_no_gradient(kind: str) -> None:
    found = step(kind, one_picture_each(1, [0]), 4, None)
    without = step(kind, one_picture_each(1, [-1]), 4, None)
    unknown = step(kind, one_picture_each(1, [0], [-1]), 4, None)
    assert found[0]["region"] == without[0]["region"] == 0.0 < unknown[0]["region"]
    for name, value in without[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-12, atol=1e-15)
    assert any((unknown[1][name] - value).abs().max() > 1e-6 for name, value in without[1].items())


def test_region_loss_of_a_step_is_that_of_a_loop() -> None:
    """Also where `test_gradients` compares ranks: there are distractors to leave out."""
    source, trained = stage("regions"), trainee()
    batch = source.prepare(source.make(STEP, slice(0, SIZE)))
    with torch.no_grad():
        made = source.encode(trained, batch)
    scale, q, z = trained.logit_scale().item(), *(made.embeddings[n] for n in ("queries", "items"))
    pairs = made.present["items"].nonzero()[:, 0].tolist()
    others = made.present["others"].nonzero()[:, 0].tolist()
    shown, total, left_out = batch.scenes.other_products.tolist(), 0.0, 0
    for i in pairs:
        negatives = [j for j in others if shown[j] != batch.products[i]]
        left_out += len(others) - len(negatives)
        forward = [q[i] @ z[j] for j in pairs] + [
            q[i] @ made.embeddings["others"][j] for j in negatives
        ]
        for logits in (forward, [z[i] @ q[j] for j in pairs]):
            total += (scale * torch.stack(logits)).logsumexp(0).item() - scale * (
                q[i] @ z[i]
            ).item()
    loss = step_gradients(trained, source, STEP, SIZE, 4, ALONE)["region"].item()
    assert left_out > 0
    assert loss == pytest.approx(total / (2 * len(pairs)), abs=1e-12)


def test_products_beside_the_target_are_numbered_over_all_sources() -> None:
    pools = [one_picture_each(3, [1, 2, -1]), one_picture_each(4, [3, -1, 0, 1])]
    maker = BatchMaker(pools, [0.5, 0.5], tiny_run.MODEL, Words())
    beside = {0: 1, 1: 2, 2: -1, 3: 6, 4: -1, 5: 3, 6: 4}
    for rows in (None, slice(0, 3), slice(3, 6), slice(2, 5)):
        draw = maker.start(0, 0, 6, rows)
        scenes = draw.scenes()
        assert scenes.other_products.dtype == torch.int64
        assert scenes.other_products.tolist() == [beside[p] for p in draw.products.tolist()]
