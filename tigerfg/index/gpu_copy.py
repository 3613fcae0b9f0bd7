"""The copy of a catalogue on GPUs, as long as there is one: made when it is needed, given up."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from tigerfg.index.flat import FlatIndex
from tigerfg.index.gpu import AUTO, REQUIRE, GpuError, Gpus, GpuSettings
from tigerfg.index.gpu_index import GpuIndex
from tigerfg.index.ivf import IvfIndex
from tigerfg.index.store import Store

logger = logging.getLogger("tigerfg")


class GpuCopy:
    """Not thread-safe: called under the collection's lock.

    Raises:
        CatalogError: a GPU is required, and there is none.
    """

    def __init__(self, store: Store, settings: GpuSettings) -> None:
        self._store, self._settings = store, settings
        self._gpus: Gpus | None = settings.find() if settings.use == REQUIRE else None
        self._looked = settings.use != AUTO  # when they are first needed, not on opening
        self._index: GpuIndex | None = None

    @property
    def notes(self) -> dict[str, Any] | None:
        """See `GpuIndex.notes`; None where there is no copy now."""
        return None if self._index is None else self._index.notes

    def search(
        self,
        cpu: FlatIndex | IvfIndex,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """As `GpuIndex.search`, at the store's state; call inside a snapshot. None: there are no
        GPUs, or they have failed: they are left for good then, unless they are required.

        Args:
            cpu: the index on the CPU, at the store's state.

        Raises:
            CatalogError: a GPU is required, and the vectors do not fit or it fails.
        """
        if not self._looked:
            self._gpus, self._looked = self._settings.find(), True
        if self._gpus is None:
            return None
        try:
            return self._current(self._gpus, cpu).search(queries, k, allowed)
        except GpuError as error:
            self.leave()
            if self._settings.use == REQUIRE:
                raise
            logger.warning("%s; searching on the CPU", error)
            self._gpus = None
            return None

    def leave(self) -> None:
        """Give the copy up; the next search makes another."""
        index, self._index = self._index, None
        if index is not None:
            index.close()

    def _current(self, gpus: Gpus, cpu: FlatIndex | IvfIndex) -> GpuIndex:
        """The copy at the store's state, perhaps a new one."""
        if self._index is not None and self._index.outdated:
            self.leave()
        # Held here meanwhile: one that is interrupted in the middle of a change is made anew.
        index, self._index = self._index, None
        if index is None:
            target, replicate = self._store.meta.target_recall, self._settings.replicate
            index = GpuIndex(gpus, self._store, cpu, target, replicate)
        else:
            index.sync(cpu)
        self._index = index
        return index
