"""The procedural renderer: deterministic, distinct, truthful boxes and words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tigerfg.benchmark.render import (
    compose_query,
    compose_scene,
    make_products,
    render_cutout,
    render_item,
    render_query,
    write_catalog,
)
from tigerfg.benchmark.render.marks import MARKS
from tigerfg.benchmark.render.patterns import PATTERNS, pattern_levels
from tigerfg.benchmark.render.scenes import MIN_VISIBLE, compose
from tigerfg.benchmark.render.shapes import load_kinds
from tigerfg.benchmark.render.wording import COLOURS

CHANGED_FIELDS = {
    "color": {"primary", "primary_rgb"},
    "secondary color": {"secondary", "secondary_rgb"},
    "pattern": {"pattern"},
    "mark": {"mark"},
    "shape": {"shape"},
}
BOOKKEEPING = {"product_id", "text_seed", "twin_of", "twin_change"}


@pytest.fixture(scope="module")
def products():
    return make_products(1500, seed=5)


def digest(image: Image.Image) -> str:
    return hashlib.sha256(repr((image.size, image.mode)).encode() + image.tobytes()).hexdigest()


def centred(image: Image.Image, size: int) -> np.ndarray:
    """RGBA image in the middle of a grey square, int16 (size, size, 3)."""
    canvas = Image.new("RGB", (size, size), (128, 128, 128))
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2), image)
    return np.asarray(canvas).astype(np.int16)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_a_longer_list_starts_with_the_shorter_one(products):
    assert make_products(0, seed=5) == []
    assert make_products(1, seed=5) == products[:1]
    assert make_products(200, seed=5) == products[:200]
    assert make_products(20, seed=6)[3].visual_key != products[3].visual_key
    assert products[7].product_id == "r5-000007"
    with pytest.raises(ValueError, match="n and seed"):
        make_products(-1, seed=0)


def test_products_are_distinct_and_use_the_whole_vocabulary(products):
    assert len({p.visual_key for p in products}) == len(products)
    assert {p.kind for p in products} == set(load_kinds())
    assert {p.pattern for p in products} == set(PATTERNS)
    assert {p.primary for p in products} == set(COLOURS)
    assert {p.mark for p in products} == {None, *MARKS}
    assert len(load_kinds()) >= 24
    assert len(PATTERNS) >= 10


def test_about_a_third_are_twins_that_differ_in_exactly_one_attribute(products):
    by_id = {p.product_id: (i, p) for i, p in enumerate(products)}
    twins = [p for p in products if p.twin_of is not None]
    assert 0.30 < len(twins) / len(products) < 0.40  # 0.35 with a standard error of 0.012
    assert {p.twin_change for p in twins} == set(CHANGED_FIELDS)
    for twin in twins:
        at, base = by_id[twin.twin_of]
        assert at < by_id[twin.product_id][0]
        differing = {f.name for f in fields(twin) if getattr(twin, f.name) != getattr(base, f.name)}
        assert differing - BOOKKEEPING == CHANGED_FIELDS[twin.twin_change]
        if twin.twin_change == "shape":
            deltas = [abs(a - b) for a, b in zip(twin.shape, base.shape, strict=True)]
            assert sorted(deltas)[-1] >= 0.5
            assert sorted(deltas)[-2] == 0


def test_twins_look_different(products):
    by_id = {p.product_id: p for p in products}
    for twin in [p for p in products if p.twin_of is not None][:200]:
        a, b = (render_cutout(p, 96, None) for p in (by_id[twin.twin_of], twin))
        seen = np.abs(centred(a, 96) - centred(b, 96)).max(axis=2) > 25
        assert seen.sum() > 20, (twin.product_id, twin.kind, twin.twin_change)


@pytest.mark.parametrize("size", [1, 33, 97, 128, 300])
@pytest.mark.parametrize("view_seed", [None, 11])
def test_cutouts_are_tight_and_repeatable(products, size, view_seed):
    for product in products[:6]:
        image = render_cutout(product, size, view_seed)
        assert image.mode == "RGBA"
        assert max(image.size) == size
        assert digest(image) == digest(render_cutout(product, size, view_seed))
        if size > 1:
            alpha = np.asarray(image)[..., 3]
            assert min(a.max() for a in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1])) > 8


def test_views_differ(products):
    views = {digest(render_cutout(products[0], 64, seed)) for seed in range(10)}
    assert len(views) == 10
    assert digest(render_query(products[0], 1, 64)) != digest(render_query(products[0], 2, 64))


def test_every_kind_has_its_own_silhouette(products):
    masks = {}
    for name, kind in load_kinds().items():
        sample = replace(
            products[0], kind=name, shape=(0.5,) * len(kind.shape_names), parts=(), mark=None
        )
        alpha = render_cutout(sample, 64, None).getchannel("A")
        canvas = Image.new("L", (64, 64))
        canvas.paste(alpha, ((64 - alpha.width) // 2, (64 - alpha.height) // 2))
        masks[name] = np.asarray(canvas) > 127
        assert masks[name].mean() > 0.08, name
    names = list(masks)
    for i, a in enumerate(names):
        for b in names[:i]:
            union = (masks[a] | masks[b]).sum()
            assert (masks[a] & masks[b]).sum() / union < 0.97, (a, b)


def test_every_shape_parameter_and_part_shows(products):
    for name, kind in load_kinds().items():
        count = len(kind.shape_names)
        base = replace(products[0], kind=name, shape=(0.2,) * count, parts=(), mark=None,
                       pattern="plain")  # fmt: skip
        plain = centred(render_cutout(base, 128, None), 128)
        variants = {part: replace(base, parts=(part,)) for part in kind.parts}
        for i, label in enumerate(kind.shape_names):
            shape = [0.2] * count
            shape[i] = 0.9
            variants[label] = replace(base, shape=tuple(shape))
        for label, variant in variants.items():
            other = centred(render_cutout(variant, 128, None), 128)
            assert (np.abs(plain - other).max(axis=2) > 20).sum() > 25, (name, label)


@pytest.mark.parametrize("n", [33, 97, 256])
def test_every_pattern_is_its_own(n):
    maps = {name: pattern_levels(name, n, 0.4, 3) for name in PATTERNS}
    assert all(m.shape == (n, n) and m.dtype == np.uint8 for m in maps.values())
    assert len({m.tobytes() for m in maps.values()}) == len(maps)
    assert all(len(np.unique(m)) > 1 for name, m in maps.items() if name != "plain")


@pytest.mark.parametrize("layout", ["standard", "cluttered"])
@pytest.mark.parametrize("size", [33, 97, 160])
def test_boxes_are_inside_and_hold_the_products(products, layout, size):
    for seed in range(25):
        others = products[seed + 30 : seed + 32 + seed % 4] if layout == "cluttered" else []
        scene = render_item(products[seed], layout, others, seed, size)
        width, height = scene.image.size
        assert scene.image.mode == "RGB"
        assert max(width, height) == size
        assert [pid for pid, _ in scene.objects] == [
            p.product_id for p in (products[seed], *others)
        ]
        assert scene.objects[0][1] == scene.target_box
        for _, (x0, y0, x1, y1) in scene.objects:
            assert all(isinstance(v, int) for v in (x0, y0, x1, y1))
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
        x0, y0, x1, y1 = scene.target_box
        longest = max(x1 - x0, y1 - y0) / size
        if layout == "standard":
            assert max((x1 - x0) / width, (y1 - y0) / height) >= 0.42  # 0.45 less rounding
        else:
            assert 0.12 <= longest <= 0.58


@pytest.mark.parametrize("seed", range(30))
def test_the_target_box_is_where_the_target_is_drawn(seed):
    """Two sprites of one outline in different colours: only pixels in the box may differ much."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(int(v) for v in rng.integers(20, 60, 2)) for _ in range(4)]
    sprites = [Image.new("RGBA", s, (0, 0, 255, 255)) for s in shapes]
    pictures = []
    for colour in ((255, 0, 0, 255), (0, 255, 0, 255)):
        sprites[0] = Image.new("RGBA", shapes[0], colour)
        canvas = Image.new("RGB", (120, 90), (200, 200, 200))
        places = [(int(x), int(y)) for x, y in np.random.default_rng(seed).integers(-5, 60, (4, 2))]
        boxes = compose(canvas, sprites, places, np.random.default_rng(seed))
        pictures.append(np.asarray(canvas).astype(int))
    changed = np.abs(pictures[0] - pictures[1]).max(axis=2) > 100
    x0, y0, x1, y1 = boxes[0]
    inside = changed[y0:y1, x0:x1]
    assert changed.sum() == inside.sum()
    assert inside.mean() >= MIN_VISIBLE * 0.99  # boxes are clipped, so allow a rounding's worth


def test_scene_boxes_hold_the_target_of_a_whole_picture():
    """A saturated target among grey sprites must be found in its box, and nowhere else."""
    grey = Image.new("RGBA", (60, 60), (120, 120, 120, 255))
    for seed in range(40):
        pictures = []
        for colour in ((255, 0, 0, 255), (0, 0, 255, 255)):
            sprites = [Image.new("RGBA", (60, 40), colour), grey, grey, grey]
            image, boxes = compose_scene(sprites, np.random.default_rng(seed), 160, "cluttered")
            pictures.append(np.asarray(image).astype(int))
        delta = np.abs(pictures[0] - pictures[1]).max(axis=2) > 90
        x0, y0, x1, y1 = boxes[0]
        assert delta[y0:y1, x0:x1].mean() > 0.55  # 0.7 visible, less blur at the edges
        assert delta[y0:y1, x0:x1].sum() > 0.9 * delta.sum()


@pytest.mark.parametrize("size", [33, 97, 128])
def test_queries(products, size):
    for seed in range(20):
        image = render_query(products[seed], seed, size)
        assert image.mode == "RGB"
        assert max(image.size) == size
        assert digest(image) == digest(render_query(products[seed], seed, size))
        assert np.asarray(image).std() > 4


def test_a_cache_supplies_the_cutouts(products):
    asked = []

    def cached(product, size, view_seed):
        asked.append(product.product_id)
        return render_cutout(product, size, view_seed)

    scene = render_item(products[0], "cluttered", products[1:4], 9, 128, cached)
    assert asked == [p.product_id for p in products[:4]]
    direct = render_item(products[0], "cluttered", products[1:4], 9, 128)
    assert digest(scene.image) == digest(direct.image)


def test_photos_can_be_composed_too():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (71, 40, 4), dtype=np.uint8))
    image, boxes = compose_scene([photo], np.random.default_rng(1), 97, "standard")
    assert max(image.size) == 97
    assert len(boxes) == 1
    assert max(compose_query(photo, np.random.default_rng(2), 97).size) == 97
    with pytest.raises(ValueError, match="layout"):
        compose_scene([photo, photo], np.random.default_rng(1), 97, "standard")
    with pytest.raises(ValueError, match="layout"):
        compose_scene([photo], np.random.default_rng(1), 97, "messy")


def test_texts_are_varied_and_mostly_name_the_colour(products):
    named = colour_only = 0
    for p in products:
        text = " ".join([p.title, p.description, *map(str, p.attributes.values())]).lower()
        named += any(word in text for word in COLOURS[p.primary][1])
        colour_only += "pattern" not in p.attributes and "material" not in p.attributes
        assert p.title
        assert p.category.count(" > ") >= 1
        json.dumps(p.attributes)
    assert named / len(products) > 0.9
    assert 0.1 < colour_only / len(products) < 0.7
    assert len({p.title for p in products}) > 0.8 * len(products)


@pytest.mark.slow
def test_catalogue_is_the_same_for_any_number_of_workers(tmp_path):
    calls = []
    folders = write_catalog(
        tmp_path / "one", 34, 3, "both", image_size=64, queries_per_product=2, workers=1,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    write_catalog(tmp_path / "two", 34, 3, "both", 64, queries_per_product=2, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert calls == [(i, 34) for i in range(1, 35)]
    assert [f.name for f in folders] == ["standard", "cluttered"]


def test_catalogue_layouts_share_ids_and_queries(tmp_path):
    write_catalog(tmp_path, 5, 3, "both", image_size=64, workers=1)
    read = {
        (layout, name): [
            json.loads(line)
            for line in (tmp_path / layout / f"{name}.jsonl").read_text().splitlines()
        ]
        for layout in ("standard", "cluttered")
        for name in ("items", "queries")
    }
    assert read["standard", "queries"] == read["cluttered", "queries"]
    ids = [item["item_id"] for item in read["standard", "items"]]
    assert ids == [item["item_id"] for item in read["cluttered", "items"]]
    assert len(ids) == 5
    for (layout, name), records in read.items():
        for record in records:
            with Image.open(tmp_path / record["image"]) as image:
                if name == "items":
                    x0, y0, x1, y1 = record["target_box"]
                    assert 0 <= x0 < x1 <= image.width
                    assert 0 <= y0 < y1 <= image.height
                    assert record["layout"] == layout
                    count = len(record["objects"])
                    assert count == 1 if layout == "standard" else 3 <= count <= 5
                else:
                    assert set(record["item_ids"]) <= set(ids)


@pytest.mark.parametrize("n", [0, 1])
def test_tiny_catalogues(tmp_path, n):
    (folder,) = write_catalog(tmp_path, n, 3, "cluttered", image_size=48)
    assert folder == tmp_path
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == n
    assert len((tmp_path / "queries.jsonl").read_text().splitlines()) == n
    with pytest.raises(ValueError, match="layout"):
        write_catalog(tmp_path, n, 3, "messy")
