"""Where training data come from: the protocol that batches are made from, and nothing else.

A source has products; `draw` picks products for a batch and gives `Rows`, which hold what is needed
to make the pictures and texts of these rows, but decode nothing yet. `Pool` is one source, shard
directories are another. A batch is drawn whole by every rank from the same generator, then a rank
takes its slice of the rows and only that is decoded.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, Protocol

import numpy as np


class SceneArrays(NamedTuple):
    """Item pictures of B rows, letterboxed at the top left, as a source gives them.

    Attributes:
        pictures: (B, Si, Si, 3) uint8, zero outside the picture.
        extents: (B, 2) float32, valid (w, h) in pixels.
        boxes: (B, 4) float32 x0, y0, x1, y1 of the target in pixels of `pictures`, inside the
            extent; zeros where it is not known.
        other_boxes: (B, 4) float32, one other product of the picture; zeros where there is none.
        other_products: (B,) int64, the number in the source of the product in `other_boxes`; -1
            where there is none, or nobody said which it is.
        boxed: (B,) bool, whether `boxes` is known: finite and with an area.
    """

    pictures: np.ndarray
    extents: np.ndarray
    boxes: np.ndarray
    other_boxes: np.ndarray
    other_products: np.ndarray
    boxed: np.ndarray


class Rows(Protocol):
    """B rows of a batch, one product each. What row i gives depends on row i alone.

    So `rows[a:b]` gives the same pictures and texts as rows a..b of the whole, bit for bit: a
    source draws one seed a row in `draw`, and a row uses nothing else that is random.

    Attributes:
        products: (B,) int64 in [0, source.products).
    """

    products: np.ndarray

    def __getitem__(self, rows: slice) -> Rows:
        """Some of the rows, before any picture was asked for."""
        ...

    def crops(self) -> tuple[np.ndarray, np.ndarray]:
        """Query-side pictures: (B, Sq, Sq, 3) uint8 and extents (B, 2) float32.

        Every call gives another crop of the same products, where there is another one.
        """
        ...

    def scenes(self) -> SceneArrays:
        """Item pictures; every call gives others, where there are others."""
        ...

    def texts(self) -> list[str]:
        """One item text a row; every call gives another wording.

        The text belongs to the picture that the last call of `scenes` gave (the first one's before
        any call): words that say which product of a cluttered picture is meant are kept.
        """
        ...


class Source(Protocol):
    """Products with pictures and texts.

    Attributes:
        products: number of products. skipped: what could not be used, reason -> count; grows
            while a source that decodes as it goes is drawn from.
    """

    products: int
    skipped: Counter[str]

    def draw(self, count: int, rng: np.random.Generator) -> Rows:
        """`count` rows, 0 or more, deterministic by the state of `rng`."""
        ...
