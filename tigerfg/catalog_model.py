"""The model that a catalogue was made with: recorded by name and fingerprint, checked later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tigerfg.bundle import Bundle
from tigerfg.errors import BundleError, CatalogError, InputError
from tigerfg.index.gpu import GpuSettings
from tigerfg.index.places import Place, open_collection

if TYPE_CHECKING:
    from tigerfg.index.collection import Collection
    from tigerfg.index.milvus import MilvusCollection

Model = str | os.PathLike | Bundle


def open_with_model(
    place: Place, model: Model | None, read_only: bool, gpu: GpuSettings
) -> tuple[Collection | MilvusCollection, Bundle]:
    """A catalogue, and the bundle it was made with.

    Args:
        model: None for the recorded one, else that same model, wherever it lies now.

    Raises:
        CatalogError, BundleError: see `Searcher.open`; nothing stays open.
    """
    collection = open_collection(place, read_only, gpu)
    try:
        return collection, _matching(collection, model)
    except BaseException:
        collection.close()
        raise


def as_bundle(model: Model) -> Bundle:
    """A bundle from its directory or name, or one that is open.

    Raises:
        BundleError: it cannot be used. InputError: it is none.
    """
    if isinstance(model, (str, os.PathLike)):
        return Bundle.open(model)
    if not hasattr(model, "fingerprint"):
        raise InputError(f"model {model!r}: give a bundle, its directory or a name")
    return model


def recorded_name(model: Model | None, bundle: Bundle) -> str:
    """What a catalogue records: a directory's absolute path, or the name of a shipped bundle."""
    path = bundle.path.absolute()
    if isinstance(model, (str, os.PathLike)) and Path(model).absolute() != path:
        return os.fspath(model)
    return str(path)


def _matching(collection: Collection | MilvusCollection, model: Model | None) -> Bundle:
    meta = collection.meta
    try:
        bundle = as_bundle(meta.model if model is None else model)
    except BundleError as error:
        if model is not None:
            raise
        raise BundleError(
            f"{error}; {collection.path} was made with it: if it lies elsewhere now, "
            "say so with model= (--model)"
        ) from error
    if bundle.fingerprint != meta.fingerprint:
        raise CatalogError(
            f"{collection.path} was made with the model {meta.model} "
            f"({meta.fingerprint[:12]}), not with {recorded_name(model, bundle)} "
            f"({bundle.fingerprint[:12]}): open it with that model, or index again"
        )
    return bundle
