"""`where` filters as SQL; what they mean is in `where`.

Every scalar of an item is one row of the table ``fields`` (key, value, id), which is its own index.
Names and values of items and filters only ever travel as bound parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tigerfg.errors import InputError
from tigerfg.index.where import Condition, Group, Scalar, joined, parse_filter

_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_MAX_PARAMETERS = 30_000  # SQLite binds at most 32,766


def compile_filter(where: Mapping[str, Any]) -> tuple[str, list[Scalar]]:
    """Compile a filter to an SQL expression over ``items.id`` and its bound parameters.

    Raises:
        InputError: see `parse_filter`; or too many values.
    """
    parameters: list[Scalar] = []
    sql = _compile(parse_filter(where), parameters)
    if len(parameters) > _MAX_PARAMETERS:
        raise InputError(
            f"where: {len(parameters)} names and values are too many, at most {_MAX_PARAMETERS}"
        )
    return sql, parameters


def _compile(term: Group | Condition, parameters: list[Scalar]) -> str:
    if isinstance(term, Condition):
        return _condition(term, parameters)
    parts = [_compile(part, parameters) for part in term.parts]
    return joined(parts, term.word.upper()) if parts else "1"


def _condition(term: Condition, parameters: list[Scalar]) -> str:
    """SQL of one condition; appends the field name and the operand's values."""
    name, operator, operand = term
    parameters.append(name)
    if operator == "$exists":
        return _membership("", negate=not operand)
    if operator in ("$in", "$nin"):
        parameters += operand
        marks = ", ".join("?" * len(operand))
        return _membership(f" AND value IN ({marks})", negate=operator == "$nin")
    parameters.append(operand)
    if operator in ("$eq", "$ne"):
        return _membership(" AND value = ?", negate=operator == "$ne")
    # SQLite orders every number before every text, and '' is the smallest text.
    kind = " AND value >= ''" if isinstance(operand, str) else " AND value < ''"
    return _membership(f" AND value {_COMPARISONS[operator]} ?{kind}", negate=False)


def _membership(condition: str, *, negate: bool) -> str:
    return f"items.id {'NOT ' if negate else ''}IN (SELECT id FROM fields WHERE key = ?{condition})"
