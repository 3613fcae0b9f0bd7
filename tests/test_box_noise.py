from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tigerfg.benchmark.boxnoise import noise_of, noisy_box
from tigerfg.benchmark.boxsource import noisy_boxes, predicted_boxes
from tigerfg.benchmark.metrics import box_iou
from tigerfg.catalog import Item
from tigerfg.errors import InputError

SIZE = (200, 120)


@st.composite
def boxes(draw) -> tuple[float, float, float, float]:
    x0, y0 = draw(st.integers(0, 198)), draw(st.integers(0, 118))
    return x0, y0, draw(st.integers(x0 + 1, 200)), draw(st.integers(y0 + 1, 120))


@settings(max_examples=150, derandomize=True)
@given(boxes(), st.sampled_from([0.95, 0.9, 0.7, 0.5, 0.1]), st.integers(0, 2**31))
def test_the_iou_is_exact_and_the_box_inside(box, iou, seed):
    found = noisy_box(box, SIZE, iou, np.random.default_rng(seed))
    assert box_iou(found, box) == pytest.approx(iou, abs=1e-6)
    x0, y0, x1, y1 = found
    assert 0 <= x0 < x1 <= 200
    assert 0 <= y0 < y1 <= 120


def test_a_box_that_is_the_whole_picture():
    whole = (0, 0, *SIZE)
    for seed in range(20):
        found = noisy_box(whole, SIZE, 0.5, np.random.default_rng(seed))
        assert box_iou(found, whole) == pytest.approx(0.5, abs=1e-6)


def test_no_noise_and_a_box_that_leaves_the_picture():
    rng = np.random.default_rng(0)
    assert noisy_box((10, 10, 60, 70), SIZE, 1.0, rng) == (10, 10, 60, 70)
    found = noisy_box((-50, -50, 60, 70), SIZE, 0.7, rng)
    assert box_iou(found, (0, 0, 60, 70)) == pytest.approx(0.7, abs=1e-6)


def test_noise_shifts_and_scales_both_ways():
    true = (80, 40, 120, 80)
    found = np.array([noisy_box(true, SIZE, 0.7, np.random.default_rng(n)) for n in range(400)])
    centres = (found[:, :2] + found[:, 2:]) / 2 - (100, 60)
    areas = np.prod(found[:, 2:] - found[:, :2], axis=1)
    # a fair sign in 400 draws stays within 40 to 60 % (four standard errors)
    for share in ((centres > 0).mean(axis=0), (areas > 1600).mean()):
        assert np.all(np.abs(share - 0.5) < 0.1)


@pytest.mark.parametrize("iou", [0, -0.1, 1.01, float("nan")])
def test_an_iou_that_cannot_be(iou):
    with pytest.raises(InputError, match="IoU"):
        noisy_box((0, 0, 5, 5), SIZE, iou, np.random.default_rng(0))
    with pytest.raises(InputError, match="IoU"):
        noisy_boxes(iou)


def test_noise_belongs_to_the_item(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", SIZE).save(file)
    source = noisy_boxes(0.7)
    first, again, other = (
        source.box_of(Item(name, str(file), target_box=(20, 20, 90, 90)))
        for name in ("a", "a", "b")
    )
    assert source.label == "IoU 0.7"
    assert first == again != other
    assert first == noisy_box((20, 20, 90, 90), SIZE, 0.7, noise_of("a", 0))
    assert noisy_boxes(0.7, seed=1).box_of(Item("a", str(file), target_box=(20, 20, 90, 90))) != (
        first
    )
    assert source.box_of(Item("a", str(file))) is None
    # a picture that cannot be read is for the encoder to report
    broken = Item("a", str(tmp_path / "gone.png"), target_box=(20, 20, 90, 90))
    assert source.box_of(broken) == (20, 20, 90, 90)


def test_predicted_boxes(tmp_path):
    file = tmp_path / "boxes.jsonl"
    lines = [{"item_id": "a", "box": [1, 2, 3, 4], "score": 0.5}, {"item_id": 7, "box": None}]
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    source = predicted_boxes(file)
    assert source.label == "boxes.jsonl"
    found = [source.box_of(Item(name, "x.png")) for name in ("a", "7", "unknown")]
    assert found == [(1.0, 2.0, 3.0, 4.0), None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no boxes"),
        ("{", "boxes.jsonl:1: not valid JSON"),
        ('{"item_id": "a", "box": [0, 0, 2, 2]}\n[1]', ":2: item_id or box is missing"),
        ('{"item_id": "a"}', "missing"),
        ('{"item_id": "a", "box": [3, 0, 2, 2]}', "inverted"),
        ('{"item_id": "a", "box": [NaN, 0, 2, 2]}', "not finite"),
        ('{"item_id": "a", "box": null}\n{"item_id": "a", "box": null}', ":2: .*duplicate"),
    ],
)
def test_a_broken_file_of_boxes(tmp_path, text, message):
    file = tmp_path / "boxes.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        predicted_boxes(file)


def test_a_missing_file_of_boxes(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        predicted_boxes(tmp_path / "gone.jsonl")
