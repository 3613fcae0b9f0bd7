"""Indexes of faiss by their factory strings: made, and taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tigerfg.errors import InputError
from tigerfg.index.derived import import_faiss


def transforms_of(index: Any) -> list[Any]:
    """The linear transforms of faiss before the lists, in order."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain = (index.chain.at(place) for place in range(index.chain.size()))
    return [faiss.downcast_VectorTransform(transform) for transform in chain]


def transformed(transforms: Sequence[Any], vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, E) as the lists have them, (N, D): behind the transforms, in order."""
    for transform in transforms:
        vectors = transform.apply(vectors)
    return vectors


def require_ivf(factory: str, dim: int) -> Any:
    """An empty inner-product index by its factory string.

    Raises:
        InputError: faiss does not know it, it is no IVF index, or faiss cannot keep removed items
            out of its results or compare all its centres.
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
    additive = (faiss.IndexIVFAdditiveQuantizer, faiss.IndexIVFAdditiveQuantizerFastScan)
    if isinstance(inner, additive):
        raise InputError(f"index {factory!r}: faiss cannot leave out items with its codes; {hint}")
    if isinstance(faiss.downcast_index(inner.quantizer), faiss.IndexIVF):
        raise InputError(f"index {factory!r}: its centres are never all compared; {hint}")
    if isinstance(inner, faiss.IndexIVFPQ):
        inner.do_polysemous_training = False  # most of the training's time, for a search not used
    return index


def list_count_of(index: Any) -> int:
    """Inverted lists of an index that `require_ivf` made."""
    return import_faiss().extract_index_ivf(index).nlist
