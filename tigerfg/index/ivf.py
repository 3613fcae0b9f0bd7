"""Approximate search: an IVF index of faiss that follows the store, refined by the stored vectors.

faiss gives candidates from compressed codes; their float16 vectors, mapped from the disk, give the
scores and the order. Removed items are tombstones: a selector keeps them out before ranking, so
that k results come back, until the index is built anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tigerfg.errors import InputError
from tigerfg.index.derived import Loaded, import_faiss, load_index, save_index
from tigerfg.index.probing import MOST, Holding, Probing
from tigerfg.index.refine import refined
from tigerfg.index.store import Store
from tigerfg.index.vectors import VectorRows

INDEX_FILE = "ivf.index"
NEIGHBOURS = 10  # results for which recall is measured and the number of candidates tuned
EXACT_MOST = 4096  # allowed items up to which their vectors are simply compared
CANDIDATES = 5000  # a query; more only if k is larger

logger = logging.getLogger("tigerfg")


class IvfIndex:
    """A trained IVF index with its tuned nprobe.

    Not thread-safe; create it and call `sync` and `search` inside one ``store.snapshot()``.

    Attributes:
        rows: the stored vectors.
        notes: how it was built: factory, nprobe (lists a query on average), margins (see
            `probing`), factor (candidates a wanted result, `NEIGHBOURS` at least), trained (items
            then), target_recall, and the measured curve.
    """

    def __init__(self, store: Store, rows: VectorRows, loaded: Loaded) -> None:
        self._faiss = import_faiss()
        self._store, self.rows = store, rows
        self._index, self._number, self.notes = loaded
        self._ivf = self._faiss.extract_index_ivf(self._index)
        self._transforms = transforms_of(self._index)
        self._probing = Probing(self._faiss, self._ivf, self.notes["margins"])
        self._parameters: tuple[Any, ...] | None = None  # lists, bitmap, faiss's
        self._live = np.zeros(0, bool)  # by internal id
        self._list_of = np.zeros(0, np.min_scalar_type(self._ivf.nlist - 1))  # by internal id
        self._packed: np.ndarray | None = None  # bitmap of the live ids, when it is needed
        self._filtered: tuple[np.ndarray, _Selection] | None = None  # the last filter's
        self._count = self._dead = 0
        for number, ids in _lists_of(self._faiss, self._ivf):
            self._mark(ids, number)
        self.sync()

    @classmethod
    def open(cls, store: Store) -> IvfIndex | None:
        """From the catalogue's files; None where there is no usable one."""
        found = load_index(store.path / INDEX_FILE, store)
        return None if found is None else cls(store, VectorRows(store), found)

    def __len__(self) -> int:
        return self._count

    @property
    def lists(self) -> int:
        """Inverted lists."""
        return self._ivf.nlist

    @property
    def changed(self) -> float:
        """Items added to and removed from what the index was trained on, as a share of that."""
        return (2 * len(self.rows) - self._count - self.notes["trained"]) / self.notes["trained"]

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
        """Catch up with the store; interrupted, it goes on where it was at the next call."""
        self.rows.sync()
        number = self._store.number
        if number == self._number:
            return
        removed = self._store.removed_since(self._number)
        removed = removed[removed < len(self._live)]
        removed = removed[self._live[removed]]
        self._live[removed] = False
        self._packed = None
        self._count -= len(removed)
        self._dead += len(removed)
        for ids, vectors in self._store.vectors_since(self._number):
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            self._index.add_with_ids(vectors, ids)
            self._mark(ids, self._ivf.quantizer.assign(self._transformed(vectors), 1)[:, 0])
            self._number = int(ids[-1])
        self._number = number

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
            return _best(
                queries @ self.rows.get(allowed).T, allowed[None].repeat(len(queries), 0), k
            )
        tuned = self.notes["factor"] * max(k, NEIGHBOURS)
        wanted = min(total, max(k, min(tuned, CANDIDATES)))
        selection = self._selection(allowed)
        # as many vectors that may come back as without a filter
        lists = self.lists if selection.among is None else selection.among.count
        nprobe = self.notes["nprobe"] * (self._count / self.lists) / (total / lists)
        nprobe = min(max(nprobe, 1), lists)
        while True:
            ids = self._candidates(queries, wanted, nprobe, selection)
            if nprobe == lists or (ids[:, k - 1] >= 0).all():
                break
            nprobe = min(MOST * nprobe, lists)
        return refined(self.rows, queries, ids, k)

    def purge(self) -> None:
        """Take the tombstones out of the inverted lists."""
        if self._dead:
            held = np.concatenate([ids for _, ids in _lists_of(self._faiss, self._ivf)])
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

    def _transformed(self, vectors: np.ndarray) -> np.ndarray:
        for transform in self._transforms:
            vectors = transform.apply(vectors)
        return vectors

    def _candidates(
        self, queries: np.ndarray, wanted: int, nprobe: float, selection: _Selection
    ) -> np.ndarray:
        """Ids int64 (B, wanted) by their codes, -1 where the probed lists hold fewer."""
        queries, bits = self._transformed(queries), selection.bits
        lists, scores = self._probing.choose(queries, nprobe, selection.among)
        last = self._parameters  # again where nothing changed: making them takes a while
        if last is None or last[0] != lists.shape[1] or last[1] is not bits:
            options = {} if bits is None else {"sel": self._faiss.IDSelectorBitmap(bits)}
            parameters = self._faiss.SearchParametersIVF(nprobe=lists.shape[1], **options)
            last = self._parameters = lists.shape[1], bits, parameters
        found = np.empty((len(queries), wanted), np.int64)
        estimates = np.empty(found.shape, np.float32)
        pointer = self._faiss.swig_ptr
        # not `search_preassigned`: that takes no parameters
        self._ivf.search_preassigned_c(
            len(queries),
            pointer(queries),
            wanted,
            pointer(lists),
            pointer(scores),
            pointer(estimates),
            pointer(found),
            False,
            last[2],
        )
        return found

    def _mark(self, ids: np.ndarray, lists: np.ndarray | int) -> None:
        if len(ids) and (highest := int(ids.max())) >= len(self._live):
            size = max(2 * len(self._live), highest + 1)
            self._live, self._list_of = _grown(self._live, size), _grown(self._list_of, size)
        self._live[ids], self._list_of[ids] = True, lists
        self._packed = None
        self._count += len(ids)

    def _selection(self, allowed: np.ndarray | None) -> _Selection:
        """What may come back: the live ids, or the allowed ones."""
        if allowed is None:
            if self._packed is None and self._dead:
                self._packed = np.packbits(self._live, bitorder="little")
            return _Selection(self._packed if self._dead else None, None)
        last = self._filtered
        if last is None or last[0] is not allowed or allowed.flags.writeable:
            mask = np.zeros_like(self._live)
            mask[allowed] = True
            held = np.bincount(self._list_of[allowed], minlength=self.lists)
            bits = np.packbits(mask, bitorder="little")
            last = self._filtered = allowed, _Selection(bits, self._probing.holding(held))
        return last[1]


class _Selection(NamedTuple):
    """Items that may come back: a bitmap of their ids and their lists, None for all."""

    bits: np.ndarray | None
    among: Holding | None


def _grown(values: np.ndarray, size: int) -> np.ndarray:
    grown = np.zeros(size, values.dtype)
    grown[: len(values)] = values
    return grown


def transforms_of(index: Any) -> list[Any]:
    """The linear transforms of faiss before the lists, in order."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain = (index.chain.at(place) for place in range(index.chain.size()))
    return [faiss.downcast_VectorTransform(transform) for transform in chain]


def require_ivf(factory: str, dim: int) -> Any:
    """An empty inner-product index by its factory string.

    Raises:
        InputError: faiss does not know it, or it is no IVF index.
    """
    faiss = import_faiss()
    hint = "give one with inverted lists, such as IVF4096,PQ64 (refinement comes by itself)"
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).split("Error: ")[-1].split("\n")[0]
        raise InputError(f"index {factory!r}: faiss refuses it ({reason}); {hint}") from error
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    if not isinstance(inner, faiss.IndexIVF):
        raise InputError(f"index {factory!r} is no IVF index: {hint}")
    if isinstance(inner, faiss.IndexIVFPQ):
        inner.do_polysemous_training = False  # most of the training's time, for a search not used
    return index


def list_count_of(index: Any) -> int:
    """Inverted lists of an index that `require_ivf` made."""
    return import_faiss().extract_index_ivf(index).nlist


def _lists_of(faiss: Any, ivf: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Every list that is not empty, and the ids in it."""
    lists = ivf.invlists
    for number in range(ivf.nlist):
        if size := lists.list_size(number):
            yield number, faiss.rev_swig_ptr(lists.get_ids(number), size).copy()


def _best(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of every row, best first, equal scores by id."""
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
