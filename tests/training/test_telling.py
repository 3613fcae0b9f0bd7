"""What a run tells of itself: its log, its validation, its card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import STAGES, TRANSFORMER, config

from tigerfg.benchmark import metrics
from tigerfg.errors import InputError
from tigerfg.training.card import _losses, _rates
from tigerfg.training.config import LossWeights, Stage
from tigerfg.training.journal import LOG, Journal
from tigerfg.training.validate import points_inside


def test_log_is_cut_to_what_the_state_knows_of(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("abc\ndef\n")
    Journal(tmp_path, STAGES, 4, (0, 2)).close()
    assert (tmp_path / LOG).read_text() == "abc\n"


@pytest.mark.parametrize("there", [None, "", "abc"])
def test_a_log_that_lacks_rows_is_refused_and_left_as_it_is(
    tmp_path: Path, there: str | None
) -> None:
    if there is not None:
        (tmp_path / LOG).write_text(there)
    with pytest.raises(InputError, match=rf"{LOG} has {len(there or '')} bytes, and had 4"):
        Journal(tmp_path, STAGES, 4, (0, 2))
    assert (tmp_path / LOG).read_text() == (there or "")


def test_pointing_is_the_benchmarks() -> None:
    rng = np.random.default_rng(0)
    grid, patch = 8, 8
    maps = rng.random((300, grid, grid))
    corners = np.sort(rng.integers(0, 2 * grid + 1, (300, 2, 2)) * patch / 2, axis=1)  # on centres
    boxes = corners.reshape(300, 4).astype(np.float32)
    peaks = torch.from_numpy(maps.reshape(300, -1).argmax(axis=1))
    found = points_inside(peaks, torch.from_numpy(boxes), grid, patch).tolist()
    size = (grid * patch, grid * patch)
    assert found == [metrics.points_inside(m, b, size) for m, b in zip(maps, boxes, strict=True)]
    assert 30 < sum(found) < 270
    nothing = points_inside(peaks[:0], torch.zeros(0, 4), grid, patch)
    assert nothing.shape == (0,)


def test_a_patch_that_only_overlaps_the_box_does_not_point_at_it() -> None:
    box = torch.tensor([[0.0, 0.0, 11.0, 8.0]])  # the centre of patch 1 is (12, 4)
    assert points_inside(torch.tensor([0]), box, 4, 8).tolist() == [True]
    assert points_inside(torch.tensor([1]), box, 4, 8).tolist() == [False]


def test_card_tells_optimisers_and_unusual_weights() -> None:
    conv, transformer = config(Path("run")), config(Path("run"), model=TRANSFORMER)
    joint = Stage("joint", 1, 1, 1e-3, backbone_rate=0.5, matrix_lr=0.04)
    assert _rates(conv, Stage("crops", 1, 1, 2e-3)) == (
        "learning rates: Muon 0.07 for matrices, AdamW 0.002 for the rest"
    )
    assert _rates(conv, joint) == (
        "learning rates: Muon 0.04 (0.02 in the backbone) for matrices, "
        "AdamW 0.001 (0.0005 in the backbone) for the rest"
    )
    assert _rates(transformer, joint) == (
        "learning rates: Muon 0.04 for matrices, AdamW 0.001 (0.0005 in the backbone) for the rest"
    )
    assert _rates(conv, Stage("map", 1, 1, 1e-3, 0.5)) == (
        "learning rates: Muon 0.07 for matrices, AdamW 0.001 for the rest"
    )
    assert _losses(conv) == "Loss weights: relation 0.7 (not 0.5)."
    assert _losses(config(Path("run"), weights=LossWeights())) == "Loss weights: the usual ones."
