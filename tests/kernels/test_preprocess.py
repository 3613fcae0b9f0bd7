"""Pixels made by the kernel against Pillow's, level by level; the interpreter runs it off a GPU."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from launching import DEVICE
from PIL import Image
from torch import Tensor

from tigerfg import images
from tigerfg.kernels.preprocess import (
    pack,
    preprocess,
    preprocess_reference,
    preprocess_triton,
    variants,
)
from tigerfg.kernels.resample import SUPPORTS
from tigerfg.kernels.tuning import ARCHITECTURES
from tigerfg.kernels.variant import INTERPRETED

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = [(97, 150), (30, 41), (300, 1), (1, 300), (1, 1), (40, 40), (25, 50)]  # height, width
# What Pillow 13 and later, like the kernel, resamples along the columns first.
TALL = [(131, 60), (150, 20), (33, 16)] if int(PIL.__version__.partition(".")[0]) >= 13 else []


@pytest.fixture
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fewer and larger steps, because the interpreter's time is per operation; results are equal
    (`test_block_sizes_do_not_matter`)."""
    if not INTERPRETED:
        yield
        return
    module = sys.modules[preprocess_triton.__module__]  # its name in the package is a function
    blocks = {"BLOCK_H": 64, "BLOCK_W": 64, "BLOCK_ROWS": 64, "BLOCK_COLUMNS": 128}
    use = {**blocks, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(module, "launch_parameters", lambda *_, **__: use)
    module.preprocess_variant.cache_clear()
    yield
    module.preprocess_variant.cache_clear()


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def packed_on(device: str, *arrays: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    return pack([torch.from_numpy(array).to(device) for array in arrays])


def options(size: int, patch: int = 8, interpolation: str = "bilinear") -> dict[str, Any]:
    return {
        "size": size, "patch": patch, "mean": MEAN, "std": STD, "interpolation": interpolation,
    }  # fmt: skip


def pillow(
    arrays: list[np.ndarray], boxes: list[list[float]] | None, **asked: Any
) -> tuple[np.ndarray, ...]:
    """The path that the kernel has to reproduce."""
    size, interpolation = asked["size"], asked["interpolation"]
    spec = images.Preprocessing(size, size, asked["patch"], MEAN, STD, interpolation)
    crops = [
        images.load_image(array, box, target_size=size, interpolation=interpolation)
        for array, box in zip(arrays, boxes or [None] * len(arrays), strict=True)
    ]
    return images.preprocess(crops, size, spec)


def levels(pixels: np.ndarray) -> np.ndarray:
    """The 8-bit values that normalised pixels come from; -1 where a pixel is exactly 0."""
    values = (pixels * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None]) * 255
    assert np.abs(values - np.rint(values))[pixels != 0].max() < 1e-3  # nothing but 8-bit values
    return np.where(pixels == 0, -1, np.rint(values))


def assert_like_pillow(
    found: tuple[Tensor, ...], expected: tuple[np.ndarray, ...], equal: float
) -> None:
    """All within one level and a share of `equal` the same; mask and extents the same."""
    pixels, mask, extents = (tensor.cpu().numpy() for tensor in found)
    assert (pixels.dtype, mask.dtype, extents.dtype) == (np.float32, np.bool_, np.int32)
    np.testing.assert_array_equal(extents, expected[2])
    np.testing.assert_array_equal(mask, expected[1])
    difference = np.abs(levels(pixels) - levels(expected[0]))
    assert difference.max() <= 1
    inside = levels(expected[0]) >= 0
    assert np.count_nonzero(difference) <= (1 - equal) * np.count_nonzero(inside)


@pytest.mark.parametrize("interpolation", SUPPORTS)
def test_reference_is_pillow_bit_for_bit(interpolation: str) -> None:
    shapes = [*SHAPES, *TALL, (333, 200), (64, 96), (48, 24), (500, 640), (7, 2000)]
    arrays = [make(*shape) for shape in shapes for make in (smooth, noise)]
    for size in (24, 56):
        asked = options(size, interpolation=interpolation)
        expected = pillow(arrays, None, **asked)
        found = preprocess_reference(*packed_on("cpu", *arrays), **asked)
        for tensor, array in zip(found, expected, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array)


# Weights are float32 before they are rounded to 2**-22, so some differ from Pillow's by one such
# unit. That shows where a sum is a tie: never more than one level, and in fewer than 1 of 1000.
EQUAL = 0.999


@pytest.mark.parametrize("interpolation", SUPPORTS)
@pytest.mark.parametrize("make", [smooth, noise])
@pytest.mark.usefixtures("large_blocks")
def test_pixels_are_pillows(make: Any, interpolation: str) -> None:
    arrays = [make(*shape, seed=seed) for seed, shape in enumerate([*SHAPES, *TALL])]
    asked = options(56, interpolation=interpolation)
    found = preprocess_triton(*packed_on(DEVICE, *arrays), **asked)
    assert_like_pillow(found, pillow(arrays, None, **asked), EQUAL)


@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_block_sizes_do_not_matter(interpolation: str, request: pytest.FixtureRequest) -> None:
    # Some tiles lie wholly outside; one picture lies on its side, where Pillow does that too.
    arrays = [noise(21, 70), smooth(45, 20) if TALL else smooth(20, 45)]
    asked = options(40, interpolation=interpolation)
    packed = packed_on(DEVICE, *arrays)
    found = preprocess_triton(*packed, **asked)
    assert_like_pillow(found, pillow(arrays, None, **asked), EQUAL)
    request.getfixturevalue("large_blocks")
    torch.testing.assert_close(preprocess_triton(*packed, **asked), found, rtol=0, atol=0)


@pytest.mark.usefixtures("large_blocks")
def test_crops_keep_every_pixel_they_touch_and_nothing_around_them() -> None:
    arrays = [noise(80, 60, seed=seed) for seed in range(4)]
    boxes = [[10.0, 20.0, 50.0, 75.0], [3.2, 4.9, 30.1, 5.5], [0.0, 0.0, 60.0, 80.0],
             [59.5, 79.25, 60.0, 80.0]]  # fmt: skip
    asked = options(30, patch=10, interpolation="bicubic")
    found = preprocess_triton(
        *packed_on(DEVICE, *arrays), torch.tensor(boxes, device=DEVICE), **asked
    )
    expected = pillow(arrays, boxes, **asked)
    assert expected[2].tolist() == [[22, 30], [30, 2], [22, 30], [30, 30]]
    assert_like_pillow(found, expected, EQUAL)


@pytest.mark.usefixtures("large_blocks")
def test_the_launcher_clips_boxes_like_the_reference() -> None:
    arrays = [smooth(20, 30)] * 4
    boxes = torch.tensor(
        [[-5.0, -9.0, 15.0, 90.0], [40.0, 5.0, 50.0, 6.0], [7.0, 7.0, 7.0, 7.0], [9.0, 9.0, 2, 3]]
    ).to(DEVICE)
    packed, asked = packed_on(DEVICE, *arrays), options(16)
    found = preprocess_triton(*packed, boxes, **asked)
    expected = preprocess_reference(*packed, boxes, **asked)
    assert_like_pillow(found, tuple(tensor.cpu().numpy() for tensor in expected), EQUAL)
    assert found[2].tolist() == [[12, 16], [16, 16], [16, 16], [16, 16]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("large_blocks")
def test_half_precision_pixels_are_the_float32_ones_rounded(dtype: torch.dtype) -> None:
    packed = packed_on(DEVICE, noise(50, 37), smooth(3, 4))
    exact, *others = preprocess_triton(*packed, **options(24))
    found, *same = preprocess_triton(*packed, **options(24), dtype=dtype)
    assert found.dtype == dtype
    # The interpreter cuts bfloat16 off where a GPU rounds: half a unit in the last place more.
    cut = 2**-7 if INTERPRETED and dtype == torch.bfloat16 else 0
    torch.testing.assert_close(found, exact.to(dtype), rtol=cut, atol=0)
    torch.testing.assert_close(same, others)


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
@pytest.mark.usefixtures("large_blocks")
def test_images_do_not_depend_on_their_neighbours(batch: int) -> None:
    arrays = [noise(5 + 3 * seed, 40 - 5 * seed, seed=seed) for seed in range(batch)]
    packed, offsets, sizes = packed_on(DEVICE, *arrays)
    pixels, mask, extents = preprocess_triton(packed, offsets, sizes, **options(36, patch=1))
    assert pixels.shape == (batch, 3, 36, 36)
    assert (mask.shape, extents.shape) == ((batch, 1296), (batch, 2))
    if batch:
        expected = pillow(arrays, None, **options(36, patch=1))
        assert_like_pillow((pixels, mask, extents), expected, EQUAL)
    if batch == 2:  # in another order, with bytes between them that belong to none
        spread = torch.full((3 * packed.numel() // 4 * 4,), 77, dtype=torch.uint8, device=DEVICE)
        places = [packed.numel() + 1, 2]
        for place, array in zip(places, arrays, strict=True):
            spread[place : place + array.size] = torch.from_numpy(array).flatten().to(DEVICE)
        begins = torch.tensor(places[::-1], device=DEVICE)
        turned = preprocess_triton(spread, begins, sizes.flip(0), **options(36, patch=1))
        torch.testing.assert_close(turned[0].flip(0), pixels, rtol=0, atol=0)


@pytest.mark.usefixtures("large_blocks")
def test_images_beyond_two_gibibytes_are_found() -> None:
    array = noise(6, 9)
    begin = 2**31 + 8_191  # neither fits int32 nor begins a word
    packed = torch.zeros(2**31 + 16_384, dtype=torch.uint8, device=DEVICE)
    packed[begin : begin + array.size] = torch.from_numpy(array).flatten().to(DEVICE)
    sizes = torch.tensor([array.shape[:2]], dtype=torch.int32, device=DEVICE)
    found = preprocess_triton(packed, torch.tensor([begin], device=DEVICE), sizes, **options(8))
    assert_like_pillow(found, pillow([array], None, **options(8)), 1.0)


@st.composite
def geometries(draw: st.DrawFn) -> tuple[int, int, list[float]]:
    """Height, width and a box in quarters of pixels."""
    sides = draw(st.tuples(st.integers(1, 130), st.integers(1, 130)))
    box = [0.0] * 4
    for axis, side in enumerate(reversed(sides)):
        start = draw(st.integers(0, 4 * side - 1))
        box[axis], box[axis + 2] = start / 4, draw(st.integers(start + 1, 4 * side)) / 4
    assume(TALL or math.ceil(box[3]) - int(box[1]) <= 2 * (math.ceil(box[2]) - int(box[0])))
    return *sides, box


@settings(
    max_examples=12,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(geometry=geometries(), size=st.integers(1, 64), interpolation=st.sampled_from([*SUPPORTS]))
def test_any_geometry_gives_pillows_pixels(
    large_blocks: None, geometry: tuple[int, int, list[float]], size: int, interpolation: str
) -> None:
    height, width, box = geometry
    asked = options(size, 1, interpolation)
    array = noise(height, width)
    boxes = torch.tensor([box], device=DEVICE)
    found = preprocess_triton(*packed_on(DEVICE, array), boxes, **asked)
    # A tie or two among few pixels; the share of equal ones is asserted above, over many images.
    assert_like_pillow(found, pillow([array], [box], **asked), 0.9)


def test_public_function_gives_the_references_result_off_a_gpu() -> None:
    packed = packed_on("cpu", smooth(12, 20), noise(9, 5))
    boxes = torch.tensor([[1.5, 2.0, 19.0, 11.0], [0.0, 0.0, 5.0, 9.0]])
    asked = options(16, interpolation="lanczos")
    expected = preprocess_reference(*packed, boxes, **asked, dtype=torch.bfloat16)
    found = preprocess(*packed, boxes, **asked, dtype=torch.bfloat16)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_custom_op_describes_itself() -> None:
    packed = packed_on("cpu", smooth(12, 20))
    arguments = (*packed, None, 16, 8, list(MEAN), list(STD), "bicubic", torch.float16)
    torch.library.opcheck(torch.ops.tigerfg.preprocess.default, arguments)


def test_pack_takes_any_strides_and_lists_where_images_begin() -> None:
    array = torch.from_numpy(noise(6, 5))
    views = [array[::2], array.flip(1), array.permute(1, 0, 2), array[:1, :1]]
    packed, offsets, sizes = pack(views)
    assert (packed.dtype, offsets.dtype, sizes.dtype) == (torch.uint8, torch.int64, torch.int32)
    assert packed.numel() % 4 == 0
    assert sizes.tolist() == [[3, 5], [6, 5], [5, 6], [1, 1]]
    for view, offset in zip(views, offsets.tolist(), strict=True):
        assert torch.equal(packed[offset : offset + view.numel()].view(view.shape), view)
    packed, offsets, sizes = pack([])
    assert (packed.shape, offsets.shape, sizes.shape) == ((0,), (0,), (0, 2))
    assert preprocess(packed, offsets, sizes, **options(16))[0].shape == (0, 3, 16, 16)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (4, 0, 3), (4, 4, 3)])
def test_pack_names_the_image_it_refuses(shape: tuple[int, ...]) -> None:
    dtype = torch.float32 if shape == (4, 4, 3) else torch.uint8
    with pytest.raises(ValueError, match=r"images\[1\]: .* must be uint8 \(H, W, 3\)"):
        pack([torch.zeros(2, 2, 3, dtype=torch.uint8), torch.zeros(shape, dtype=dtype)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"packed": torch.zeros(48, dtype=torch.int8)}, r"packed: torch.int8"),
        ({"packed": torch.zeros(4, 12, dtype=torch.uint8)}, r"packed: .*\(4, 12\)"),
        ({"packed": torch.zeros(49, dtype=torch.uint8)}, r"packed: 49 bytes"),
        ({"packed": torch.zeros(49, dtype=torch.uint8)[1:]}, r"packed: 48 bytes at 1"),
        ({"packed": torch.zeros(96, dtype=torch.uint8)[::2]}, r"packed: .*contiguous"),
        ({"packed": torch.zeros(44, dtype=torch.uint8)}, r"offsets\[0\]: .* 48 bytes at 0"),
        ({"offsets": torch.tensor([-1])}, r"offsets\[0\]"),
        ({"offsets": torch.tensor([0, 0])}, r"offsets: .*\(2,\)"),
        ({"offsets": torch.tensor([0], dtype=torch.int32)}, r"offsets: torch.int32"),
        ({"sizes": torch.tensor([[0, 4]], dtype=torch.int32)}, r"sizes\[0\]: 0 x 4"),
        ({"sizes": torch.tensor([[4, 2**24 + 1]], dtype=torch.int32)}, r"sizes\[0\]"),
        ({"sizes": torch.tensor([[4, 4]])}, r"sizes: torch.int64"),
        ({"sizes": torch.tensor([4], dtype=torch.int32)}, r"sizes: .*\(1,\)"),
        ({"boxes": torch.tensor([[0.0, 0.0, 4.5, 4.0]])}, r"boxes\[0\]: .*0\.\.4 across"),
        ({"boxes": torch.tensor([[0.0, -0.5, 4.0, 4.0]])}, r"boxes\[0\]"),
        ({"boxes": torch.tensor([[2.0, 0.0, 2.0, 4.0]])}, r"boxes\[0\]"),
        ({"boxes": torch.tensor([[0.0, 0.0, math.nan, 4.0]])}, r"boxes\[0\]"),
        ({"boxes": torch.tensor([[0, 0, 4, 4]])}, r"boxes: torch.int64"),
        ({"boxes": torch.zeros(2, 4)}, r"boxes: .*\(2, 4\)"),
        ({"boxes": torch.zeros(1, 4, device="meta")}, r"boxes: .* on meta"),
        ({"size": 20}, r"size: 20 must be a multiple of patch \(8\)"),
        ({"size": 0}, r"size: 0"),
        ({"size": 16_392}, r"size: 16392"),
        ({"patch": 0}, r"size: 16 must be a multiple of patch \(0\)"),
        ({"mean": (0.5, 0.5)}, r"mean: .*three"),
        ({"std": (0.5, 0.5, math.inf)}, r"std: .*three"),
        ({"std": (0.5, 0.5, 0.0)}, r"std: .*positive"),
        ({"interpolation": "nearest"}, r"interpolation: 'nearest' is not one of bilinear"),
        ({"dtype": torch.float64}, r"dtype: .*float64"),
    ],
)
def test_errors_name_the_argument(changed: dict[str, Any], message: str) -> None:
    packed, offsets, sizes = packed_on("cpu", noise(4, 4))
    asked = {"packed": packed, "offsets": offsets, "sizes": sizes, **options(16), **changed}
    with pytest.raises(ValueError, match=message):
        preprocess(**asked)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_variants_are_what_the_launcher_runs(arch: int) -> None:
    names = [variant.name for variant in variants(arch)]
    assert len(names) == len(set(names)) == 9
    assert "preprocess_bf16_lanczos" in names
    for variant in variants(arch):
        assert [*variant.arguments, *variant.constexprs] == variant.kernel.arg_names
