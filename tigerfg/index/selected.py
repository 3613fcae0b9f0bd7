"""What the last filters selected: a filter that is used again costs no reading."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from tigerfg.index.store import Store
from tigerfg.index.where import parse_filter

MOST_IDS, MOST_FILTERS = 4_000_000, 256  # kept in memory; an id is 8 bytes


class SelectedIds:
    """Internal ids by filter, kept for as long as nothing is written; the latest used ones.

    Not thread-safe: the caller holds the store's lock, and reads in one snapshot.
    """

    def __init__(self) -> None:
        self._number = -1
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def of(self, store: Store, where: Mapping[str, Any]) -> np.ndarray:
        """Ids as of `Store.select`; not to be written to."""
        number = store.number
        if number != self._number:
            self._kept.clear()
            self._number = number
        term = parse_filter(where)
        key = sha256(repr(term).encode()).digest()  # 1 and "1" are told apart
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = store.select(term)
            found.flags.writeable = False
        self._kept.move_to_end(key)
        kept = sum(map(len, self._kept.values()))
        while kept > MOST_IDS or len(self._kept) > MOST_FILTERS:
            kept -= len(self._kept.popitem(last=False)[1])
        return found
