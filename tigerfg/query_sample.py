"""Sample queries: what a catalogue's index is tuned with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.errors import InputError
from tigerfg.records import Query, Rejected

if TYPE_CHECKING:
    from tigerfg.encoder import Encoder

MOST = 1000  # used: more say no more about the recall, and make building slower

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
            (Q, E) of unit length.
        encoder: gives the model's encoder; called only if there is a photo to encode.

    Raises:
        InputError: none of the queries can be used, or the embeddings are not of that shape.
    """
    if isinstance(queries, np.ndarray):
        if queries.ndim != 2 or queries.shape[1] != embedding_dim:
            raise InputError(f"queries of shape {queries.shape}: give (Q, {embedding_dim})")
        if not np.isfinite(queries).all():
            raise InputError("queries hold numbers that are not finite")
        return _evenly(queries.astype(np.float32))
    if isinstance(queries, (str, bytes, Mapping)):
        raise InputError("queries is one thing: give a list of Query, or an array of embeddings")
    given = [q for q in queries if not isinstance(q, Rejected)]
    if not given:
        return np.zeros((0, embedding_dim), np.float32)
    chosen = [q if isinstance(q, Query) else Query.from_dict(q) for q in _evenly(given)]
    results = encoder().try_queries([(query.image, query.box) for query in chosen])
    for query, result in zip(chosen, results, strict=True):
        if isinstance(result, InputError):
            logger.warning("sample query %r left out: %s", query.query_id, result)
    good = [result for result in results if not isinstance(result, InputError)]
    if not good:
        raise InputError(f"queries: none of {len(chosen)} can be used; the log says why")
    return np.stack(good)


def _evenly(values: Any) -> Any:
    return values[:: -(-len(values) // MOST) or 1]
