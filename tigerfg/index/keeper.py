"""The index of a collection: which one it is, when another is built, and its files."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from functools import partial

import numpy as np

from tigerfg.errors import InputError
from tigerfg.index import flat, ivf, later
from tigerfg.index.build import build
from tigerfg.index.derived import discard_newer_index, saved_number
from tigerfg.index.factory import list_count_of, require_ivf
from tigerfg.index.flat import FlatIndex
from tigerfg.index.gpu import GpuSettings
from tigerfg.index.gpu_copy import GpuCopy
from tigerfg.index.index_files import FILES, identity
from tigerfg.index.index_stats import IndexStats, stats_of
from tigerfg.index.ivf import IvfIndex
from tigerfg.index.plan import AUTO, FLAT, FLAT_MOST, IndexSettings
from tigerfg.index.ranking import NEAREST
from tigerfg.index.store import Store
from tigerfg.index.vectors import discard_newer_vectors

TRAINING_LIST = 39  # items a list from which an index that was asked for by name is built
MOST_CHANGED = 1.0  # added to or removed from what it was trained on, as a share of that
DRIFT, DRIFTED = 1.5, 0.2  # lists this much less even than when trained, and that much changed
SHRUNK = 0.8  # of the items up to which auto searches exactly: then it does again
WORN = 0.05  # share of a reader's rows in its own memory or removed: it looks for a newer index
MOST_SAVING = 600.0  # seconds that the end of the process waits for an index file

_KEEPERS: weakref.WeakSet[IndexKeeper] = weakref.WeakSet()
_ENDING = threading.Event()

logger = logging.getLogger("tigerfg")


class IndexKeeper:
    """Not thread-safe but for `build`: the others are called under ``lock``.

    Args:
        store: of the collection. lock: the collection's; a build takes it to put its result in.
        gpu: whether searches go to GPUs.

    Raises:
        CatalogError: a GPU is required, and there is none.
    """

    def __init__(self, store: Store, lock: threading.RLock, gpu: GpuSettings) -> None:
        self._store, self._lock = store, lock
        if not store.read_only:
            for name in FILES:
                discard_newer_index(store.path / name, store)
            discard_newer_vectors(store)
        self._gpu_copy = GpuCopy(store, gpu)
        self._index: FlatIndex | IvfIndex | None = None
        self._building = threading.Lock()
        self._builder: threading.Thread | None = None
        # ids of filters that the index has, by the arrays' own ids
        self._held: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
        self._refused: str | None = None  # a factory string that failed: not tried again by itself
        self._retired = False
        # of a reader's index, and the last one looked at: see `_followed`
        self._file: tuple[int, ...] | None = None
        self._seen: tuple[int, ...] | None = None
        self._saving = threading.Lock()
        self._builds: int | None = None  # the thread that builds
        _KEEPERS.add(self)
        self._lists: dict[str, int] = {}  # inverted lists by factory string

    def current(self) -> FlatIndex | IvfIndex:
        """The index at the store's state; call inside a snapshot."""
        # Held here meanwhile: one that is interrupted in the middle of a change is opened anew.
        index, self._index = self._index, None
        if index is not None and self._store.read_only:
            index = self._followed(index)
        if index is None:
            self._file = self._seen = identity(self._store.path / ivf.INDEX_FILE)
            index = self._opened()
        else:
            index.sync()
        self._index = index
        return index

    def _opened(self) -> FlatIndex | IvfIndex:
        """The index as the files have it, unless another has been asked for and that is none."""
        meta = self._store.meta
        index = self._ivf() if meta.index != FLAT else None
        if index is not None and self._of_others(index):
            with contextlib.suppress(InputError):  # too small a budget: what is there goes on
                if meta.settings.choose(len(index), meta.embedding_dim) == FLAT:
                    index = None
        return index or FlatIndex(self._store)

    def _ivf(self) -> IvfIndex | None:
        """As its file has it; None where there is no usable one."""
        index = IvfIndex.open(self._store)
        if index is not None:
            index.compared = later.noted(self._store, index)
        return index

    def _of_others(self, index: IvfIndex) -> bool:
        """Whether an index was built for other settings, or before they were noted."""
        return index.notes.get("settings") != vars(self._store.meta.settings)  # at every search

    def _followed(self, index: FlatIndex | IvfIndex) -> FlatIndex | IvfIndex:
        """A reader's index, or what the writer has saved in its place: for other settings, or any
        where its own has worn."""
        now = identity(self._store.path / ivf.INDEX_FILE)
        worn = not isinstance(index, IvfIndex) or index.worn >= WORN or later.is_due(index)
        if now == self._file or (now == self._seen and not worn):
            return index
        self._seen, before = now, self._store.meta.settings
        self._store.read_meta()
        if self._store.meta.settings != before:
            self._file = now
            self._gpu_copy.leave()
            return self._opened()
        if worn:
            self._file = now
            return self._opened() if now is None else self._ivf() or index
        return index

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `FlatIndex.search`, by the index or its copy on GPUs, at the store's state; call
        inside a snapshot.

        Raises:
            CatalogError: a GPU is required, and the vectors do not fit or it fails; an allowed
                item is lost.
        """
        index = self.current()
        if allowed is not None and self._held.get(id(allowed)) is not allowed:
            if not (held := index.holds(allowed)).all():
                raise self._store.damaged(int(allowed[~held][0]), "vector")
            self._held[id(allowed)] = allowed
        if len(index) > FLAT_MOST:
            found = self._gpu_copy.search(index, queries, k, allowed)
            if found is not None:
                return found
        return index.search(queries, k, allowed)

    def due(self) -> str | None:
        """What should replace the current index: "flat" or a factory string; None: nothing."""
        index, meta = self._index, self._store.meta
        if index is None or self._store.read_only:
            return None
        try:
            factory = meta.settings.choose(len(index), meta.embedding_dim)
            if factory == FLAT:
                few = len(index) < SHRUNK * FLAT_MOST
                return FLAT if few and isinstance(index, IvfIndex) else None
            if factory == self._refused:
                return None
            if isinstance(index, FlatIndex):
                enough = meta.index == AUTO or len(index) >= TRAINING_LIST * self._list_count(
                    factory
                )
                return factory if enough else None
        except InputError as error:
            if self._refused is None:
                logger.warning("%s stays with exact search: %s", self._store.path, error)
            self._refused = meta.index
            return None
        if self._of_others(index):
            return factory
        changed = index.changed  # asked at every search: the lists are counted only if it matters
        worn = changed > MOST_CHANGED or (changed > DRIFTED and index.drift > DRIFT)
        if worn or index.worse:
            return factory
        return None

    def maintain(self) -> None:
        """Start building in the background if that is due."""
        if self._retired or (self._builder is not None and self._builder.is_alive()):
            return
        index, asked = self._index, self._store.meta.settings
        if factory := self.due():
            work = self._try_build, (factory, asked, index)
        elif isinstance(index, IvfIndex) and not self._store.read_only and later.is_due(index):
            work = self._try_compare, (index,)
        else:
            return
        builder = threading.Thread(target=work[0], args=work[1], name="tigerfg-index", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread is to be had: the next call tries
            builder.start()
            self._builder = builder

    def build(
        self,
        factory: str,
        asked: IndexSettings,
        queries: np.ndarray | None = None,
        new: bool = False,
        instead_of: FlatIndex | IvfIndex | None = None,
    ) -> None:
        """Build an index while searches and writes go on, then put it in and save it. "flat":
        search exactly from now on.

        Args:
            asked: the settings that chose the factory. The index is dropped if the catalogue's are
                others by then, unless these are new.
            queries: in place of the kept ones. These, and new settings, are kept when the index is
                there.
            instead_of: nothing is built where this is not the index any more.

        Raises:
            InputError: see `build.build`.
        """
        if factory == FLAT:
            self._become_exact(asked, queries, new)
            return
        path = self._store.path
        with self._building, contextlib.closing(Store.open(path, read_only=True)) as store:
            with self._lock:
                if instead_of is not None and self._index is not instead_of:
                    return
            self._builds = threading.get_ident()
            self._store.require_place("build an index")
            with store.snapshot():
                built = build(store, factory, asked, queries)
            with self._lock:
                if not new and asked != self._store.meta.settings:
                    return
                self.keep(queries, asked if new else None)
                self._gpu_copy.leave()  # lists of what the index was made for before
                with self._store.snapshot():
                    built.attach(self._store)
                    built.sync()
                    self._index = built
                    self._save()
                    built.sweep()

    def keep(self, queries: np.ndarray | None, settings: IndexSettings | None) -> None:
        """See `Store.keep`; a copy on the GPUs, tuned with others, is given up."""
        if queries is None and settings is None:
            return
        self._store.keep(queries, settings)
        self._refused = None
        self._gpu_copy.leave()

    def _become_exact(self, asked: IndexSettings, queries: np.ndarray | None, new: bool) -> None:
        with self._building, self._lock:  # an index that is being built would come after it
            if not new and asked != self._store.meta.settings:
                return
            self.keep(queries, asked if new else None)
            with self._store.snapshot():
                if isinstance(self.current(), IvfIndex):
                    self._index = FlatIndex(self._store)
                    self._save()
                    self._index.sweep()

    @property
    def stale(self) -> bool:
        """Whether catching up from the index file would read over a twentieth of the vectors."""
        saved = max(saved_number(self._store.path / name, self._store) for name in FILES)
        return self._store.number - saved > len(self._store) // 20

    @property
    def unsaved(self) -> bool:
        """Whether over a twentieth of the vectors are in memory and could be in their file."""
        index = self._index
        return (
            isinstance(index, IvfIndex)
            and not self._store.read_only
            and index.rows.unsaved > len(index) // 20
        )

    def save(self) -> None:
        """Write the files of the current index and remove those of others."""
        if self._store.replaced:
            logger.warning("%s holds another catalogue by now: no index saved", self._store.path)
            return
        self._save()
        if self._index is not None and self._building.acquire(blocking=False):
            try:
                self._index.sweep()  # while none is built, whose vectors would go too
            finally:
                self._building.release()

    @property
    def building_here(self) -> bool:
        """Whether this very thread is in the middle of a build: a signal's handler asks."""
        return self._building.locked() and self._builds == threading.get_ident()

    def _save(self) -> None:
        if self._index is None or self._store.replaced:
            return
        index, self._index = self._index, None  # as in `current`
        with self._saving:
            saved = not _ENDING.is_set() and index.save()
        self._index = index
        own = ivf.INDEX_FILE if isinstance(index, IvfIndex) else flat.INDEX_FILE
        if saved:
            for name in set(FILES) - {own}:
                with contextlib.suppress(OSError):
                    (self._store.path / name).unlink(missing_ok=True)

    def stats(self) -> IndexStats:
        """What is in use; call inside a snapshot."""
        index, building = self.current(), self._building.locked()
        return stats_of(self._store.meta.index, index, building, self._gpu_copy.notes)

    def retire(self) -> None:
        """Build nothing in the background from now on, and leave the GPUs."""
        self._retired = True
        self._gpu_copy.leave()

    def wait(self) -> None:
        """Until no index is being built in the background; call without the lock."""
        if self._builder is not None:
            self._builder.join()

    def _list_count(self, factory: str) -> int:
        if factory not in self._lists:
            made = require_ivf(factory, self._store.meta.embedding_dim)
            self._lists[factory] = list_count_of(made)
        return self._lists[factory]

    def _try_compare(self, index: IvfIndex) -> None:
        """Build the index anew if it finds what came after its training less than the rest."""
        compared, settings = None, self._store.meta.settings
        try:
            with contextlib.closing(Store.open(self._store.path, read_only=True)) as store:
                self._store.require_place("measure the index")
                with store.snapshot():
                    asked = later.ask(store, index.notes["last"], lambda: self._retired)
            if asked is not None:
                compared = later.compare(partial(self._scores, index), asked)
        except Exception as error:
            logger.warning(
                "%s: what came later was not measured: %s", self._store.path, _reason(error)
            )
        with self._lock:
            if self._retired or self._index is not index:
                return
            index.compared, index.worse = index.later, compared is not None and compared.less
            if compared is None:
                return
            factory = self.due()
        logger.info(
            "%s: recall@10 %.3f for %d items that came after the training, %.3f for the others%s",
            self._store.path, compared.later, index.later, compared.before,
            ": built anew" if compared.less else "",
        )  # fmt: skip
        if not compared.less:
            later.note(self._store, index)
        elif factory is not None:
            self._try_build(factory, settings, index)

    def _scores(self, index: IvfIndex, queries: np.ndarray) -> np.ndarray | None:
        """Of the results of an index, None where it is not that of the collection any more."""
        with self._lock:
            if self._retired or self._index is not index:
                return None
            with self._store.snapshot():
                return index.search(queries, NEAREST)[0]

    def _try_build(
        self, factory: str, asked: IndexSettings, index: FlatIndex | IvfIndex | None
    ) -> None:
        try:
            self.build(factory, asked, instead_of=index)
        except Exception as error:  # faiss's RuntimeError, no memory: exact search goes on
            self._refused = factory
            if not self._retired:
                logger.warning(
                    "%s: no %s index was built: %s", self._store.path, factory, _reason(error)
                )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


@atexit.register
def _hold_saves() -> None:
    """faiss writes through a function of Python's, which must not be called while that ends."""
    _ENDING.set()
    for keeper in list(_KEEPERS):
        if keeper._saving.acquire(timeout=MOST_SAVING):
            keeper._saving.release()


os.register_at_fork(after_in_child=_KEEPERS.clear)  # what they save, a thread of the parent does
