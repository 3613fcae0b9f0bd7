"""What a picture's header tells, without decoding it."""

from __future__ import annotations

import io
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from tigerfg.images import ImageSource

EXIF_ORIENTATION = 0x0112


class StoredPicture(NamedTuple):
    """``size``: (width, height) in pixels as stored; ``upright``: EXIF does not turn it."""

    size: tuple[int, int]
    upright: bool


def stored_picture(source: ImageSource) -> StoredPicture | None:
    """Size and orientation of a picture; None if its header cannot be read."""
    if isinstance(source, np.ndarray):
        return StoredPicture((source.shape[1], source.shape[0]), True)
    if isinstance(source, Image.Image):
        return StoredPicture(source.size, True)
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
        with Image.open(file) as picture:
            upright = picture.getexif().get(EXIF_ORIENTATION, 1) == 1
            return StoredPicture(picture.size, upright)
    except Exception:  # decoders raise a dozen kinds; whoever encodes the picture reports it
        return None
