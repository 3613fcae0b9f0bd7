"""Decoding: every kind of source, colour mode, orientation and box gives the right pixels."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from tigerfg.errors import InputError
from tigerfg.images import check_box, load_image


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# Sources


def test_path_bytes_pil_and_array_give_the_same_pixels(tmp_path, make_image):
    image = make_image()
    path = tmp_path / "a.png"
    path.write_bytes(encode(image))
    expected = pixels(image)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image):
        np.testing.assert_array_equal(pixels(load_image(source)), expected)
    np.testing.assert_array_equal(pixels(load_image(np.asarray(image))), expected)
    with Image.open(path) as lazy:
        np.testing.assert_array_equal(pixels(load_image(lazy)), expected)


def test_upright_rgb_image_is_not_copied(make_image):
    image = make_image()
    assert load_image(image) is image


def test_array_shapes(make_image):
    array = np.asarray(make_image())
    grey = array[:, :, 0]
    for source in (grey, grey[:, :, None]):
        np.testing.assert_array_equal(
            pixels(load_image(source)), np.repeat(grey[:, :, None], 3, axis=2)
        )
    backwards = array[::-1, ::2]
    assert not backwards.flags.c_contiguous
    np.testing.assert_array_equal(pixels(load_image(backwards)), backwards)
    np.testing.assert_array_equal(
        pixels(load_image(np.asfortranarray(array))), pixels(load_image(array))
    )


def test_transparent_array_lies_over_white():
    array = np.zeros((1, 3, 4), np.uint8)
    array[0, :, 3] = (0, 128, 255)
    np.testing.assert_array_equal(pixels(load_image(array))[0, :, 0], [255, 127, 0])


# Colour modes


def test_cmyk(make_image):
    image = make_image()
    data = encode(image.convert("CMYK"), "JPEG", quality=95)
    loaded = pixels(load_image(data))
    # CMYK made from RGB has K = 0, so it converts back exactly; JPEG costs the rest.
    assert np.abs(loaded - pixels(image)).mean() < 4
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == "CMYK"


def test_first_frame_of_animations(make_image):
    frames = [make_image(seed=seed) for seed in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        with Image.open(io.BytesIO(data)) as stored:
            assert stored.n_frames == 3
        difference = np.abs(pixels(load_image(data)) - pixels(frames[0])).mean()
        assert difference < (12 if kind == "GIF" else 0.01), kind  # GIF has 256 colours


def test_broken_later_frame_does_not_matter(make_image):
    frames = [make_image(seed=seed) for seed in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data[: len(data) * 2 // 3]).size == (48, 32)


def test_palette_with_transparency_lies_over_white(make_image):
    image = Image.new("P", (4, 1))
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    image.putdata([0, 1, 0, 1])
    for kind in ("PNG", "GIF"):
        loaded = load_image(encode(image, kind, transparency=0))
        np.testing.assert_array_equal(pixels(loaded)[0, :2], [[255, 255, 255], [200, 100, 50]])
    loaded = load_image(encode(image, "PNG", transparency=bytes([128, 255])))
    np.testing.assert_allclose(pixels(loaded)[0, 0], [132, 137, 142], atol=1)  # half over white
    np.testing.assert_array_equal(pixels(load_image(encode(image)))[0, 0], [10, 20, 30])


def test_grey_with_alpha_and_bilevel():
    image = Image.new("LA", (2, 1))
    image.putdata([(40, 255), (40, 0)])
    np.testing.assert_array_equal(pixels(load_image(encode(image)))[0], [[40] * 3, [255] * 3])
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(load_image(encode(bilevel)))[0], [[0] * 3, [255] * 3])


def test_transparent_colour_of_an_rgb_png():
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))
    loaded = load_image(encode(image, transparency=(9, 8, 7)))
    np.testing.assert_array_equal(pixels(loaded)[0], [[255] * 3, [1, 2, 3]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit(kind):
    values = np.array([[0, 255, 256, 0x7FFF, 0xFF00, 0xFFFF]], np.uint16)
    loaded = pixels(load_image(encode(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(loaded[0, :, 1], [0, 0, 1, 127, 255, 255])
    cropped = load_image(encode(Image.fromarray(values), kind), box=(3, 0, 6, 1))
    np.testing.assert_array_equal(pixels(cropped)[0, :, 0], [127, 255, 255])


# EXIF orientation and boxes


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_after_the_crop(make_image, orientation, kind):
    image = make_image(40, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(image, kind, exif=exif, **options)

    def upright(stored: Image.Image) -> np.ndarray:
        tagged = stored.copy()
        tagged.getexif()[0x0112] = orientation
        return pixels(ImageOps.exif_transpose(tagged))

    whole = load_image(data)
    np.testing.assert_array_equal(pixels(whole), upright(image))
    np.testing.assert_array_equal(pixels(load_image(whole)), pixels(whole))  # not turned twice
    box = (3, 5, 17, 11)
    np.testing.assert_array_equal(pixels(load_image(data, box)), upright(image.crop(box)))
    with pytest.raises(InputError, match="outside the image of 40 x 24"):
        load_image(data, (0, 30, 10, 38))
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(pixels(load_image(opened, box)), upright(image.crop(box)))


def test_a_png_with_a_flipped_bit_is_no_picture(make_image):
    data = bytearray(encode(make_image(300, 200)))
    pixels_start = data.index(b"IDAT") + 10
    data[pixels_start] ^= 0xFF
    for source in (bytes(data), Image.open(io.BytesIO(data))):
        with pytest.raises(InputError, match="cannot be decoded"):
            load_image(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_threads_may_be_given_the_same_unloaded_image(make_image, kind):
    data = encode(make_image(900, 700), kind)
    expected = pixels(load_image(data))
    for _ in range(5):
        shared = Image.open(io.BytesIO(data))
        with ThreadPoolExecutor(4) as pool:
            for loaded in pool.map(load_image, [shared] * 8):
                np.testing.assert_array_equal(pixels(loaded), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_block_is_no_reason_to_lose_the_image(make_image):
    data = encode(make_image(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert load_image(data).size == (48, 32)


def test_crop_keeps_every_pixel_that_the_box_touches(make_image):
    image = make_image()
    crop = load_image(image, (2.9, 3.0, 7.1, 5.5))
    np.testing.assert_array_equal(pixels(crop), pixels(image)[3:6, 2:8])
    tiny = load_image(image, (4.4, 4.4, 4.6, 4.6))
    np.testing.assert_array_equal(pixels(tiny), pixels(image)[4:5, 4:5])


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ([-5, -6.5, 1000, 7], (0, 0, 48, 7)),
        (np.array([40, 30, 50, 40]), (40, 30, 48, 32)),
        ((np.float32(0.5), np.int64(1), 2, 3), (0.5, 1, 2, 3)),
        ((0, 0, 48, 32), (0, 0, 48, 32)),
    ],
)
def test_box_is_clipped(make_image, box, clipped):
    result = check_box(box, (48, 32))
    assert result == clipped
    assert all(type(value) is float for value in result)
    assert load_image(make_image(), box).width == np.ceil(clipped[2]) - np.floor(clipped[0])


def test_decoding_from_many_threads(make_image):
    data = [encode(make_image(seed=seed), "PNG") for seed in range(4)]
    expected = [pixels(load_image(entry)) for entry in data]
    wrong = []

    def work(index: int) -> None:
        for _ in range(20):
            if not np.array_equal(pixels(load_image(data[index])), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_callers_lazy_jpeg_is_not_decoded_at_reduced_size(make_image):
    opened = Image.open(io.BytesIO(encode(make_image(800, 600), "JPEG")))
    assert load_image(opened, target_size=32).size == (32, 24)
    assert opened.size == (800, 600)
