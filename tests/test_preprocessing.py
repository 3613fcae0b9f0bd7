"""Letterbox, normalisation and patch masks against a plain computation of their own."""

from __future__ import annotations

import io
import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeBundle, FakeEngine
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tigerfg.encoder import Encoder
from tigerfg.errors import InputError
from tigerfg.images import (
    Preprocessing,
    crop_map,
    letterbox,
    load_image,
    patch_mask,
    preprocess,
)
from tigerfg.levels import fold_map, level_mask

SPEC = Preprocessing(
    query_size=64, item_size=128, patch=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
SIZES = [(64, 64), (48, 32), (31, 90), (300, 200), (1000, 3), (1, 1), (5, 700), (63, 65)]


def plain_pixels(image: Image.Image, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The same, in float64 and one pixel rule after the other."""
    width, height = image.size
    scale = size / max(width, height)
    extent = max(1, round(width * scale)), max(1, round(height * scale))
    resized = np.asarray(image.resize(extent, Image.Resampling.BILINEAR), np.float64) / 255
    result = np.zeros((3, size, size))
    for channel in range(3):
        values = (resized[:, :, channel] - SPEC.mean[channel]) / SPEC.std[channel]
        result[channel, : extent[1], : extent[0]] = values
    return result, extent


@pytest.mark.parametrize("side", [64, 128])
def test_pixels_match_a_plain_computation(make_image, side):
    images = [make_image(*size, seed=index) for index, size in enumerate(SIZES)]
    result, mask, extents = preprocess(images, side, SPEC)
    assert (result.dtype, mask.dtype, extents.dtype) == (np.float32, np.bool_, np.int64)
    assert result.shape == (len(SIZES), 3, side, side)
    assert result.flags.c_contiguous
    for index, image in enumerate(images):
        expected, extent = plain_pixels(image, side)
        assert tuple(extents[index]) == extent
        # Two float32 roundings of values up to 2.7.
        np.testing.assert_allclose(result[index], expected, rtol=0, atol=1e-6)


def test_the_encoder_resizes_as_its_bundle_says(make_image):
    class Engine(FakeEngine):
        def encode_queries(self, pixels, patch_mask):
            self.pixels = pixels
            return super().encode_queries(pixels, patch_mask)

    bundle, engine, image = FakeBundle(), Engine(), make_image(90, 70)
    for interpolation in ("bicubic", "bilinear"):
        bundle.preprocessing = replace(bundle.preprocessing, interpolation=interpolation)
        with closing(Encoder(bundle, engine)) as encoder:
            encoder.encode_query(image)
        expected = preprocess([image], bundle.preprocessing.query_size, bundle.preprocessing)[0]
        np.testing.assert_array_equal(engine.pixels, expected)


@pytest.mark.parametrize("side", [64, 128])
def test_patch_mask_is_true_where_the_centre_lies_inside(make_image, side):
    images = [make_image(*size) for size in SIZES]
    _, mask, extents = preprocess(images, side, SPEC)
    count = side // SPEC.patch
    for (width, height), row in zip(extents.tolist(), mask, strict=True):
        for patch in range(count * count):
            x, y = (patch % count + 0.5) * SPEC.patch, (patch // count + 0.5) * SPEC.patch
            inside = (x < width or patch % count == 0) and (y < height or patch < count)
            assert row[patch] == inside
        assert row[0]


def test_patch_mask_at_the_edges():
    extents = np.array([[4, 64], [5, 64], [12, 13], [64, 1], [1, 1]])
    mask = patch_mask(extents, 64, 8).reshape(-1, 8, 8)
    # The first column's centre is at 4: at 4 pixels it is no longer inside, but one column stays.
    assert [(m[:, 0].sum(), m[0].sum()) for m in mask] == [(8, 1), (8, 1), (2, 1), (1, 8), (1, 1)]


def test_no_images():
    result, mask, extents = preprocess([], 64, SPEC)
    assert result.shape == (0, 3, 64, 64)
    assert mask.shape == (0, 64)
    assert extents.shape == (0, 2)


def test_outside_of_the_picture_is_the_mean_colour(make_image):
    result, _, extents = preprocess([make_image(40, 20)], 64, SPEC)
    assert tuple(extents[0]) == (64, 32)
    assert not result[0, :, 32:].any()
    assert result[0, :, :32].all()


def test_any_image_source_is_accepted(tmp_path, make_image):
    image = make_image()
    image.save(tmp_path / "a.png")
    sources = [image, np.asarray(image), tmp_path / "a.png", (tmp_path / "a.png").read_bytes()]
    result, _, _ = preprocess(sources, 64, SPEC)
    for row in result[1:]:
        np.testing.assert_array_equal(row, result[0])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_letterbox(make_image, interpolation):
    image = make_image(90, 31)
    array, extent = letterbox(image, 64, interpolation)
    assert (array.shape, array.dtype, extent) == ((64, 64, 3), np.uint8, (64, 22))
    method = getattr(Image.Resampling, interpolation.upper())
    np.testing.assert_array_equal(array[:22], np.asarray(image.resize((64, 22), method)))
    assert not array[22:].any()


def test_unknown_interpolation(make_image):
    with pytest.raises(InputError, match="'nearest' is not one of bilinear"):
        letterbox(make_image(), 64, "nearest")


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_load_image_resizes_to_the_target(make_image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    make_image(150, 90).save(buffer, "PNG", exif=exif)
    box = (10, 20, 130, 81)
    crop = load_image(buffer.getvalue(), box)
    resized = load_image(buffer.getvalue(), box, target_size=64)
    extent = (33, 64) if orientation > 4 else (64, 33)
    assert resized.size == extent
    # Turning before or after the resize: equal but for the rounding of the two passes.
    expected = np.asarray(crop.resize(extent, Image.Resampling.BILINEAR), int)
    np.testing.assert_allclose(np.asarray(resized, int), expected, rtol=0, atol=1)
    assert load_image(resized, target_size=64) is resized


@pytest.mark.parametrize("size", [(1600, 1200), (2001, 1499), (521, 2050)])
@pytest.mark.parametrize("box", [None, "box"])
def test_reduced_jpeg_decoding_keeps_the_pixels(make_image, size, box):
    image = make_image(*size, seed=3)
    rng = np.random.default_rng(0)
    noise = rng.integers(-25, 26, (size[1], size[0], 3))
    image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    data = buffer.getvalue()
    if box:
        box = (size[0] * 0.11, size[1] * 0.07, size[0] * 0.93, size[1] * 0.81)
    (one, two), _, extents = preprocess(
        [load_image(load_image(data, box), target_size=64), load_image(data, box, target_size=64)],
        64,
        SPEC,
    )
    assert tuple(extents[0]) == tuple(extents[1])
    width, height = extents[0]
    difference = np.abs(one - two)[:, :height, :width] * np.reshape(SPEC.std, (3, 1, 1)) * 255
    # Of 255, under noise of +-25: two antialiasing filters, each rounding to 8 bit.
    assert difference.mean() < 0.5
    assert difference.max() <= 4


@pytest.mark.parametrize("side", [127, 128, 255, 256, 511, 512, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_jpeg_decodes_as_small_as_twice_the_target_allows(make_image, monkeypatch, side, share):
    buffer = io.BytesIO()
    make_image(side, max(1, side // 9)).save(buffer, "JPEG")
    decoded = []
    load = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda self: decoded.append(self.size) or load(self))
    box = None if share == 1 else (0, 0, side * share, side // 9)
    load_image(buffer.getvalue(), box, target_size=64)
    scale = max(s for s in (1, 2, 4, 8) if s == 1 or side * share / s >= 2 * 64)
    assert decoded[0][0] == -(-side // scale)


def test_crop_map():
    grid = np.zeros((8, 8))
    grid[:3] = np.arange(24).reshape(3, 8)
    cropped = crop_map(grid.ravel(), (64, 21), 64, 8)
    assert cropped.dtype == np.float32
    np.testing.assert_array_equal(cropped, grid[:3])
    np.testing.assert_array_equal(crop_map(grid.T.ravel(), (21, 64), 64, 8), grid.T[:, :3])
    assert crop_map(grid.ravel(), (1, 1), 64, 8).tolist() == [[grid.sum()]]
    with pytest.raises(InputError, match=r"shape \(63,\): expected \(64,\)"):
        crop_map(grid.ravel()[1:], (64, 64), 64, 8)


@pytest.mark.parametrize("extent", [(64, 64), (64, 21), (20, 64), (25, 40), (9, 9), (1, 1)])
def test_a_coarse_patch_at_the_edge_counts_where_the_picture_is(extent):
    """Equal to spreading the share of each coarse patch over the valid fine ones alone."""
    extents = np.array([extent])
    mask = patch_mask(extents, 64, 8)
    levels = level_mask(mask, 2)
    weights = np.random.default_rng(0).random(levels.shape).astype(np.float32) * levels
    weights /= weights.sum()
    expected = weights[:, :64].reshape(8, 8).copy()
    for n, share in enumerate(weights[0, 64:]):
        rows, columns = slice(n // 4 * 2, n // 4 * 2 + 2), slice(n % 4 * 2, n % 4 * 2 + 2)
        covered = mask.reshape(8, 8)[rows, columns]
        expected[rows, columns] += share * covered / max(1, covered.sum())
    cropped = crop_map(fold_map(weights, 8, 2)[0], extents[0], 64, 8)
    np.testing.assert_allclose(cropped.ravel(), expected.ravel()[mask[0]], rtol=0, atol=1e-6)
    assert cropped.sum() == pytest.approx(1, abs=1e-5)


def test_preprocessing_survives_json():
    values = json.loads(json.dumps(SPEC.to_dict()))
    assert Preprocessing.from_dict(values) == SPEC


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query_size": 60}, "query_size 60 is no multiple of the patch size 8"),
        ({"item_size": 0}, "item_size 0 is not a positive integer"),
        ({"patch": 8.0}, "patch 8.0 is not a positive integer"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        ({"mean": ("a", 0, 0)}, "mean must be three finite numbers"),
        ({"std": (0.2, 0.0, 0.2)}, "std must be positive"),
        ({"std": (0.2, float("nan"), 0.2)}, "std must be three finite numbers"),
        ({"interpolation": "area"}, "interpolation 'area' is not one of"),
        ({"colour": "BGR"}, "preprocessing: .*colour"),
    ],
    ids=str,
)
def test_bad_preprocessing(change, reason):
    with pytest.raises(InputError, match=reason):
        Preprocessing.from_dict({**SPEC.to_dict(), **change})
    with pytest.raises(InputError, match=r"preprocessing: .*patch"):
        Preprocessing.from_dict({"query_size": 64, "item_size": 64})


@pytest.mark.data
def test_real_photos(shared_data):
    photos = sorted((shared_data / "grocery" / "images" / "items").iterdir())[:16]
    result, mask, _ = preprocess(photos, 128, SPEC)
    for row, photo in zip(result, photos, strict=True):
        with Image.open(photo) as image:
            expected, _ = plain_pixels(image.convert("RGB"), 128)
        # 1 of 255 over the smallest standard deviation, where reduced decoding was used.
        assert np.abs(row - expected).mean() < 1 / 255 / 0.224
    assert mask.any(axis=1).all()
