"""Decoding: any image source in, an upright RGB image out, or one clear line about why not."""

from __future__ import annotations

import io
import logging
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from tigerfg.boxes import check_box
from tigerfg.errors import InputError
from tigerfg.settings import whole_number

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray

# Pillow warns from half of its own limit on; ours says yes or no, once.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

MAX_PIXELS = 178_956_970  # 178 MP, the size at which Pillow too refuses to decode

# Only these decoders see a file: others that Pillow has (EPS, for one) run external programs.
# The first five are loaded by preinit; Pillow imports the rest when it gets that far down the list.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF")
Image.preinit()

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF orientation -> transposition that turns the stored image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {  # the others are their own inverse
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}

# One of them is held while an image is loaded: threads may be given the same image of a caller's,
# and Pillow, which then reads its file, is not made for that.
_LOADING = tuple(threading.Lock() for _ in range(64))

logger = logging.getLogger("tigerfg")


def load_image(
    source: ImageSource,
    box: Sequence[float] | None = None,
    *,
    target_size: int | None = None,
    interpolation: str = "bilinear",
) -> Image.Image:
    """Decode an image, optionally crop it, and return it upright as RGB.

    The first frame of an animation is taken; palette, CMYK, grey, 16-bit and transparent images
    (over white) become RGB; the EXIF orientation is applied after the crop.

    Args:
        source: path, encoded bytes, PIL image, or uint8 array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) in RGB(A) order.
        box: crop ``(x0, y0, x1, y1)`` in pixels of the image *as stored*, that is before the EXIF
            orientation; every pixel that the box touches is kept.
        target_size: resize the result, with antialiasing, so that its longer side has this many
            pixels (the shorter one at least 1). A JPEG whose crop is much larger is then decoded
            at 1/2, 1/4 or 1/8 of its size, never below twice this side.
        interpolation: "bilinear", "bicubic" or "lanczos".

    Returns:
        An RGB image. A PIL image with nothing left to do to it is returned itself.

    Raises:
        InputError: names the source and the reason (missing, truncated, no image, too large, ...).
    """
    name = describe_source(source)
    if interpolation not in INTERPOLATIONS:
        raise InputError(
            f"interpolation {interpolation!r} is not one of {', '.join(INTERPOLATIONS)}"
        )
    if target_size is not None:
        target_size = whole_number(target_size, "target_size")
    if isinstance(source, np.ndarray):
        image = _image_from_array(source, name)
    elif isinstance(source, Image.Image):
        image = source
    elif isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        with decoding(name), _opened(source, name) as image:
            reduced = target_size is not None and image.format == "JPEG"
            result = _decode(image, box, target_size, interpolation, name, reduced=reduced)
            result.info = {}
            return result
    else:
        raise InputError(f"{name}: give a path, bytes, a PIL image or a uint8 array")
    with decoding(name):
        result = _decode(image, box, target_size, interpolation, name)
        if result is not source:
            result.info = {}  # its orientation has been applied: nobody may apply it again
        return result


def describe_source(source: object) -> str:
    """Name of an image source for messages, on one line: the path, or kind and size."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        return path if path.isprintable() and path else repr(path)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<image of {len(source)} bytes>"
    if isinstance(source, np.ndarray):
        return f"<array of shape {source.shape}, {source.dtype}>"
    if isinstance(source, Image.Image):
        return f"<PIL image {source.mode} {source.width} x {source.height}>"
    return f"<image source of type {type(source).__name__}>"


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on broken data into one InputError that names the source."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: the image is larger than {MAX_PIXELS:,} pixels") from error
    except (UnidentifiedImageError, KeyError) as error:
        raise InputError(
            f"{name}: not an image, or its header is broken (known: {', '.join(FORMATS)})"
        ) from error
    except Exception as error:  # decoders raise a dozen kinds: OSError, SyntaxError, struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: the image cannot be decoded: {reason}") from error


@contextmanager
def _opened(source: str | os.PathLike | bytes, name: str) -> Iterator[Image.Image]:
    with open_source(source, name) as stream:
        with Image.open(stream, formats=FORMATS) as image:
            if image.format != "PNG":
                yield image
                return
            _check_png(image)  # the image is of no use after it
            stream.seek(0)
        with Image.open(stream, formats=FORMATS) as image:
            yield image


def _check_png(image: Image.Image) -> None:
    """Compare the checksums of the pixels' chunks, which Pillow's decoder passes over: a flipped
    bit would be other pixels. SyntaxError if one differs."""
    try:
        image.verify()
    except SyntaxError as error:
        if repr(b"IDAT") in str(error):
            raise
    except Exception as error:  # of what lies behind the pixels, or they end early: seen as decoded
        logger.debug("a PNG does not end as it should: %s", error)


def open_source(source: str | os.PathLike | bytes, name: str) -> BinaryIO:
    """The bytes of a picture's file, or of a picture; InputError names it as it is called."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise InputError(f"{name}: no data")
        return io.BytesIO(source)
    try:
        status = os.stat(source)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name}: is a directory, not an image file")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name}: is not a regular file")
        if status.st_size == 0:
            raise InputError(f"{name}: the file is empty (0 bytes)")
        return open(source, "rb")
    except FileNotFoundError as error:
        hint = (
            ": only pictures of items are fetched, as they are added, from http:// and https://"
            if "://" in name
            else ""
        )
        raise InputError(f"{name}: no such file{hint}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name}: the file cannot be read: {reason}") from error


def _image_from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.dtype != np.uint8:
        raise InputError(f"{name}: the values must be uint8 in 0..255, not {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"{name}: the shape must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if array.size == 0:
        raise InputError(f"{name}: the array is empty")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _decode(
    image: Image.Image,
    box: Sequence[float] | None,
    target_size: int | None,
    interpolation: str,
    name: str,
    *,
    reduced: bool = False,
) -> Image.Image:
    """Load, crop, convert, resize and turn upright, in this order.

    ``reduced`` allows a JPEG that nobody else holds to be decoded at a fraction of its size.
    """
    stored = image.size
    if stored[0] * stored[1] > MAX_PIXELS:
        raise InputError(
            f"{name}: {stored[0]} x {stored[1]} is larger than {MAX_PIXELS:,} pixels: shrink it"
        )
    if min(stored) < 1:
        raise InputError(f"{name}: the image has no pixels")
    scale = 1
    with _LOADING[id(image) // 64 % len(_LOADING)]:
        if image.format == "PNG":  # its EXIF may stand behind the pixels: asking for it loads them
            image.load()
        orientation = orientation_of(image, name)
        if reduced:
            scale = _draft(image, _whole_pixels(box, stored, name), target_size)
        image.load()
        turned = orientation_of(image, name) != orientation
    if turned:  # Pillow turns a TIFF upright as it loads it
        turn = _UPRIGHT[orientation]
        image = image.transpose(_INVERSE.get(turn, turn))
        stored = image.size
    x0, y0, x1, y1 = _whole_pixels(box, stored, name)
    left, top = x0 // scale, y0 // scale  # whole pixels of the decoded image around the crop
    around = (left, top, math.ceil(x1 / scale), math.ceil(y1 / scale))
    if around != (0, 0, *image.size):
        image = image.crop(around)
    image = _to_rgb(image, name)
    if target_size is not None:
        extent = _letterbox_extent((x1 - x0, y1 - y0), target_size)
        region = (x0 / scale - left, y0 / scale - top, x1 / scale - left, y1 / scale - top)
        if extent != image.size:
            image = image.resize(extent, INTERPOLATIONS[interpolation], region)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def orientation_of(image: Image.Image, name: str) -> int:
    """EXIF's orientation of an image, 1 to 8: how it is turned before it is shown; 1 where there is
    none that is known."""
    try:
        code = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # a broken EXIF block says nothing about the pixels
        logger.warning("%s: EXIF data ignored, it is broken: %s", name, error)
        return 1
    return code if code in _UPRIGHT else 1


def _draft(image: Image.Image, region: tuple[int, int, int, int], target_size: int) -> int:
    """Let a JPEG decode at 1/scale of its size; the region keeps twice the target's side."""
    longest = max(region[2] - region[0], region[3] - region[1])
    scale = next((s for s in (8, 4, 2) if longest >= 2 * target_size * s), 1)
    width, height = image.size
    if scale == 1 or min(width, height) < scale:
        return 1
    image.draft("RGB", (width // scale, height // scale))
    return scale


def _whole_pixels(
    box: Sequence[float] | None, size: tuple[int, int], name: str
) -> tuple[int, int, int, int]:
    if box is None:
        return 0, 0, *size
    x0, y0, x1, y1 = check_box(box, size, f"{name}: box")
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def _letterbox_extent(size: tuple[int, int], target_size: int) -> tuple[int, int]:
    longest = max(size)
    width, height = (max(1, round(side * target_size / longest)) for side in size)
    return width, height


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{name}: 32-bit pixels beyond 0..65535: convert the image to 8 bit")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError(f"{name}: floating-point pixels: convert the image to 8 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
