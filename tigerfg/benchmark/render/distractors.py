"""Which products lie beside the target in a cluttered picture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from .products import Product

SAME_KIND = 0.4  # probability that a distractor is a twin or of the same kind


class Distractors:
    """Chooses distractors among ``n`` products, near-twins and products of the same kind often.

    Args:
        kinds: of every product, e.g. its category; products of one kind look alike.
        twin_of: for every product the index of the one that it copies, or -1.
    """

    def __init__(self, kinds: Sequence[Hashable], twin_of: Sequence[int]) -> None:
        if len(kinds) != len(twin_of):
            raise ValueError(f"Distractors: {len(kinds)} kinds but {len(twin_of)} twins")
        self._kinds = kinds
        self._alike: dict[Hashable, list[int]] = {}
        self._twins: dict[int, list[int]] = {}
        for i, kind in enumerate(kinds):
            self._alike.setdefault(kind, []).append(i)
        for i, base in enumerate(twin_of):
            if base >= 0:
                self._twins.setdefault(base, []).append(i)
                self._twins.setdefault(i, []).append(base)

    @classmethod
    def of(cls, products: Sequence[Product]) -> Distractors:
        """The chooser for rendered products; a twin's base may be missing from the list."""
        index = {product.product_id: i for i, product in enumerate(products)}
        return cls([p.kind for p in products], [index.get(p.twin_of, -1) for p in products])

    def twins(self, i: int) -> list[int]:
        """The near-twins of product ``i``."""
        return self._twins.get(i, [])

    def choose(self, i: int, rng: np.random.Generator) -> list[int]:
        """2-5 distinct products other than ``i``, fewer where there are not so many."""
        wanted = min(int(rng.integers(2, 6)), len(self._kinds) - 1)
        chosen: list[int] = []
        while len(chosen) < wanted:
            pool: list[int] = []
            if rng.random() < SAME_KIND:
                twins = self.twins(i)
                pool = twins if twins and rng.random() < 0.5 else self._alike[self._kinds[i]]
                pool = [j for j in pool if j != i and j not in chosen]
            j = int(pool[rng.integers(len(pool))] if pool else rng.integers(len(self._kinds)))
            if j != i and j not in chosen:
                chosen.append(j)
        return chosen
