"""The attention crop while training is the one of serving, with a gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradient_run
import numpy as np
import pytest
import tiny_run
import torch
from torch import Tensor

from tigerfg.attention_crop import AttentionCrop
from tigerfg.errors import InputError
from tigerfg.model.towers import ItemOutput, TigerFG
from tigerfg.training.config import LossWeights
from tigerfg.training.second_look import second_look
from tigerfg.training.validate import validate

CROP = AttentionCrop(0.6, 0.75)  # smoothing leaves half of a patch's weight beside a row of them
MODEL = replace(gradient_run.MODEL, attention_crop=CROP)
PATCH, SIDE, QUERY = MODEL.vision.patch, MODEL.item_side, MODEL.query_size


def item(model: TigerFG, blocks: list[tuple[slice, slice]]) -> ItemOutput:
    """Random embeddings, and maps that are flat on these patches of the full size, 0 elsewhere."""
    embedding = torch.nn.functional.normalize(torch.randn(len(blocks), MODEL.embedding_dim), dim=1)
    maps = torch.zeros(len(blocks), model.item_mask(torch.ones(1, SIDE**2)).shape[1])
    for grid, (rows, columns) in zip(maps, blocks, strict=True):
        grid[: SIDE**2].view(SIDE, SIDE)[rows, columns] = 1.0
        grid /= grid.sum()
    return ItemOutput(embedding, maps, torch.zeros(len(blocks), 1))


def served(model: TigerFG, embedding: Tensor, part: Tensor) -> np.ndarray:
    """What serving makes of an item and a part (3, h, w) of its picture, not resized."""
    _, high, wide = part.shape
    pixels = torch.zeros(1, 3, QUERY, QUERY)
    pixels[0, :, :high, :wide] = part
    mask = torch.zeros(1, QUERY // PATCH, QUERY // PATCH, dtype=torch.bool)
    mask[0, : round(high / PATCH), : round(wide / PATCH)] = True
    with torch.no_grad():
        seen = model.encode_query(pixels, mask.flatten(1)).numpy()
    return CROP.join(embedding.numpy()[None], seen)[0]


def test_items_are_embedded_as_they_are_served() -> None:
    """Windows of the query's size, which are cut without resizing."""
    torch.manual_seed(0)
    model = TigerFG(MODEL)
    n = QUERY // PATCH
    blocks = [
        (slice(0, n), slice(1, 3)),
        (slice(2, 3), slice(1, 1 + n)),
        (slice(3, 4), slice(2, 6)),
    ]
    pixels = torch.randn(3, 3, MODEL.item_size, MODEL.item_size)
    extents = torch.full((3, 2), float(MODEL.item_size))
    extents[2, 0] = (2 + n) * PATCH  # the block ends where the picture does
    given = item(model, blocks)
    found = second_look(model, given, pixels, extents)
    for row, (rows, columns) in enumerate(blocks):
        part = pixels[row][:, rows.start * PATCH : rows.stop * PATCH]
        part = part[:, :, columns.start * PATCH : columns.stop * PATCH]
        expected = served(model, given.embedding[row], part)
        # float32: a sum over the patches in another order
        np.testing.assert_allclose(found[row].detach().numpy(), expected, rtol=0, atol=1e-6)
    assert float((found.detach() * given.embedding).sum(dim=1).max()) < 0.99  # the crop counts


def test_no_items_at_all() -> None:
    size = MODEL.item_size
    found = second_look(
        TigerFG(MODEL), item(TigerFG(MODEL), []), torch.zeros(0, 3, size, size), torch.zeros(0, 2)
    )
    assert found.shape == (0, MODEL.embedding_dim)


def test_both_towers_learn_by_the_crop() -> None:
    torch.manual_seed(0)
    model = TigerFG(MODEL)
    given = item(model, [(slice(0, 4), slice(1, 3))])
    given.embedding.requires_grad_()
    pixels = torch.randn(1, 3, MODEL.item_size, MODEL.item_size)
    looked = second_look(model, given, pixels, torch.full((1, 2), float(MODEL.item_size)))
    looked.sum().backward()
    assert float(given.embedding.grad.abs().max()) > 0
    assert float(model.head.projection.weight.grad.abs().max()) > 0


def test_validation_tells_recall_with_the_crop_of_models_that_have_one() -> None:
    torch.manual_seed(0)
    held_out = tiny_run.pool(8, views=1, cluttered=1, seed=1)
    model = TigerFG(MODEL)
    with_crop = validate(model, held_out, gradient_run.Words())
    model.config = replace(MODEL, attention_crop=None)
    without = validate(model, held_out, gradient_run.Words())
    assert set(with_crop) - set(without) == {"standard_crop", "cluttered_crop"}
    assert {name: with_crop[name] for name in without} == without


def test_a_weight_needs_a_model_with_a_crop() -> None:
    weights = LossWeights(crop=0.5)
    with pytest.raises(
        InputError, match=r"weights\.crop: 0\.5, and the model has no attention_crop"
    ):
        tiny_run.config(Path("run"), weights=weights)
    assert tiny_run.config(Path("run"), weights=weights, model=MODEL).weights.crop == 0.5
