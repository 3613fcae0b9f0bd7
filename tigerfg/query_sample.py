"""Sample queries: what a catalogue's index is tuned with."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.errors import InputError
from tigerfg.records import Query, Rejected

if TYPE_CHECKING:
    from tigerfg.encoder import Encoder

MOST = 300  # used: more hardly say more about the recall, and make building slower
UNIT = 0.01  # a length may be so far from 1

logger = logging.getLogger("tigerfg")


def query_embeddings(
    queries: Iterable[Query | Mapping[str, Any] | Rejected] | np.ndarray,
    encoder: Callable[[], Encoder],
    embedding_dim: int,
) -> np.ndarray:
    """Embeddings float32 (Q, E) of sample queries, at most MOST of them, evenly taken.

    Queries that cannot be used are left out with a warning.

    Args:
        queries: `Query` or dict, as `tigerfg.catalog.read_queries` gives them, or embeddings
            (Q, E) of unit length. None of them: Q = 0.
        encoder: gives the model's encoder; called only if there is a photo to encode.

    Raises:
        InputError: queries were given and none can be used, or the embeddings are not of that
            shape and length.
    """
    if isinstance(queries, np.ndarray):
        return _evenly(unit_vectors(queries, "queries", embedding_dim))
    single = isinstance(queries, (str, bytes, Mapping, Query, os.PathLike))
    if single or not isinstance(queries, Iterable):
        raise InputError("queries: give a list of Query, or an array of embeddings (Q, E)")
    chosen = _evenly(list(queries))
    good = _encoded(chosen, encoder)
    if chosen and not good:
        raise InputError(f"queries: none of {len(chosen)} can be used; the log says why")
    return np.array(good, np.float32).reshape(-1, embedding_dim)


def _encoded(chosen: list[Any], encoder: Callable[[], Encoder]) -> list[np.ndarray]:
    """Embeddings of those that can be used; of the others the log says why."""
    usable: list[Query] = []
    for query in chosen:
        if isinstance(query, Rejected):
            logger.warning("sample query left out: %s", query)
            continue
        try:
            usable.append(query if isinstance(query, Query) else Query.from_dict(query))
        except InputError as error:
            logger.warning("sample query left out: %s", error)
    if not usable:
        return []
    results = encoder().try_queries([(query.image, query.box) for query in usable])
    good = []
    for query, result in zip(usable, results, strict=True):
        if isinstance(result, InputError):
            logger.warning("sample query %r left out: %s", query.query_id, result)
        else:
            good.append(result)
    return good


def unit_vectors(values: Any, name: str, embedding_dim: int) -> np.ndarray:
    """Embeddings as float32 (Q, E); InputError if they are not of that shape or of unit length."""
    try:
        embeddings = np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise InputError(f"{name}: give an array ({embedding_dim} numbers a row)") from error
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_dim:
        raise InputError(f"{name} of shape {embeddings.shape}: give (Q, {embedding_dim})")
    if embeddings.dtype.kind not in "fiu":
        raise InputError(f"{name} of type {embeddings.dtype}: give float32")
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < UNIT))  # NaN is wrong as well
    if len(wrong):
        raise InputError(
            f"{name}: row {wrong[0]} has length {lengths[wrong[0]]:.3g}; divide by the length"
        )
    return embeddings.astype(np.float32)


def _evenly(values: Any) -> Any:
    return values[:: -(-len(values) // MOST) or 1]
