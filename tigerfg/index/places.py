"""Where catalogues are: a directory of this machine, or a collection in Milvus."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tigerfg.errors import InputError
from tigerfg.index.collection import NO_GPU, Collection
from tigerfg.index.gpu import GpuSettings
from tigerfg.index.milvus_address import is_milvus

if TYPE_CHECKING:
    from tigerfg.index.milvus import MilvusCollection

Place = str | os.PathLike


def create_collection(place: Place, **made_with: Any) -> Collection | MilvusCollection:
    """See `Collection.create` and `MilvusCollection.create`."""
    return _kind(place).create(place, **made_with)


def open_collection(
    place: Place, read_only: bool = False, gpu: GpuSettings = NO_GPU
) -> Collection | MilvusCollection:
    """See `Collection.open` and `MilvusCollection.open`."""
    return _kind(place).open(place, read_only, gpu)


def holds_catalog(place: Place) -> bool:
    """Whether there is a catalogue."""
    return _kind(place).exists(place)


def _kind(place: Place) -> type[Collection] | type[MilvusCollection]:
    if is_milvus(place):
        from tigerfg.index.milvus import MilvusCollection

        return MilvusCollection
    if not isinstance(place, (str, os.PathLike)):
        raise InputError(f"path {place!r}: give a catalogue's directory or address")
    if isinstance(place, str) and "://" in place:
        raise InputError(f"catalogue {place!r}: give a directory, or an address milvus://...")
    return Collection
