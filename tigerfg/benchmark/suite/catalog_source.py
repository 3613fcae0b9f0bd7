"""A user's catalogue as a source of products: its cut-outs in every pose and light."""

from __future__ import annotations

import io
import json
import sqlite3
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from tigerfg.benchmark.render import Distractors, pose
from tigerfg.errors import InputError

from .settings import Settings
from .sources import Group, Listing


@dataclass(frozen=True)
class CatalogSource:
    """Products of a store that `cutouts.prepare` has filled.

    The evaluation part is drawn from all products by the suite's seed, the rest is for training.
    Every shard takes the next products of a shuffled round through them, near-twins (products of
    the same category) side by side, so all are used equally often.
    """

    store: Path
    sha256: str

    @classmethod
    def open(cls, store: Path) -> CatalogSource:
        """Open a filled store."""
        database = sqlite3.connect(store)
        row = database.execute("SELECT value FROM state WHERE key = 'sha256'").fetchone()
        database.close()
        if row is None:
            raise InputError(f"{store}: the cut-outs are not complete: run the command again")
        return cls(store, row[0])

    def describe(self) -> dict[str, Any]:
        return {"kind": "catalog", "sha256": self.sha256}

    def products(self, settings: Settings) -> int:
        return len(_categories(self))

    def shard(self, settings: Settings, shard: int) -> Group:
        _, training = self._parts(settings)
        wanted = min(settings.products(shard), len(training))
        first = shard * settings.products(0)
        chosen: dict[int, None] = {}
        while len(chosen) < wanted:
            turn, at = divmod(first, len(training))
            order = _shuffled_pairs(
                training, _categories(self), np.random.default_rng((settings.seed, turn, 8))
            )
            taken = order[at : at + wanted - len(chosen)]
            chosen.update(dict.fromkeys(taken.tolist()))
            first += len(taken)
        return CatalogGroup(self, list(chosen), numbered=True)

    def evaluation(self, settings: Settings) -> Group:
        chosen, _ = self._parts(settings)
        categories = _categories(self)
        by_kind = chosen[np.argsort(categories[chosen], kind="stable")]
        return CatalogGroup(self, by_kind.tolist(), numbered=False)

    def check(self, settings: Settings) -> None:
        """Raise InputError where the catalogue has too few products for the settings."""
        total, needed = self.products(settings), settings.eval_products
        if needed > total:
            raise InputError(
                f"eval_products: {needed}: the catalogue has {total} usable products: give fewer"
            )
        if settings.pairs and total - needed < 2:
            raise InputError(
                f"eval_products: {needed} of {total} usable products leaves {total - needed} for "
                "training, 2 are the least: give fewer"
            )

    def _parts(self, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the evaluation and of the training products."""
        rng = np.random.default_rng((settings.seed, 0xE7A1))
        order = rng.permutation(self.products(settings))
        return order[: settings.eval_products], order[settings.eval_products :]


class CatalogGroup:
    """Some products of a store; neighbours of the same category count as near-twins."""

    def __init__(self, source: CatalogSource, numbers: list[int], *, numbered: bool) -> None:
        self._source, self._numbers = source, numbers
        self.listings: list[Listing] = []
        self._views: list[int] = []
        for number in numbers:
            product_id, title, category, attributes, description, views = (
                _database(source)
                .execute(
                    "SELECT product_id, title, category, attributes, description, views "
                    "FROM product WHERE number = ?",
                    (number,),
                )
                .fetchone()
            )
            self._views.append(views)
            self.listings.append(
                Listing(
                    number if numbered else -1,
                    product_id,
                    title,
                    category,
                    json.loads(attributes),
                    description,
                )
            )
        kinds = [listing.category for listing in self.listings]
        twin_of = [-1] * len(kinds)
        for i in range(1, len(kinds)):
            if kinds[i] == kinds[i - 1] and twin_of[i - 1] < 0:
                twin_of[i] = i - 1
        self.distractors = Distractors(kinds, twin_of)

    def cutout(self, i: int, size: int, view_seed: int) -> Image.Image:
        (webp,) = (
            _database(self._source)
            .execute(
                "SELECT webp FROM cutout WHERE number = ? AND view = ?",
                (self._numbers[i], view_seed % self._views[i]),
            )
            .fetchone()
        )
        with Image.open(io.BytesIO(webp), formats=("WEBP",)) as opened:
            return pose(opened.convert("RGBA"), size, view_seed)


def _shuffled_pairs(
    products: np.ndarray, categories: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """``products`` in random order, two of a category side by side where there are two."""
    order = rng.permutation(products)
    order = order[np.argsort(categories[order], kind="stable")]
    pairs = rng.permutation(-(-len(order) // 2))
    places = (pairs[:, None] * 2 + [0, 1]).ravel()
    return order[places[places < len(order)]]


@lru_cache(maxsize=1)
def _database(source: CatalogSource) -> sqlite3.Connection:
    """A process's connection for reading."""
    return sqlite3.connect(f"file:{quote(str(source.store.absolute()))}?mode=ro", uri=True)


@lru_cache(maxsize=1)
def _categories(source: CatalogSource) -> np.ndarray:
    """(N,) int64, a number for every product's category."""
    codes: dict[str, int] = {}
    rows = _database(source).execute("SELECT category FROM product ORDER BY number")
    return np.fromiter((codes.setdefault(row[0], len(codes)) for row in rows), dtype=np.int64)
