"""What a picture's header tells, without decoding it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from tigerfg.decoding import FORMATS, ImageSource, describe_source, open_source, orientation_of


class StoredPicture(NamedTuple):
    """``size``: (width, height) in pixels as stored; ``orientation``: EXIF's, 1 to 8."""

    size: tuple[int, int]
    orientation: int

    @property
    def upright(self) -> bool:
        """Whether EXIF does not turn it."""
        return self.orientation == 1


def stored_picture(source: ImageSource) -> StoredPicture | None:
    """Size and orientation of a picture; None if its header cannot be read."""
    if isinstance(source, np.ndarray):
        return StoredPicture((source.shape[1], source.shape[0]), 1)
    if isinstance(source, Image.Image):
        return _of(source)
    try:
        name = describe_source(source)
        with open_source(source, name) as file, Image.open(file, formats=FORMATS) as picture:
            return _of(picture)
    except Exception:  # decoders raise a dozen kinds; whoever encodes the picture reports it
        return None


def _of(picture: Image.Image) -> StoredPicture:
    orientation, size = orientation_of(picture, describe_source(picture)), picture.size
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and orientation > 4:
        tags = picture.tag_v2  # some versions of Pillow give the size that it has when turned
        size = int(tags[TiffImagePlugin.IMAGEWIDTH]), int(tags[TiffImagePlugin.IMAGELENGTH])
    return StoredPicture(size, orientation)
