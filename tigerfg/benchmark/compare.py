"""Evaluations of the same data against each other, query by query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tigerfg.benchmark import bootstrap
from tigerfg.benchmark.evaluation import MEASURES, Comparison, Evaluation
from tigerfg.errors import InputError


def compare_all(results: Sequence[Evaluation]) -> int:
    """Set ``comparison`` of every evaluation against the first one of the same data.

    Returns:
        How many could be compared.

    Raises:
        InputError: none could, because no two are of the same data.
    """
    first: dict[str, Evaluation] = {}
    compared = 0
    for result in results:
        reference = first.setdefault(result.data_digest, result)
        if reference is not result:
            result.comparison = compare(reference, result)
            compared += 1
    if not compared:
        raise InputError(
            "nothing to compare: no two results are of the same items and queries; give two models "
            "(--model twice), two modes, or two results files of the same data"
        )
    return compared


def compare(reference: Evaluation, other: Evaluation) -> Comparison:
    """Paired tests of ``other`` against ``reference``, on the queries that both have answered.

    Raises:
        InputError: there is no such query.
    """
    rows = {query_id: row for row, query_id in enumerate(reference.answers.query_id)}
    pairs = [
        (rows[query_id], row)
        for row, query_id in enumerate(other.answers.query_id)
        if query_id in rows
    ]
    if not pairs:
        raise InputError(f"{other.data}: no query was answered in both evaluations")
    left, right = np.array(pairs).T
    first, second = reference.answers.values()[left], other.answers.values()[right]
    products = np.array(reference.answers.product)[left]
    found = bootstrap.paired_differences(first, second, products)
    return Comparison(
        against=f"{reference.conditions['model']} {reference.label}",
        queries=len(pairs),
        differences=None if found is None else dict(zip(MEASURES, found, strict=True)),
        mcnemar=bootstrap.mcnemar(first[:, 0], second[:, 0]),
    )
