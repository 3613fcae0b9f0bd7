"""Every kind of bad image and bad box gives one clear line, and never anything but InputError."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tigerfg import decoding
from tigerfg.errors import InputError
from tigerfg.images import check_box, load_image


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels: only its header can be judged."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def assert_one_line(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4, 3), np.float32), "must be uint8 in 0..255, not float32"),
        (np.zeros((4, 4, 3), bool), "must be uint8"),
        (np.zeros((4, 4, 2), np.uint8), "the shape must be"),
        (np.zeros((3, 4, 4, 3), np.uint8), "the shape must be"),
        (np.zeros(7, np.uint8), "the shape must be"),
        (np.zeros((), np.uint8), "the shape must be"),
        (np.zeros((0, 4, 3), np.uint8), "the array is empty"),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_wrong_array(array, reason):
    with pytest.raises(InputError) as caught:
        load_image(array)
    assert_one_line(caught.value, f"shape {array.shape}", reason)


@pytest.mark.parametrize("size", [0, -5, 1.5, "64"])
def test_wrong_target_size(size):
    with pytest.raises(InputError, match=r"target_size .* must be a whole number, at least 1"):
        load_image(np.zeros((4, 4, 3), np.uint8), target_size=size)


@pytest.mark.parametrize("source", [None, 7, 2.5, ["a.png"], {"image": "a.png"}])
def test_wrong_source_type(source):
    with pytest.raises(InputError, match=f"type {type(source).__name__}>: give a path"):
        load_image(source)


@pytest.mark.parametrize("target_size", [None, 64])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated(tmp_path, make_image, kind, target_size):
    data = encode(make_image(1500, 1100), kind)
    path = tmp_path / "half.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError) as caught:
        load_image(path, target_size=target_size)
    assert_one_line(caught.value, str(path))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
def test_every_truncation_of_a_small_file_is_an_input_error_or_an_image(make_image):
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "PPM"):
        data = encode(make_image(20, 13), kind)
        failed = 0
        for length in range(len(data)):
            try:
                assert load_image(data[:length]).size == (20, 13)
            except InputError as error:
                failed += 1
                assert_one_line(error, f"{length} bytes")
        assert failed >= len(data) // 2, kind


def test_flipped_bytes_are_an_input_error_or_an_image(make_image):
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        data = np.frombuffer(encode(make_image(20, 13), kind), np.uint8)
        for _ in range(60):
            broken = data.copy()
            # Past the first 40 bytes: flips in the declared size make big images, not errors.
            places = rng.integers(40, len(data), 5)
            broken[places] = rng.integers(0, 256, 5)
            try:
                assert load_image(broken.tobytes()).mode == "RGB"
            except InputError as error:
                assert_one_line(error, "bytes")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_flipped_bit_among_the_pixels_of_a_png_is_never_other_pixels(make_image, mode):
    """Smooth pictures, such as a product on white: their few bytes are decoded whatever they are,
    and Pillow does not look at their checksum."""
    smooth = make_image(9, 9).resize((300, 200), Image.Resampling.BICUBIC).convert(mode)
    data = encode(smooth)
    pixels = data.index(b"IDAT") + 4
    for place in np.random.default_rng(0).integers(pixels, len(data) - 16, 60):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        with pytest.raises(InputError, match="checksum in b'IDAT'"):
            load_image(bytes(broken))


def test_what_is_wrong_behind_the_pixels_of_a_png_does_not_matter(make_image):
    note = PngInfo()
    note.add(b"noTe", b"behind the pixels", after_idat=True)
    data = encode(make_image(20, 13), pnginfo=note)
    whole = np.asarray(load_image(data))
    for broken in (data.replace(b"behind", b"BEHIND"), data[: data.index(b"IEND") - 4]):
        assert broken != data
        np.testing.assert_array_equal(np.asarray(load_image(broken)), whole)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is no image\n" * 10, "not an image"),
        (b"<html><body>404 Not Found</body></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (bytes(range(256)) * 8, "not an image"),
        (b"\xff\xd8\xff", "image"),
        (b"\x89PNG\r\n\x1a\n", "image"),
    ],
    ids=["empty", "text", "html", "eps", "svg", "binary", "jpeg-magic", "png-magic"],
)
def test_no_image(tmp_path, content, reason):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_image(path)
    assert_one_line(caught.value, str(path), reason)
    with pytest.raises(InputError):
        load_image(content)


def test_missing_directory_address_and_fifo(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jpg: no such file$"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="is a directory"):
        load_image(tmp_path)
    with pytest.raises(InputError, match="no such file: only pictures of items are fetched"):
        load_image("https://shop.example/a.jpg")
    with pytest.raises(InputError, match="the file cannot be read"):
        load_image("a\0b.jpg")
    with pytest.raises(InputError, match="''"):
        load_image("")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(InputError, match="not a regular file"):
        load_image(tmp_path / "pipe")


def test_name_with_line_break_stays_on_one_line(tmp_path):
    with pytest.raises(InputError) as caught:
        load_image(tmp_path / "two\nlines.jpg")
    assert_one_line(caught.value, r"two\nlines.jpg")


def test_pixel_limit_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(decoding.Image.Image, "load", lambda self: pytest.fail("decoded"))
    for width, height in ((20_000, 20_000), (60_000, 60_000), (13_378, 13_378)):
        with pytest.raises(InputError) as caught:
            load_image(png_header(width, height))
        assert_one_line(caught.value, "larger than 178,956,970 pixels")


def test_own_pixel_limit_holds_where_pillow_has_none(monkeypatch, make_image):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 48 * 32 - 1)
    data = encode(make_image())
    for source in (data, Image.open(io.BytesIO(data)), np.asarray(make_image())):
        with pytest.raises(InputError, match="48 x 32 is larger than 1,535 pixels"):
            load_image(source)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 48 * 32)
    assert load_image(data).size == (48, 32)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((48, 0, 60, 10), "outside the image of 48 x 32"),
        ((-9, 0, 0, 10), "outside the image"),
        ((0, 32, 10, 40), "outside the image"),
        ((10, 0, 5, 10), "inverted or empty"),
        ((0, 10, 5, 5), "inverted or empty"),
        ((3, 3, 3, 9), "inverted or empty"),
        ((0, 0, float("nan"), 5), "not finite"),
        ((0, 0, float("inf"), 5), "not finite"),
        ((0, 0, 10**400, 5), "not finite"),
        ((0, 0, 5), "not four numbers"),
        ((0, 0, 5, 5, 5), "not four numbers"),
        ("0,0,5,5", "not four numbers"),
        (("0", "0", "5", "5"), "not four numbers"),
        ((0, 0, True, 5), "not four numbers"),
        ((0, 0, None, 5), "not four numbers"),
        (7, "not four numbers"),
        ({"x0": 0}, "not four numbers"),
        (np.zeros((2, 2)), "not four numbers"),
    ],
    ids=str,
)
def test_bad_box(make_image, box, reason):
    with pytest.raises(InputError) as caught:
        check_box(box, (48, 32), "query box")
    assert_one_line(caught.value, "query box", reason)
    with pytest.raises(InputError) as caught:
        load_image(encode(make_image(), "JPEG"), box, target_size=8)
    assert_one_line(caught.value, "bytes>: box", reason)


def test_pixels_without_a_known_range_are_refused():
    floats = Image.fromarray(np.array([[0.5, 300.0]], np.float32))
    with pytest.raises(InputError, match="floating-point pixels: convert the image to 8 bit"):
        load_image(encode(floats, "TIFF"))
    large = Image.fromarray(np.array([[5, 70_000]], np.int32))
    with pytest.raises(InputError, match=r"beyond 0\.\.65535: convert"):
        load_image(encode(large, "TIFF"))
