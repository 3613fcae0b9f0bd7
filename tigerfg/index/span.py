"""SVD: an index in the directions that embeddings fill, its centres in still fewer.

Embeddings fill a part of their dimensions: of `tiny`'s 256, 128 hold 99.95 % of the squares. With
"SVD" before a factory string, vectors are projected onto so many principal directions, through the
origin, as inner products ask for (faiss's PCA moves it), and turned at random, so that no dimension
varies more than another: fast-scan has one scale of 8 bits for all of them. The lists are chosen by
the few leading directions, whose centres are trained and compared in a fraction of the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tigerfg.index.derived import import_faiss
from tigerfg.index.factory import Spanned, require_ivf, spanned

KEPT = 0.999  # of the squares, for codes: what is lost, the stored vectors make good
KEPT_BY_CENTRES = 0.95
STEP = 16  # dimensions come in multiples of it
SEED = 7


def trained(factory: str, sample: np.ndarray) -> tuple[Any, str]:
    """An empty index, trained, and its factory string with no dimensions left open.

    Args:
        sample: float32 (N, E), unit length.

    Raises:
        InputError: see `require_ivf`.
        RuntimeError: faiss's, if there are too few vectors.
    """
    parts = spanned(factory)
    if parts is not None:
        return _spanning(parts, sample)
    index = require_ivf(factory, sample.shape[1])
    _quiet(index)
    index.train(sample)
    return index, factory


def _spanning(parts: Spanned, sample: np.ndarray) -> tuple[Any, str]:
    faiss = import_faiss()
    directions, held = _directions(sample)
    parts = parts._replace(dims=parts.dims or _dims(held, KEPT))
    index = require_ivf(str(parts), sample.shape[1])
    _quiet(index)
    turned = np.random.default_rng(SEED).standard_normal((parts.dims, parts.dims))
    turned = np.linalg.qr(turned)[0]
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    _fill(transform, turned @ directions[: parts.dims])
    ivf = faiss.extract_index_ivf(index)
    narrow = faiss.LinearTransform(ivf.d, min(_dims(held, KEPT_BY_CENTRES), ivf.d), False)
    _fill(narrow, turned.T[: narrow.d_out])
    inner = transform.apply(sample)
    centres = _centres(narrow.apply(inner), parts, ivf.cp)
    quantizer = faiss.IndexPreTransform(narrow, centres)
    replaced, ivf.own_fields = ivf.quantizer, False
    replaced.thisown = True
    ivf.quantizer = quantizer
    ivf.train(inner)
    index.is_trained = True
    whole = faiss.deserialize_index(faiss.serialize_index(index))  # parts that are faiss's own
    return whole, str(parts)


def _quiet(index: Any) -> None:
    """Keep faiss from writing to stderr that there are few vectors a centre: recall is measured."""
    faiss = import_faiss()
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    ivf.cp.min_points_per_centroid = 1
    if hasattr(ivf, "pq"):
        ivf.pq.cp.min_points_per_centroid = 1


def _directions(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions (E, E), the longest first, and what the first n hold of all squares."""
    squares, vectors = np.linalg.eigh((sample.T @ sample).astype(np.float64))
    squares = np.maximum(squares[::-1], 0)
    return vectors.T[::-1], np.cumsum(squares) / squares.sum()


def _dims(held: np.ndarray, kept: float) -> int:
    """So many directions hold this share."""
    wanted = int(np.searchsorted(held, kept)) + 1
    return min(-(-wanted // STEP) * STEP, len(held))


def _fill(transform: Any, matrix: np.ndarray) -> None:
    faiss = import_faiss()
    faiss.copy_array_to_vector(matrix.astype(np.float32).ravel(), transform.A)
    transform.is_trained = True
    transform.set_is_orthonormal()


def _centres(vectors: np.ndarray, parts: Spanned, parameters: Any) -> Any:
    faiss = import_faiss()
    dim = vectors.shape[1]
    means = faiss.Clustering(dim, parts.lists, parameters)
    means.train(vectors, faiss.IndexFlatIP(dim))
    kind = parts.graph.removeprefix("_") or "Flat"
    index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    index.add(faiss.vector_to_array(means.centroids).reshape(-1, dim))
    return index
