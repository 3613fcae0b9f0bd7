"""Training pictures in fixed-size arrays: what a training step gathers its batch from."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tigerfg.errors import InputError
from tigerfg.training.sources import SceneArrays
from tigerfg.training.texts import UNKNOWN_WORDS, with_unknown_words

FULL_TEXT = 0.5  # share of rows that get the product's full text
ARRAYS = (
    "crops",
    "crop_extents",
    "crop_products",
    "scenes",
    "scene_extents",
    "scene_products",
    "scene_boxes",
    "other_boxes",
    "other_products",
    "cluttered",
    "twins",
)


@dataclass
class Pool:
    """Crops and full pictures of P products, letterboxed (uint8), memory-mapped when loaded.

    The first `tigerfg.training.sources.Source`. Every product has a crop, a picture and a text.

    Attributes:
        crops: (C, Sq, Sq, 3) uint8 query-side pictures. crop_extents: (C, 2) valid (w, h).
        crop_products: (C,) int32 in [0, P).
        scenes: (M, Si, Si, 3) uint8 item pictures. scene_extents: (M, 2).
        scene_products: (M,) int32, the target. scene_boxes: (M, 4) float32, target box in pixels
            of the letterboxed picture, all zero where it is unknown. other_boxes: (M, 4) box of
            one other product in the picture, all zero where there is none. other_products: (M,)
            int32, which one, -1 where there is none or it is not of the pool.
        cluttered: (M,) bool, whether there are, or may be, other products in the picture.
        twins: (P,) int32, a product that differs in one attribute or is of the same kind, or -1.
        texts: for every product its item texts: the first is the full one, the others lack parts.
        anchors: for every product the words that `texts.with_unknown_words` keeps in clutter.
        skipped: what could not be used when the pool was made, reason -> count.
        one_view: how many products have a single photo, so that their pairs are crops of that.
        unknown_words: share of texts drawn with invented words in them; not saved.
    """

    crops: np.ndarray
    crop_extents: np.ndarray
    crop_products: np.ndarray
    scenes: np.ndarray
    scene_extents: np.ndarray
    scene_products: np.ndarray
    scene_boxes: np.ndarray
    other_boxes: np.ndarray
    other_products: np.ndarray
    cluttered: np.ndarray
    twins: np.ndarray
    texts: list[list[str]]
    anchors: list[list[str]]
    skipped: Counter[str] = field(default_factory=Counter)
    one_view: int = 0
    unknown_words: float = UNKNOWN_WORDS

    def __post_init__(self) -> None:
        self._crops_of = _group(self.crop_products, len(self.twins))
        self._scenes_of = _group(self.scene_products, len(self.twins))
        has = {"crop": self._crops_of, "item picture": self._scenes_of, "text": self.texts}
        for what, groups in has.items():
            bare = [number for number, group in enumerate(groups) if not len(group)]
            if bare or len(groups) != self.products:
                where = f"product {bare[0]} has" if bare else "the last products have"
                raise InputError(f"pool: {where} no {what}: leave such products out of a pool")

    @property
    def products(self) -> int:
        return len(self.twins)

    def save(self, directory: str | Path) -> None:
        """Write the arrays whole or not at all to a directory that does not exist yet."""
        directory = Path(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".pool-") as temp:
            staged = Path(temp) / "pool"
            staged.mkdir()
            for name in ARRAYS:
                np.save(staged / f"{name}.npy", getattr(self, name), allow_pickle=False)
            names = ("texts", "anchors", "skipped", "one_view")
            rest = {name: getattr(self, name) for name in names}
            (staged / "texts.json").write_text(json.dumps(rest))
            os.rename(staged, directory)

    @classmethod
    def load(cls, directory: str | Path, unknown_words: float = UNKNOWN_WORDS) -> Pool:
        """Memory-map a saved pool."""
        directory = Path(directory)
        try:
            rest = json.loads((directory / "texts.json").read_text())
            arrays = {
                name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ARRAYS
            }
            arrays |= {"texts": rest["texts"], "anchors": rest["anchors"]}
            skipped, one_view = Counter(rest["skipped"]), rest["one_view"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"pool: {directory} is not a saved training pool ({error}); prepare it again"
            ) from error
        return cls(**arrays, skipped=skipped, one_view=one_view, unknown_words=unknown_words)

    def draw(self, count: int, rng: np.random.Generator) -> PoolRows:
        """`count` rows of distinct products (`pick_products`), deterministic by `rng`."""
        products = self.pick_products(count, rng)
        return PoolRows(self, products, rng.integers(1 << 63, size=len(products)))

    def pick_products(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Distinct products while there are enough, half of them as pairs of near-twins."""
        if count > self.products:
            return rng.integers(0, self.products, count)
        chosen: dict[int, None] = {}
        for product in rng.permutation(self.products):
            if len(chosen) >= count:
                break
            chosen[int(product)] = None
            twin = int(self.twins[product])
            if twin >= 0 and rng.random() < 0.5:
                chosen[twin] = None
        return np.fromiter(chosen, dtype=np.int64)[:count]


class PoolRows:
    """Rows of a pool: what `sources.Rows` says, gathered from the arrays."""

    def __init__(self, pool: Pool, products: np.ndarray, seeds: np.ndarray) -> None:
        self.products = products
        self._pool, self._seeds = pool, seeds
        self._calls: Counter[str] = Counter()

    def __getitem__(self, rows: slice) -> PoolRows:
        return PoolRows(self._pool, self.products[rows], self._seeds[rows])

    def crops(self) -> tuple[np.ndarray, np.ndarray]:
        """(B, Sq, Sq, 3) uint8 and extents (B, 2): no crop again before all were there."""
        chosen = self._choose(0, self._pool._crops_of, self._next("crops"))
        return self._pool.crops[chosen], self._pool.crop_extents[chosen]

    def scenes(self) -> SceneArrays:
        """Item pictures: none again before all of the product were there."""
        pool = self._pool
        chosen = self._choose(1, pool._scenes_of, self._next("scenes"))
        boxes = pool.scene_boxes[chosen]
        boxed = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])  # False for NaN
        return SceneArrays(
            pool.scenes[chosen],
            pool.scene_extents[chosen],
            np.where(boxed[:, None], boxes, np.float32(0)),
            pool.other_boxes[chosen],
            pool.other_products[chosen].astype(np.int64),
            boxed,
        )

    def texts(self) -> list[str]:
        """The full text for half of the rows, else a shorter one; some with invented words."""
        pool, call = self._pool, self._next("texts")
        shown = self._choose(1, pool._scenes_of, max(0, self._calls["scenes"] - 1))
        cluttered = pool.cluttered[shown]
        chosen = []
        for product, seed, clutter in zip(self.products, self._seeds, cluttered, strict=True):
            rng = np.random.default_rng((int(seed), 2, call))
            texts = pool.texts[product]
            shorter = rng.random() >= FULL_TEXT and len(texts) > 1
            text = texts[int(rng.integers(1, len(texts)))] if shorter else texts[0]
            if rng.random() < pool.unknown_words:
                text = with_unknown_words(text, pool.anchors[product], bool(clutter), rng)
            chosen.append(text)
        return chosen

    def _next(self, what: str) -> int:
        """How many calls for this there were before."""
        self._calls[what] += 1
        return self._calls[what] - 1

    def _choose(self, kind: int, groups: list[np.ndarray], call: int) -> np.ndarray:
        """One index a row: number `call` in the row's own order of its product's pictures."""
        chosen = np.empty(len(self.products), np.int64)
        for row, (product, seed) in enumerate(zip(self.products, self._seeds, strict=True)):
            group = groups[product]
            order = np.random.default_rng((int(seed), kind)).permutation(len(group))
            chosen[row] = group[order[call % len(group)]]
        return chosen


def _group(products: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(products, kind="stable")
    bounds = np.searchsorted(products[order], np.arange(count + 1))
    return [order[bounds[p] : bounds[p + 1]] for p in range(count)]
