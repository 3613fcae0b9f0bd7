"""Which index a catalogue gets: its settings, and the rules behind ``index="auto"``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real

from tigerfg.errors import InputError
from tigerfg.settings import whole_number

FLAT, AUTO = "flat", "auto"
FLAT_MOST = 20_000  # items up to which "auto" scans them all
ID_BYTES = 8
ROW_BYTES = 7  # an item beside an IVF index: its list, its life, and its id where some are missing
# Of `auto`, the quickest first: what is before the lists, codes, their bits a dimension, and bytes
# of factors besides. RaBitQ (Gao & Long 2024, arXiv 2405.12497) needs no matrices and no codebooks.
_CODES = (("SVD,", "PQx4fs", 4, 0), ("", "RaBitQfs2", 2, 20), ("", "RaBitQfs", 1, 8))
# From so many lists on, their centres are searched by a graph: of 4,096 it takes as long as
# comparing them all in the few dimensions that `span` leaves them. Its bytes a centre.
_GRAPH_FROM, _GRAPH, _GRAPH_BYTES = 8192, "_HNSW16", 160
_SPARE = 16  # empty places of a list, on average: fast-scan has them by 32


@dataclass(frozen=True)
class IndexSettings:
    """How a catalogue is searched; stored with it.

    Attributes:
        index: "auto" by size and budget; "flat": exact, a scan of all; or a factory string of faiss
            for an IVF index, such as "IVF4096,PQ64" or "OPQ64,IVF4096,PQ64", or with "SVD" before
            it (see `span`): what auto takes. Whatever it is, its candidates are ranked again by
            the stored float16 vectors.
        target_recall: share of the true 10 nearest that a search is to find, for which nprobe is
            chosen when an index is built.
        memory_budget: bytes of memory for the index, None for no limit; the float16 vectors are
            mapped from the disk and not counted.

    Raises:
        InputError: a value cannot be used.
    """

    index: str = AUTO
    target_recall: float = 0.95
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.index, str) or not self.index:
            raise InputError(f"index {self.index!r}: give auto, flat or a factory string of faiss")
        recall, budget = self.target_recall, self.memory_budget
        if not isinstance(recall, Real) or not 0.0 < recall < 1.0:
            raise InputError(f"target_recall {recall!r} is not a number between 0 and 1")
        object.__setattr__(self, "target_recall", float(recall))
        if budget is not None:
            object.__setattr__(self, "memory_budget", whole_number(budget, "memory_budget"))

    def changed(
        self, index: str | None, target_recall: float | None, memory_budget: int | None
    ) -> IndexSettings | None:
        """With other values where they are not None; None where none is given.

        Args:
            memory_budget: 0 takes the limit away.
        """
        given = {"index": index, "target_recall": target_recall, "memory_budget": memory_budget}
        changes = {name: value for name, value in given.items() if value is not None}
        if memory_budget is not None:
            changes["memory_budget"] = whole_number(memory_budget, "memory_budget", 0) or None
        return replace(self, **changes) if changes else None

    def choose(self, items: int, dim: int) -> str:
        """The index for so many items: "flat" or a factory string. Budgets reckon with vectors that
        fill all dimensions.

        Raises:
            InputError: the memory budget is too small for any.
        """
        if self.index != AUTO:
            return self.index
        if items <= FLAT_MOST and self._fits(items * (4 * dim + ID_BYTES)):
            return FLAT
        lists = list_count(items)
        graph = _GRAPH if lists >= _GRAPH_FROM else ""
        centre = 8 * dim + (_GRAPH_BYTES if graph else 0)  # faiss's, and numpy's
        needed = 0
        for before, code, bits, factors in _CODES:
            size = dim * bits // 8 + factors + ID_BYTES
            needed = items * (size + ROW_BYTES) + lists * (centre + _SPARE * size)
            if before:  # two matrices, faiss's and numpy's, and a codebook
                needed += 16 * dim * dim + 64 * dim
            if self._fits(needed):
                return f"{before}IVF{lists}{graph},{code}"
        raise InputError(
            f"memory_budget {self.memory_budget}: the smallest index of {items} items needs "
            f"{needed} bytes"
        )

    def _fits(self, needed: int) -> bool:
        return self.memory_budget is None or needed <= self.memory_budget


def list_count(items: int) -> int:
    """Inverted lists: the power of two nearest to 4 √items, at least 39 items a list to train."""
    wanted = 2 ** round(math.log2(4 * math.sqrt(max(items, 1))))
    most = 2 ** int(math.log2(max(items / 39, 1)))
    return max(1, min(wanted, most))
