"""Approximate search: an IVF index of faiss that follows the store, refined by the stored vectors.

faiss gives candidates from compressed codes; their float16 vectors, mapped from the disk, give the
scores and the order. Removed items are tombstones: a selector keeps them out before ranking, so
that k results come back, until the index is built anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from tigerfg.index.derived import Loaded, import_faiss, load_index, save_index
from tigerfg.index.exact import exact
from tigerfg.index.factory import ids_by_list, transformed, transforms_of
from tigerfg.index.probing import MOST, Centres, Chosen, Probing, from_score
from tigerfg.index.ranking import NEAREST
from tigerfg.index.refine import refined
from tigerfg.index.store import Store
from tigerfg.index.vectors import VectorRows, grown

INDEX_FILE = "ivf.index"
EXACT_MOST = 4096  # allowed items up to which their vectors are simply compared
AT_ONCE = 1 << 22  # scores of centres in memory
CANDIDATES = 5000  # a query; more only if k is larger
Lines = slice | np.ndarray  # of a batch

logger = logging.getLogger("tigerfg")


class IvfIndex:
    """A trained IVF index with its tuned nprobe.

    Not thread-safe; create it and call `sync` and `search` inside one ``store.snapshot()``.

    Attributes:
        rows: the stored vectors.
        lists: how many inverted lists.
        notes: how it was built: factory, nprobe (lists a query on average), margins (see
            `probing`), reach (see `IvfIndex.reach`), factor (candidates a wanted result, of
            `NEAREST` at least), trained (items then), last (their highest internal id), settings
            (that asked for it), and the measured curve.
        later: how many items came after the training, those that are gone among them; compared:
            how many they were when they were last found as well as the rest; worse: whether they
            were found less. See `tigerfg.index.later`.
    """

    def __init__(self, store: Store, rows: VectorRows, loaded: Loaded) -> None:
        self._faiss = import_faiss()
        self._store, self.rows = store, rows
        self._index, self._number, self.notes = loaded
        self._ivf = self._faiss.extract_index_ivf(self._index)
        self._ivf.parallel_mode = 3  # threads share the queries of a batch, whatever the codes
        self.lists = int(self._ivf.nlist)
        self._transforms = transforms_of(self._index)
        self._centres = Centres(self._faiss, self._ivf)
        self._probing = Probing(self._centres, self.notes["margins"])
        # the last bitmap, and faiss's parameters with it by lists: making them takes a while
        self._parameters: tuple[np.ndarray | None, dict[int, Any]] = None, {}
        self._live = np.zeros(0, bool)  # by internal id
        self._list_of = np.zeros(0, np.min_scalar_type(self.lists - 1))  # by internal id
        self._packed: np.ndarray | None = None  # bitmap of the live ids, when it is needed
        # the last filter's ids, and what `_allowed` made of them
        self._filtered: tuple[np.ndarray, tuple[np.ndarray, np.ndarray]] | None = None
        self._count = self._dead = self.later = self.compared = 0
        self.worse = False
        held = list(ids_by_list(self._ivf))
        self._grow(max((int(ids.max()) + 1 for _, ids in held), default=0))
        for number, ids in held:
            self._mark(ids, number)
        self.sync()

    @classmethod
    def open(cls, store: Store) -> IvfIndex | None:
        """From the catalogue's files; None where there is no usable one."""
        found = load_index(store.path / INDEX_FILE, store)
        if found is None:
            return None
        index = cls(store, VectorRows(store), found)
        if len(index) == len(store):
            return index
        logger.warning("%s does not agree with the store: rebuilt", store.path / INDEX_FILE)
        return None

    def __len__(self) -> int:
        return self._count

    @property
    def changed(self) -> float:
        """Items added to and removed from what the index was trained on, as a share of that."""
        return (2 * len(self.rows) - self._count - self.notes["trained"]) / self.notes["trained"]

    @property
    def worn(self) -> float:
        """Share of the vectors' rows that are in this process's memory, or of removed items."""
        return (self.rows.unsaved + len(self.rows) - self._count) / max(len(self.rows), 1)

    @property
    def drift(self) -> float:
        """How much less even the lists are than when they were trained, as a factor."""
        return self.imbalance / self.notes["imbalance"]

    @property
    def imbalance(self) -> float:
        """Time of a search against that with lists of one size, by faiss."""
        return self._ivf.invlists.imbalance_factor()

    def attach(self, store: Store) -> None:
        """Follow another connection to the same catalogue from now on."""
        self._store = store
        self.rows.attach(store)

    def sweep(self) -> None:
        """Remove vectors files that this index does not use."""
        self.rows.sweep()

    def sync(self) -> None:
        """Catch up with the store; `IndexKeeper` drops an index that was interrupted in this."""
        self.rows.sync()
        number = self._store.number
        if number == self._number:
            return
        removed = self._store.removed_since(self._number, self._ids)
        removed = removed[removed < len(self._live)]
        removed = removed[self._live[removed]]
        self._live[removed] = False
        self._packed = None
        self._count -= len(removed)
        self._dead += len(removed)
        for ids, vectors in self._store.vectors_since(self._number):
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            inner = transformed(self._transforms, vectors)
            self._ivf.add_with_ids(inner, ids)
            self._index.ntotal = self._ivf.ntotal
            self._mark(ids, self._ivf.quantizer.assign(inner, 1)[:, 0])
            self._number = int(ids[-1])
        self._number = number

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Which of these internal ids are in the index, bool (N,)."""
        known = (ids >= 0) & (ids < len(self._live))
        known[known] = self._live[ids[known]]
        return known

    def _ids(self) -> np.ndarray:
        return np.flatnonzero(self._live)

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """About the k best, their scores exact; arguments and result as `FlatIndex.search`.

        k results come back whenever k items are there (or allowed): where the probed lists hold
        fewer, more are probed.
        """
        total = self._count if allowed is None else len(allowed)
        k = min(k, total)
        if not k or not len(queries):
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        queries = np.ascontiguousarray(queries, np.float32)
        if allowed is not None and total <= max(k, EXACT_MOST):
            return exact(self.rows, queries, allowed, k)
        step = max(1, AT_ONCE // self.lists)
        if len(queries) <= step:
            return self._some(queries, k, allowed)
        parts = [
            self._some(queries[start : start + step], k, allowed)
            for start in range(0, len(queries), step)
        ]
        scores, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
        return scores, ids

    def reach(self, queries: np.ndarray, near: np.ndarray, share: float) -> float:
        """By how much the centre of a list may score less than a query's last result.

        The lists within that hold this share of the true neighbours, however far these are.

        Args:
            queries: float32 (Q, E), unit length. near: ids int64 (Q, N) of their neighbours, -1 for
                none. share: 0 to 1.

        Returns:
            A difference of inner products, 0 to 2.
        """
        known = near >= 0
        if not known.any():
            return 2.0  # more than scores differ
        some = np.where(known, near, near[known][0])
        vectors = self.rows.get(some.ravel()).reshape(*some.shape, -1)
        own = np.where(known, np.einsum("qe,qne->qn", queries, vectors), np.inf)
        centres = self._centres.scores(transformed(self._transforms, queries))
        theirs = np.take_along_axis(centres, self._list_of[some].astype(np.int64), 1)
        below = own.min(axis=1, keepdims=True) - theirs
        return max(0.0, float(np.quantile(below[known], share)))

    def purge(self) -> None:
        """Take the tombstones out of the inverted lists."""
        if self._dead:
            held = np.concatenate([ids for _, ids in ids_by_list(self._ivf)])
            self._index.remove_ids(held[~self._live[held]])
            self._dead = 0

    def save(self) -> bool:
        """Write the index file and the vectors beside it; a failure is logged, never raised.

        Returns whether the index file was written.
        """
        self.purge()
        self.rows.save()
        return save_index(
            self._store.path / INDEX_FILE,
            self._store,
            Loaded(self._index, self._number, self.notes),
        )

    def _wanted(self, k: int) -> int:
        """Candidates for k results."""
        return max(k, min(self.notes["factor"] * max(k, NEAREST), CANDIDATES, self._count))

    def _some(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` of as many queries as `AT_ONCE` allows."""
        if allowed is not None:
            return self._behind_filter(queries, k, allowed)
        bits, wanted = self._live_bits(), self._wanted(k)
        inner = transformed(self._transforms, queries)

        def look(lines: Lines, nprobe: int) -> np.ndarray:
            own = inner[lines]
            return self._candidates(own, wanted, self._probing.choose(own, nprobe), bits)

        scores, ids = refined(self.rows, queries, self._enough(look, k, self.lists), k)
        self._fill(queries, scores, ids, None)
        return scores, ids

    def _behind_filter(
        self, queries: np.ndarray, k: int, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` among more allowed items than are simply compared.

        A first look gives results, and with them how far one has to look.
        """
        bits, held = self._allowed(allowed)
        deep, lists = min(max(k, NEAREST), len(allowed)), int(held.sum())
        wanted, inner = self._wanted(deep), transformed(self._transforms, queries)
        centres = self._centres.scores(inner, held)
        least = np.empty(len(queries), np.float32)  # lists from this score on were probed

        def look(lines: Lines, nprobe: int) -> np.ndarray:
            own = centres[lines]
            from_ = self._probing.least(own, nprobe, lists)
            least[lines] = from_ if nprobe < lists else -np.inf
            return self._candidates(inner[lines], wanted, from_score(own, from_), bits)

        scores, ids = refined(self.rows, queries, self._enough(look, deep, lists), deep)
        wider = scores[:, -1] - np.float32(self.notes["reach"])
        more = np.flatnonzero(wider < least)  # the others have looked that far
        if len(more):
            chosen = from_score(centres[more], wider[more])
            again = self._candidates(inner[more], wanted, chosen, bits)
            scores[more], ids[more] = refined(self.rows, queries[more], again, deep)
        self._fill(queries, scores, ids, allowed)
        return scores[:, :k], ids[:, :k]

    def _enough(self, look: Callable[[Lines, int], np.ndarray], k: int, lists: int) -> np.ndarray:
        """Candidates of all queries, by `look` for some lines of the batch and so many lists each;
        those that come short of k, and no others, look in more, up to all `lists`."""
        nprobe = min(self.notes["nprobe"], lists)
        ids = look(slice(None), nprobe)
        if nprobe == lists or min(ids[:, k - 1].tolist()) >= 0:  # for one query, numpy takes longer
            return ids
        short = np.flatnonzero(ids[:, k - 1] < 0)
        while len(short) and nprobe < lists:
            nprobe = min(MOST * nprobe, lists)
            ids[short] = look(short, nprobe)
            short = short[ids[short, k - 1] < 0]
        return ids

    def _fill(
        self, queries: np.ndarray, scores: np.ndarray, ids: np.ndarray, among: np.ndarray | None
    ) -> None:
        """Where faiss came short, compare all items that may be, None: that live; in place.

        Fast-scan loses items whose estimate is the least of its 8 bits, as of a query's opposites.
        """
        if min(ids[:, -1].tolist()) < 0:
            short = np.flatnonzero(ids[:, -1] < 0)
            among = self._ids() if among is None else among
            scores[short], ids[short] = exact(self.rows, queries[short], among, ids.shape[1])

    def _candidates(
        self,
        inner: np.ndarray,
        wanted: int,
        chosen: Chosen,
        bits: np.ndarray | None,
    ) -> np.ndarray:
        """Ids int64 (B, wanted) by their codes, -1 where the chosen lists hold fewer."""
        lists, scores = chosen
        if self._parameters[0] is not bits:
            self._parameters = bits, {}
        made, count = self._parameters[1], lists.shape[1]
        if count not in made:
            options = {} if bits is None else {"sel": self._faiss.IDSelectorBitmap(bits)}
            made[count] = self._faiss.SearchParametersIVF(nprobe=count, **options)
        found = np.empty((len(inner), wanted), np.int64)
        estimates = np.empty(found.shape, np.float32)
        pointer = self._faiss.swig_ptr
        # not `search_preassigned`: that takes no parameters
        self._ivf.search_preassigned_c(
            len(inner),
            pointer(inner),
            wanted,
            pointer(lists),
            pointer(scores),
            pointer(estimates),
            pointer(found),
            False,
            made[count],
        )
        return found

    def _mark(self, ids: np.ndarray, lists: np.ndarray | int) -> None:
        if len(ids) and (highest := int(ids.max())) >= len(self._live):
            self._grow(max(2 * len(self._live), highest + 1))
        self._live[ids], self._list_of[ids] = True, lists
        self.later += int(np.count_nonzero(ids > self.notes["last"]))
        self._packed = None
        self._count += len(ids)

    def _grow(self, size: int) -> None:
        self._live, self._list_of = grown(self._live, size), grown(self._list_of, size)

    def _live_bits(self) -> np.ndarray | None:
        """The bitmap of the live ids; None where no id is dead."""
        if self._packed is None and self._dead:
            self._packed = np.packbits(self._live, bitorder="little")
        return self._packed if self._dead else None

    def _allowed(self, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bitmap of these ids, and whether a list holds any of them, bool (nlist,)."""
        last = self._filtered
        if last is None or last[0] is not allowed or allowed.flags.writeable:
            mask = np.zeros_like(self._live)
            mask[allowed] = True
            held = np.bincount(self._list_of[allowed], minlength=self.lists) > 0
            last = self._filtered = allowed, (np.packbits(mask, bitorder="little"), held)
        return last[1]
