"""The GPUs that faiss searches on: whether there are any, their resources, indexes on them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tigerfg.errors import CatalogError, InputError
from tigerfg.index.derived import import_faiss
from tigerfg.settings import whole_number

AUTO, REQUIRE, OFF = "auto", "require", "off"
MOST = 2048  # candidates, and probed lists, of one search: faiss's limit on a GPU
# Bytes of a code, and dimensions a byte, that faiss has kernels for
_CODES = (96, 64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1)
_DIMENSIONS = (4, 6, 8, 10, 12, 16, 20, 24, 28, 32)

logger = logging.getLogger("tigerfg")


class GpuError(CatalogError):
    """A GPU refuses, fails, or has too little memory."""


def reason_of(error: Exception) -> str:
    """What an exception of faiss's says, in one line."""
    return str(error).split("Error: ")[-1].split("\n")[0] or type(error).__name__


@contextmanager
def gpu_errors(path: Path) -> Iterator[None]:
    """What faiss raises inside, as GpuError; path: of the catalogue."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise GpuError(f"{path} cannot be searched on a GPU: {reason_of(error)}") from error


@dataclass(frozen=True)
class GpuSettings:
    """Whether a catalogue is searched on GPUs.

    Attributes:
        use: "auto": where faiss has a GPU part and finds a GPU, as long as that does not fail, else
            on the CPU, with a line in the log; "require": an error in place of the CPU; "off".
        temporary: bytes of each GPU's memory for results on their way.
        replicate: every GPU holds all vectors and takes a part of the queries; else every GPU holds
            a part of the vectors and takes all queries.

    Raises:
        InputError: a value cannot be used.
    """

    use: str = AUTO
    temporary: int = 512 << 20
    replicate: bool = False

    def __post_init__(self) -> None:
        if self.use not in (AUTO, REQUIRE, OFF):
            raise InputError(f"gpu {self.use!r}: give auto, require or off")
        object.__setattr__(self, "temporary", whole_number(self.temporary, "temporary", 0))

    def find(self) -> Gpus | None:
        """The GPUs, or None to search on the CPU.

        Raises:
            CatalogError: there is none that can be used, and one is required.
        """
        if self.use == OFF:
            return None
        faiss = import_faiss()
        why = None
        if not hasattr(faiss, "StandardGpuResources"):
            why = "this faiss has no GPU part: pip install 'tigerfg[gpu]'"
        elif not faiss.get_num_gpus():
            why = "faiss finds no GPU"
        if why is None:
            try:
                return FaissGpus(self.temporary)
            except (RuntimeError, MemoryError) as error:
                why = f"faiss cannot use one: {reason_of(error)}"
        if self.use == REQUIRE:
            raise CatalogError(f"a GPU is required for searching, and {why}")
        logger.info("searching on the CPU: %s", why)
        return None


class DeviceIndex(Protocol):
    """An inner-product index with inverted lists on one GPU; vectors float32 (n, E), ids int64."""

    nprobe: int

    def train(self, vectors: np.ndarray) -> None: ...

    def add_with_ids(self, vectors: np.ndarray, ids: np.ndarray) -> None: ...

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]: ...


class Gpus(Protocol):
    """What `GpuIndex` needs of GPUs: how many, and empty indexes on them for so many items."""

    count: int

    def lists(self, device: int, dim: int, lists: int, items: int) -> DeviceIndex:
        """Inverted lists of float16 vectors: exact scores."""
        ...

    def codes(self, device: int, dim: int, lists: int, items: int) -> DeviceIndex:
        """IVF-PQ of `code_bytes`: for what does not fit as float16."""
        ...


def code_bytes(dim: int) -> int:
    """Bytes of a product code: one for four dimensions, or as near as faiss can on a GPU."""
    return next((n for n in _CODES if dim % n == 0 and dim // n in _DIMENSIONS), 1)


class FaissGpus:
    """faiss's own, one resources object a GPU, shared by all indexes on it."""

    def __init__(self, temporary: int) -> None:
        self._faiss = import_faiss()
        self.count = self._faiss.get_num_gpus()
        self._resources = [self._faiss.StandardGpuResources() for _ in range(self.count)]
        for resources in self._resources:
            resources.setTempMemory(temporary)

    def lists(self, device: int, dim: int, lists: int, items: int) -> Any:
        faiss = self._faiss
        config = faiss.GpuIndexIVFScalarQuantizerConfig()
        config.device, config.use_cuvs = device, False  # cuVS has no float16 lists
        index = faiss.GpuIndexIVFScalarQuantizer(
            self._resources[device],
            dim,
            lists,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            False,
            config,
        )
        index.reserveMemory(items)  # else each list is moved six times while it grows
        return index

    def codes(self, device: int, dim: int, lists: int, items: int) -> Any:
        faiss = self._faiss
        config = faiss.GpuIndexIVFPQConfig()
        config.device, config.use_cuvs = device, False
        config.useFloat16LookupTables = True  # 56 codes a vector and more need it
        index = faiss.GpuIndexIVFPQ(
            self._resources[device],
            dim,
            lists,
            code_bytes(dim),
            8,
            faiss.METRIC_INNER_PRODUCT,
            config,
        )
        index.reserveMemory(items)
        return index
