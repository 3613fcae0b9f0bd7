"""One step's gradient is the same for whole batches, small chunks and several ranks.

In float64, where nothing but the order of sums differs: 1e-12 of the largest entry is some 1e4
times its rounding error and far below any wrong factor, row or mask.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gradient_run
import pytest
import tiny_run
import torch
from gradient_run import KINDS, SIZE, STEP, gradients, stage, trainee
from safetensors.torch import load_file
from torch import Tensor

from tigerfg.training.config import LossWeights
from tigerfg.training.gradients import step_gradients
from tigerfg.training.stages import Gathered


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1e-6)
        assert float((found[name] - value).abs().max()) <= relative * scale, name


def direct(kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The oracle: the plain sum of all losses of one batch, differentiated by autograd at once."""
    trained, source = trainee(), stage(kind)
    batch = source.prepare(source.make(STEP, slice(0, SIZE)))
    encoded = source.encode(trained, batch)
    whole = Gathered(encoded.embeddings, encoded.present, batch.products, encoded.shown)
    losses = source.contrast(trained, whole)
    losses |= {name: loss.total / loss.rows for name, loss in encoded.row_losses.items()}
    sum(losses.values()).backward()
    named = trained.named_parameters()
    grads = {name: p.grad for name, p in named if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, grads


@pytest.mark.parametrize("micro_batch", [None, 1, 4, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_caching_gives_the_direct_gradient(kind: str, micro_batch: int | None) -> None:
    losses, grads = gradients(kind, micro_batch)
    expected_losses, expected = direct(kind)
    assert_same(losses, expected_losses, 1e-12)
    assert_same(grads, expected, 1e-12)


def test_gradient_caching_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_run, "wide", lambda value: value)
    monkeypatch.setattr(torch.nn.Module, "double", lambda module: module)
    whole, chunked = gradients("joint", None)[1], gradients("joint", 4)[1]
    assert all(value.dtype == torch.float32 for value in whole.values())
    flat, other = (torch.cat([g[n].flatten() for n in whole]) for g in (whole, chunked))
    # The rounding error of float32 is 6e-8; sums over rows and places in another order have more.
    assert (other - flat).norm() <= 1e-6 * flat.norm()


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_three_ranks_give_the_gradient_of_one_process(tmp_path: Path, micro_batch: int) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "--standalone"]
    program = [gradient_run.__file__, str(tmp_path / "rank"), str(micro_batch)]
    done = subprocess.run([*launch, *program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    expected: dict[str, Tensor] = {}
    for kind in KINDS:
        losses, grads = direct(kind)
        expected |= {f"{kind}.loss.{name}": value for name, value in losses.items()}
        expected |= {f"{kind}.{name}": value for name, value in grads.items()}
    for rank in range(3):
        assert_same(load_file(tmp_path / f"rank-{rank}"), expected, 1e-12)


def test_batch_has_everything_that_could_go_wrong() -> None:
    source = stage("joint")
    batch = source.prepare(source.make(STEP, slice(0, SIZE)))
    boxed = batch.scenes.boxed.tolist()
    distractors = (batch.scenes.other_region.sum(dim=1) > 0).tolist()
    # rows with and without, spread unevenly over three ranks of 3, 4 and 4 rows
    for flags in (boxed, distractors):
        counts = [sum(part) / len(part) for part in (flags[:3], flags[3:7], flags[7:])]
        assert 0 < sum(flags) < SIZE
        assert len(set(counts)) > 1


@pytest.mark.parametrize("name", ["region", "dense", "map", "relation", "crop"])
def test_a_loss_of_weight_zero_is_not_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = {"region": "region_embeddings", "crop": "second_look"}.get(name, f"{name}_loss")

    def computed(*args: object) -> None:
        raise AssertionError(f"{function} was called")

    monkeypatch.setattr(f"tigerfg.training.item_stages.{function}", computed)
    source = stage("joint", weights=LossWeights(**{"crop": 0.5, name: 0.0}))
    losses = step_gradients(trainee(), source, STEP, SIZE, None, gradient_run.ALONE)
    assert set(losses) == {"nce", "region", "dense", "map", "relation", "crop"} - {name}


@pytest.mark.parametrize("boxed", [True, False])
def test_row_that_is_not_finite_is_left_out(boxed: bool) -> None:
    """As if the batch had been drawn without it."""
    source, reference = stage("joint"), stage("joint")
    known = reference.make(STEP, slice(0, SIZE)).scenes.boxed
    bad = int((known == boxed).nonzero()[0])
    start = source.maker.start

    def poisoned(*args: object) -> object:
        draw = start(*args)
        scenes = draw.scenes

        def spoil() -> object:
            made = scenes()
            made.pixels[bad, 0, 3, 3] = float("nan")
            return made

        draw.scenes = spoil
        return draw

    source.maker.start = poisoned
    keep = [row for row in range(SIZE) if row != bad]
    make = reference.make

    def shorter(step: int, rows: slice) -> object:
        return _take(make(step, slice(0, SIZE)), torch.tensor(keep))

    reference.make = shorter
    found, expected = trainee(), trainee()
    losses = step_gradients(found, source, STEP, SIZE, None, gradient_run.ALONE)
    wanted = step_gradients(expected, reference, STEP, SIZE - 1, None, gradient_run.ALONE)
    assert_same(losses, wanted, 1e-12)
    grads = [{n: p.grad for n, p in t.named_parameters()} for t in (found, expected)]
    assert_same(*grads, 1e-12)
    assert source.skipped == {"numbers that are not finite": 1}


def _take(value: object, rows: Tensor) -> object:
    import dataclasses

    if isinstance(value, Tensor):
        return value[rows]
    parts = {f.name: _take(getattr(value, f.name), rows) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **parts)


def test_map_stage_leaves_out_pictures_without_a_box() -> None:
    source = stage("map")
    pool = tiny_run.pool()
    assert (source.regions.sum(dim=1) > 0).all()
    assert 0 < len(source.lines) < 24
    assert len(source.features) == len(source.lines) == len(source.products)
    assert (pool.scene_boxes.sum(axis=1) == 0).any()


def test_map_of_a_picture_without_a_box_follows_the_teacher() -> None:
    source = stage("joint")
    batch = source.prepare(source.make(STEP, slice(0, SIZE)))
    (unboxed,) = (~batch.scenes.boxed).nonzero(as_tuple=True)
    row = int(unboxed[0])
    model = source.teacher
    crop, scene = batch.crops, batch.scenes
    query = model.pool(model.vision(crop.pixels[row : row + 1]), crop.mask[row : row + 1])[0]
    patches = model.item_patches(scene.pixels[row : row + 1])[0]
    cosine = torch.stack([torch.cosine_similarity(query, p, dim=0) for p in patches])
    expected = (cosine / source.weights.map_tau).softmax(dim=0)
    torch.testing.assert_close(batch.lesson.region[row], expected, rtol=1e-9, atol=1e-12)
    boxed = int(batch.scenes.boxed.nonzero()[0])
    assert torch.equal(batch.lesson.region[boxed], batch.scenes.region[boxed])
