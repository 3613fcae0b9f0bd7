"""Pools of rendered products: the same for any number of workers, twins come together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tigerfg.errors import InputError
from tigerfg.training.pool import Pool
from tigerfg.training.prepare import rendered_pool


def assert_same(one: Pool, two: Pool) -> None:
    for field in dataclasses.fields(Pool):
        a, b = getattr(one, field.name), getattr(two, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


def test_rendered_pool_is_the_same_for_any_number_of_workers() -> None:
    one = rendered_pool(10, 3, 32, 64, workers=1)
    two = rendered_pool(10, 3, 32, 64, workers=2)
    assert_same(one, two)
    assert one.crops.shape == (30, 32, 32, 3)
    assert one.scenes.shape == (30, 64, 64, 3)
    inside = one.scene_boxes <= np.tile(one.scene_extents, (1, 2)) + 1.0
    assert inside.all()
    assert (one.scene_boxes[:, 2:] > one.scene_boxes[:, :2]).all()
    assert one.cluttered.tolist() == [False, True, True] * 10
    assert (one.other_boxes.any(axis=1) == one.cluttered).all()
    assert ((one.other_products >= 0) == one.cluttered).all()
    assert (one.other_products != one.scene_products).all()
    assert all(one.anchors)


def test_chunks_cover_all_products_in_order() -> None:
    pool = rendered_pool(7, 3, 16, 32, views=1, cluttered=1, chunk=3)
    assert pool.crop_products.tolist() == list(range(7))
    assert pool.scene_products.tolist() == [i for i in range(7) for _ in range(2)]
    for product, other in zip(pool.scene_products[1::2], pool.other_products[1::2], strict=True):
        chunk = next(c for c in (range(2), range(2, 4), range(4, 7)) if product in c)
        assert other in chunk


def test_one_product_is_alone_in_its_cluttered_picture() -> None:
    pool = rendered_pool(1, 3, 16, 32, views=1, cluttered=1)
    assert pool.products == 1
    assert not pool.other_boxes.any()
    with pytest.raises(InputError, match="products"):
        rendered_pool(0, 3, 16, 32)


def test_twins_come_together() -> None:
    pool = rendered_pool(60, 3, 16, 32, views=1, cluttered=1)
    rng = np.random.default_rng(0)
    together = 0
    for _ in range(50):
        chosen = set(pool.pick_products(20, rng).tolist())
        together += sum(int(pool.twins[p]) in chosen for p in chosen if pool.twins[p] >= 0)
        assert len(chosen) == 20
    twins = int((pool.twins >= 0).sum())
    # By chance a product's twin is among 20 of 60 in a third of the draws: 50 · twins / 9.
    assert together > 1.3 * 50 * twins / 9
