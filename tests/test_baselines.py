"""The `detect` baseline: box geometry, the box head, its training and its files."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_models import CONV, build, tokenizer_file
from torch import Tensor

from tigerfg.benchmark.boxsource import predicted_boxes
from tigerfg.benchmark.pictures import stored_picture
from tigerfg.errors import InputError
from tigerfg.images import load_image
from tigerfg.model.baselines import (
    BoxHead,
    BoxHeadConfig,
    BoxOutput,
    box_iou,
    choose_box,
    generalised_iou,
)
from tigerfg.records import Item
from tigerfg.text import TextTokenizer
from tigerfg.training.batches import BatchMaker
from tigerfg.training.box_files import write_boxes
from tigerfg.training.box_head import box_head_loss, predict_boxes, train_box_head
from tigerfg.training.sources import SceneArrays

SIDE = CONV.item_size
INKS = {"red mug": (220, 40, 40), "blue shirt": (40, 60, 220)}


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0, 1.0),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),  # hull 9, union 7
        ((0, 0, 1, 1), (3, 0, 4, 1), 0.0, -2 / 4),  # hull 4, union 2
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0, 0.0),  # they touch and fill their hull
        ((0, 0, 4, 4), (1, 1, 2, 3), 2 / 16, 2 / 16),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0, 0.0),  # two points
        ((0, 0, 0, 0), (0, 0, 2, 2), 0.0, 0.0),
    ],
)
def test_iou_by_hand(a, b, iou, giou):
    a, b = torch.tensor(a).double(), torch.tensor(b).double()
    for one, other in ((a, b), (b, a)):
        assert float(box_iou(one, other)) == pytest.approx(iou, abs=1e-15)
        assert float(generalised_iou(one, other)) == pytest.approx(giou, abs=1e-15)


boxes = st.tuples(*[st.floats(0, 1)] * 2, *[st.floats(0.01, 1)] * 2).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)


@settings(max_examples=60, derandomize=True)
@given(st.lists(st.tuples(boxes, boxes), min_size=1, max_size=5))
def test_generalised_iou_agrees_with_transformers(pairs):
    from transformers.loss.loss_for_object_detection import generalized_box_iou

    a, b = (torch.tensor(column).double() for column in zip(*pairs, strict=True))
    expected = generalized_box_iou(a, b).diagonal()
    torch.testing.assert_close(generalised_iou(a, b), expected, rtol=0, atol=1e-12)
    assert (generalised_iou(a, b) <= box_iou(a, b) + 1e-15).all()


def test_generalised_iou_pulls_distant_boxes_together():
    a = torch.tensor([0.0, 0.0, 0.1, 0.1], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.7, 0.7, 0.9, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda box: generalised_iou(box, b), a)
    generalised_iou(a, b).backward()
    assert (a.grad[2:] > 0).all()  # moving the near corner towards b helps
    point = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    (generalised_iou(point, point.detach()) + box_iou(point, point.detach())).backward()
    assert point.grad.isfinite().all()


def looped_loss(output: BoxOutput, targets: Tensor, mask: Tensor) -> float:
    """Row by row, patch by patch."""
    side = round(mask.shape[1] ** 0.5)
    total, rows = 0.0, 0
    for b, (x0, y0, x1, y1) in enumerate(targets.tolist()):

        def shares(x0: float, y0: float, x1: float, y1: float, b: int = b) -> list[float]:
            areas = []
            for n in range(side * side):
                row, column = divmod(n, side)
                wide = min(x1 * side, column + 1) - max(x0 * side, column)
                high = min(y1 * side, row + 1) - max(y0 * side, row)
                areas.append(max(wide, 0.0) * max(high, 0.0) if mask[b, n] else 0.0)
            return [a / (sum(areas) or 1.0) for a in areas]

        dx, dy = (x1 - x0) / 4, (y1 - y0) / 4
        inner, region = shares(x0 + dx, y0 + dy, x1 - dx, y1 - dy), shares(x0, y0, x1, y1)
        if not sum(inner):
            continue
        rows += 1
        for n in range(side * side):
            if inner[n] > 0:
                total += inner[n] * (math.log(inner[n]) - float(output.heat[b, n]))
            distance = float((output.boxes[b, n] - targets[b]).abs().sum())
            fit = 1.0 - float(generalised_iou(output.boxes[b, n], targets[b]))
            total += region[n] * (distance + fit)
    return total / max(rows, 1)


def random_output(batch: int, side: int, mask: Tensor) -> BoxOutput:
    heat = torch.randn(batch, side * side).double()
    heat = heat.masked_fill(~mask, torch.finfo(heat.dtype).min).log_softmax(dim=1)
    centres = torch.rand(batch, side * side, 2).double()
    return BoxOutput(heat, torch.cat([centres - 0.2, centres + 0.3], dim=-1))


def test_loss_is_its_loop():
    torch.manual_seed(0)
    mask = torch.ones(4, 25, dtype=torch.bool)
    mask.view(4, 5, 5)[1, :, 3:] = False
    mask[3] = False
    output = random_output(4, 5, mask)
    targets = torch.tensor(
        [[0.1, 0.2, 0.6, 0.9], [0.3, 0.0, 0.65, 0.5], [0.41, 0.43, 0.44, 0.46], [0, 0, 1, 1]]
    ).double()  # wide; partly over padding; inside one patch; without a valid patch
    # box_regions works in float32: shares of order 1 at 6e-8, times losses of a few
    expected = looped_loss(output, targets, mask)
    assert float(box_head_loss(output, targets, mask)) == pytest.approx(expected, abs=2e-6)
    nothing = BoxOutput(output.heat[:0], output.boxes[:0])
    assert float(box_head_loss(nothing, targets[:0], mask[:0])) == 0.0
    blind = BoxOutput(output.heat[3:], output.boxes[3:])
    assert float(box_head_loss(blind, targets[3:], mask[3:])) == 0.0


def test_a_perfect_answer_costs_nothing():
    mask = torch.ones(1, 16, dtype=torch.bool)
    target = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    heat = torch.full((1, 16), -1e4)
    heat[0, [5, 6, 9, 10]] = math.log(0.25)
    output = BoxOutput(heat, target[:, None].expand(1, 16, 4))
    assert float(box_head_loss(output, target, mask)) == pytest.approx(0.0, abs=1e-6)


def head_inputs(batch: int = 3, side: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(batch, side, side, dtype=torch.bool)
    mask[1:, :, side - 2 :] = False
    tokens = torch.rand(batch, 5) < 0.6
    tokens[:, 0] = True
    return torch.randn(batch, side**2, 16), mask.flatten(1), torch.randn(batch, 5, 12), tokens


def trained_looking(config: BoxHeadConfig) -> BoxHead:
    """A head with nothing left at a neutral start value."""
    torch.manual_seed(2)
    head = BoxHead(config)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return head


@pytest.mark.parametrize("text", [False, True])
def test_padding_never_matters_to_the_head(text):
    patches, mask, tokens, token_mask = head_inputs()
    head = trained_looking(BoxHeadConfig(16, 12 if text else None, hidden=8))
    texts = (tokens, token_mask) if text else ()
    found = head(patches, mask, *texts)
    noise = torch.where(mask[..., None], patches, 9 * torch.randn_like(patches))
    if text:
        texts = (torch.where(token_mask[..., None], tokens, 7.0), token_mask)
    other = head(noise, mask, *texts)
    for one, another in zip(found, other, strict=True):
        torch.testing.assert_close(one[mask], another[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.heat.exp().sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)
    assert (found.heat.exp()[~mask] == 0).all()
    assert mask[torch.arange(3), found.heat.argmax(dim=1)].all()
    assert (found.boxes[..., :2] < found.boxes[..., 2:]).all()


@pytest.mark.parametrize("text", [False, True])
def test_gradients_reach_every_parameter_of_the_head(text):
    patches, mask, tokens, token_mask = head_inputs()
    head = trained_looking(BoxHeadConfig(16, 12 if text else None, hidden=8))
    output = head(patches, mask, *((tokens, token_mask) if text else ()))
    targets = torch.tensor([[0.1, 0.2, 0.6, 0.9]]).expand(3, 4)
    box_head_loss(output, targets, mask).backward()
    silent = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_odd_sizes_and_wrong_text():
    head = BoxHead(BoxHeadConfig(16, hidden=8))
    with_text = BoxHead(BoxHeadConfig(16, 12, hidden=8))
    patches, mask, tokens, token_mask = head_inputs()
    assert head(patches[:0], mask[:0]).boxes.shape == (0, 36, 4)
    one = head(patches[:, :1], mask[:, :1])
    assert one.heat.tolist() == [[0.0]] * 3
    blind = head(patches, torch.zeros_like(mask))
    assert choose_box(blind, torch.ones(3, 2)).isfinite().all()
    assert choose_box(head(patches[:0], mask[:0]), torch.ones(0, 2)).shape == (0, 4)
    with pytest.raises(InputError, match="text is missing"):
        with_text(patches, mask)
    with pytest.raises(InputError, match="text is not read"):
        head(patches, mask, tokens, token_mask)
    with pytest.raises(InputError, match="hidden 0"):
        BoxHeadConfig(16, hidden=0)


def test_chosen_boxes_stay_in_the_picture():
    heat = torch.tensor([[0.0, 3.0], [1.0, 0.0], [0.0, 1.0]]).log_softmax(dim=1)
    given = torch.tensor(
        [
            [[0.9, 0.9, 1.0, 1.0], [-0.2, 0.1, 0.4, 1.4]],
            [[0.1, 0.1, 0.3, 0.3], [0.0, 0.0, 1.0, 1.0]],
            [[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.9, 0.9]],  # right of a very narrow picture
        ]
    )
    extents = torch.tensor([[1.0, 0.5], [1.0, 1.0], [0.05, 1.0]])
    expected = [[0.0, 0.1, 0.4, 0.5], [0.1, 0.1, 0.3, 0.3], [0.0, 0.2, 0.05, 0.9]]
    found = choose_box(BoxOutput(heat, given), extents)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-7)


def draw_scene(rng: np.random.Generator, names: list[str]) -> tuple[np.ndarray, list[list[int]]]:
    """Rectangles side by side on grey: the picture, and their boxes in the order of the names."""
    picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
    found: dict[str, list[int]] = {}
    width = SIDE // len(names)
    for slot, place in enumerate(rng.permutation(len(names))):
        w, h = rng.integers(width // 2, width), rng.integers(SIDE // 4, SIDE // 2)
        x, y = slot * width + rng.integers(0, width - w + 1), rng.integers(0, SIDE - h + 1)
        picture[y : y + h, x : x + w] = INKS[names[place]]
        found[names[place]] = [int(v) for v in (x, y, x + w, y + h)]
    return picture, [found[name] for name in names]


class Rectangles:
    """A training source: the first of the drawn rectangles is the target, its name the text."""

    products = 40

    def __init__(self, inks: int, boxed: bool = True) -> None:
        self.inks, self.boxed, self.skipped = inks, boxed, Counter()

    def draw(self, count: int, rng: np.random.Generator) -> RectangleRows:
        return RectangleRows(self, rng.integers(0, self.products, count), rng.integers(1 << 30))


class RectangleRows:
    def __init__(self, source: Rectangles, products: np.ndarray, seed: int) -> None:
        self.source, self.products, self.seed = source, products, seed

    def __getitem__(self, rows: slice) -> RectangleRows:
        return RectangleRows(self.source, self.products[rows], self.seed)

    def scenes(self) -> SceneArrays:
        rng = np.random.default_rng(self.seed)
        order = [list(INKS), list(INKS)[::-1]]
        scenes = [draw_scene(rng, order[p % 2][: self.source.inks]) for p in self.products]
        targets = np.array([found[0] for _, found in scenes], np.float32).reshape(-1, 4)
        pictures = np.array([picture for picture, _ in scenes], np.uint8)
        return SceneArrays(
            pictures.reshape(-1, SIDE, SIDE, 3),
            np.full((len(scenes), 2), SIDE, np.float32),
            targets * self.source.boxed,
            np.zeros((len(scenes), 4), np.float32),
            np.full(len(scenes), -1),
            np.full(len(scenes), self.source.boxed),
        )

    def texts(self) -> list[str]:
        return [list(INKS)[p % 2] for p in self.products]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> TextTokenizer:
    return TextTokenizer.from_file(tokenizer_file(tmp_path_factory.mktemp("t") / "t.json"), 24)


def maker(tokenizer: TextTokenizer, inks: int, boxed: bool = True) -> BatchMaker:
    return BatchMaker([Rectangles(inks, boxed)], [1.0], CONV, tokenizer)


def best_constant(scenes: SceneArrays) -> float:
    """Mean IoU of the best box that looks at no picture, among the targets and their mean."""
    true = torch.from_numpy(scenes.boxes)
    guesses = torch.cat([true, true.mean(dim=0, keepdim=True)])
    return float(box_iou(guesses[:, None], true[None]).mean(dim=1).max())


def test_a_trained_head_finds_the_product_and_text_says_which(tokenizer):
    model = build(CONV).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"steps": 80, "batch": 32, "lr": 4e-3, "pictures": 384}
    single = train_box_head(model, maker(tokenizer, 1), **settings)
    chance = best_constant(Rectangles(1).draw(200, np.random.default_rng(1)).scenes())
    assert chance < 0.4
    assert single.mean_iou > chance + 0.25
    assert 10 < single.held_out < 100
    # Two products in the picture: nothing but the text says which one is meant.
    blind = train_box_head(model, maker(tokenizer, 2), **settings)
    told = train_box_head(model, maker(tokenizer, 2), **settings, text=True)
    assert told.mean_iou > blind.mean_iou + 0.1
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in told.head.parameters())


def test_training_is_deterministic_by_seed(tokenizer):
    model = build(CONV)
    settings = {"steps": 3, "batch": 4, "pictures": 16, "text": True}
    state = torch.get_rng_state()
    runs = [train_box_head(model, maker(tokenizer, 2), seed=s, **settings) for s in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (torch.cat([p.flatten() for p in r.head.parameters()]) for r in runs)
    assert torch.equal(first, again)
    assert runs[0].mean_iou == runs[1].mean_iou
    assert not torch.equal(first, other)


def test_little_and_unusable_training_data(tokenizer):
    model = build(CONV)
    with pytest.raises(InputError, match="no training picture has a box"):
        train_box_head(model, maker(tokenizer, 1, boxed=False), steps=1, batch=2, pictures=4)
    for wrong in ({"steps": 0}, {"batch": 0}, {"pictures": 0}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} 0"):
            train_box_head(model, maker(tokenizer, 1), **wrong)
    one = train_box_head(model, maker(tokenizer, 1), steps=1, batch=1, pictures=1)
    assert (one.mean_iou, one.held_out) == (None, 0)


def test_predicted_boxes_are_pixels_inside_the_extents(tokenizer):
    model = build(CONV)
    head = trained_looking(BoxHeadConfig(40, 32, hidden=8)).eval().requires_grad_(False)
    ids, mask = (torch.from_numpy(array) for array in tokenizer(["red mug", "blue"]))
    extents = torch.tensor([[64.0, 20.0], [33.0, 64.0]])
    found = predict_boxes(model, head, torch.randn(2, 3, SIDE, SIDE), extents, ids, mask)
    assert found.dtype == torch.float32
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= extents + 1e-4).all()
    assert (found[:, :2] < found[:, 2:]).all()
    none = predict_boxes(model, head, torch.zeros(0, 3, SIDE, SIDE), extents[:0], ids[:0], mask[:0])
    assert none.shape == (0, 4)


class MarkedBox(BoxHead):
    """Finds the brightest part of the picture itself; the features do not matter."""

    def forward(self, patches: Tensor, patch_mask: Tensor, *texts: Tensor) -> BoxOutput:
        box = torch.tensor([self.box]).expand(len(patches), patches.shape[1], 4)
        return BoxOutput(patch_mask.float(), box)


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_in_a_file_are_pixels_as_stored(orientation, kind, tmp_path):
    """A white block is marked in the upright picture; the stored box must cut it out."""
    stored = Image.new("RGB", (120, 60))
    stored.paste((255, 255, 255), (30, 12, 60, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{kind}"
    stored.save(path, exif=exif)
    assert stored_picture(path) == ((120, 60), orientation)
    upright = np.asarray(load_image(path, target_size=SIDE))[..., 0] > 127
    rows, columns = upright.any(axis=1).nonzero()[0], upright.any(axis=0).nonzero()[0]
    head = MarkedBox(BoxHeadConfig(40, hidden=8))
    edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    head.box = [float(value) / SIDE for value in edges]
    out = tmp_path / "boxes.jsonl"
    assert write_boxes(out, [Item("a", path)], build(CONV), head) == []
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["item_id"] == "a"
    assert line["box"] == pytest.approx([30, 12, 60, 24], abs=1.0)  # half a letterboxed pixel


def test_boxes_of_a_catalogue(tokenizer, tmp_path):
    photo = Image.fromarray(draw_scene(np.random.default_rng(0), list(INKS))[0])
    photo.save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    items = [Item(f"item {n}", photo.resize((50 + n, 40)), title="red mug") for n in range(70)]
    items += [
        Item("file", str(tmp_path / "a.png")),
        Item("bytes", (tmp_path / "a.png").read_bytes()),
    ]
    items += [Item("array", np.asarray(photo)), Item("broken", str(tmp_path / "broken.png"))]
    head = trained_looking(BoxHeadConfig(40, 32, hidden=8)).eval()
    out = tmp_path / "boxes.jsonl"
    rejected = write_boxes(out, iter(items), build(CONV), head, tokenizer)
    assert [entry.item_id for entry in rejected] == ["broken"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["item_id"] for line in lines] == [item.item_id for item in items[:-1]]
    for line in lines:
        x0, y0, x1, y1 = line["box"]
        assert 0 <= x0 < x1 <= 120
        assert 0 <= y0 < y1 <= 64
    assert lines[70]["box"] != lines[0]["box"]
    assert write_boxes(out, [], build(CONV), head, tokenizer) == []
    assert out.read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.png",
        "boxes.jsonl",
        "broken.png",
    ]
    with pytest.raises(InputError, match="reads text: give the checkpoint's tokenizer"):
        write_boxes(out, items, build(CONV), head)


def test_the_file_is_what_eval_reads(tmp_path):
    head = MarkedBox(BoxHeadConfig(40, hidden=8))
    head.box = [0.25, 0.25, 0.5, 0.75]
    items = [Item("a", Image.new("RGB", (64, 64)))]
    write_boxes(tmp_path / "boxes.jsonl", items, build(CONV), head)
    source = predicted_boxes(tmp_path / "boxes.jsonl")
    assert source.box_of(items[0]) == (16.0, 16.0, 32.0, 48.0)
