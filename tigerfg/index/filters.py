"""`where` filters in the operator style of MongoDB and Pinecone, evaluated by SQLite.

A filter is a mapping: field names to conditions, which all must hold.

    {"category": "Shoes", "price": {"$gte": 20, "$lt": 50}, "color": {"$in": ["Red", "Blue"]}}
    {"$or": [{"brand": "Nordvik"}, {"brand": {"$exists": False}}]}

Fields are ``item_id``, ``title``, ``category``, the attributes by their key and the extra fields by
their name; of equal names the first in this order counts. The rules:

- A field has one value (text, number, true/false) or several (a list): a condition holds when it
  holds for any of them. A missing field, null, an empty list and an empty title or category have
  none; only ``$ne``, ``$nin`` and ``{"$exists": False}`` match them. Objects inside objects cannot
  be filtered on, nor can fields whose name starts with ``$``.
- Text compares with text (by code point, case counts), numbers with numbers; true and false are the
  numbers 1 and 0. Stored text that is a plain decimal number ("70", "9.90") also counts as that
  number, so that catalogues from CSV can be filtered by price.

Every scalar of an item is one row of the table ``fields`` (key, value, id), which is its own index.
Names and values of items and filters only ever travel as bound parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tigerfg.errors import InputError

Scalar = str | int | float

_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_OPERATORS = ("$eq", "$ne", *_COMPARISONS, "$in", "$nin", "$exists")
_DECIMAL = re.compile(r"-?[0-9]{1,300}(\.[0-9]{1,300})?", re.ASCII)
_MAX_DEPTH = 32
_MAX_PARAMETERS = 30_000  # SQLite binds at most 32,766


def filter_fields(document: Mapping[str, Any]) -> dict[str, list[Scalar]]:
    """The values that filters see: field name to distinct scalars, from an item's JSON form."""
    extra = {
        key: value
        for key, value in document.items()
        if key not in ("attributes", "image", "description", "target_box")
    }
    own = {key: extra.pop(key, None) for key in ("item_id", "title", "category")}
    own = {key: value for key, value in own.items() if value}
    merged = {**extra, **(document.get("attributes") or {}), **own}
    fields: dict[str, list[Scalar]] = {}
    for key, value in merged.items():
        values = list(dict.fromkeys(_stored_values(value)))
        if values:
            fields[key] = values
    return fields


def compile_filter(where: Mapping[str, Any]) -> tuple[str, list[Scalar]]:
    """Compile a filter to an SQL expression over ``items.id`` and its bound parameters.

    Raises:
        InputError: no mapping, an unknown operator, or an operand of the wrong type.
    """
    parameters: list[Scalar] = []
    sql = _compile(where, parameters, 0)
    if len(parameters) > _MAX_PARAMETERS:
        raise InputError(
            f"where: {len(parameters)} names and values are too many, at most {_MAX_PARAMETERS}"
        )
    return sql, parameters


def _stored_values(value: Any) -> Iterator[Scalar]:
    """Scalars under which a JSON value is found."""
    for element in value if isinstance(value, list) else [value]:
        if isinstance(element, (str, int, float)):
            yield _scalar(element)
        if isinstance(element, str) and _DECIMAL.fullmatch(element):
            yield _scalar(float(element) if "." in element else int(element))


def _scalar(value: Scalar) -> Scalar:
    """A value as SQLite holds it: text, 64-bit integer or double."""
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return int(value)
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return value


def _compile(where: Any, parameters: list[Scalar], depth: int) -> str:
    if not isinstance(where, Mapping):
        raise InputError(f"where: {where!r} is no mapping of field names to conditions")
    if depth > _MAX_DEPTH:
        raise InputError(f"where: nested more than {_MAX_DEPTH} levels deep")
    terms = []
    for name, condition in where.items():
        if not isinstance(name, str):
            raise InputError(f"where: field name {name!r} is not text")
        _check_unicode(name, name)
        if name in ("$and", "$or"):
            if not isinstance(condition, (list, tuple)) or not condition:
                raise InputError(f"where: {name} takes a list of filters with at least one in it")
            parts = [_compile(part, parameters, depth + 1) for part in condition]
            terms.append(_join(parts, "AND" if name == "$and" else "OR"))
        elif name.startswith("$"):
            raise InputError(
                f"where: unknown operator {name!r} beside field names: use $and or $or"
            )
        else:
            operators = condition if isinstance(condition, Mapping) else {"$eq": condition}
            if not operators:
                raise InputError(f"where: field {name!r} has no condition")
            for operator, operand in operators.items():
                terms.append(_condition(name, operator, operand, parameters))
    return _join(terms, "AND") if terms else "1"


def _join(terms: list[str], word: str) -> str:
    """``(a AND b AND ...)`` as a balanced tree: SQLite limits the depth of an expression."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return f"({_join(terms[:middle], word)} {word} {_join(terms[middle:], word)})"


def _condition(name: str, operator: Any, operand: Any, parameters: list[Scalar]) -> str:
    """SQL of one operator on one field; appends the field name and the operand's values."""
    if operator == "$exists":
        if not isinstance(operand, bool):
            raise InputError(f"where: field {name!r}: $exists takes True or False")
        parameters.append(name)
        return _membership("", negate=not operand)
    if operator in ("$eq", "$ne"):
        parameters += [name, _operand(name, operator, operand)]
        return _membership(" AND value = ?", negate=operator == "$ne")
    if operator in ("$in", "$nin"):
        if isinstance(operand, (str, bytes, Mapping)) or not isinstance(operand, Iterable):
            raise InputError(f"where: field {name!r}: {operator} takes a list of values")
        values = [_operand(name, operator, value) for value in operand]
        parameters += [name, *values]
        marks = ", ".join("?" * len(values))
        return _membership(f" AND value IN ({marks})", negate=operator == "$nin")
    if operator in _COMPARISONS:
        value = _operand(name, operator, operand)
        parameters += [name, value]
        # SQLite orders every number before every text, and '' is the smallest text.
        kind = " AND value >= ''" if isinstance(value, str) else " AND value < ''"
        return _membership(f" AND value {_COMPARISONS[operator]} ?{kind}", negate=False)
    raise InputError(
        f"where: field {name!r}: unknown operator {operator!r}, use one of {', '.join(_OPERATORS)}"
    )


def _membership(condition: str, *, negate: bool) -> str:
    return f"items.id {'NOT ' if negate else ''}IN (SELECT id FROM fields WHERE key = ?{condition})"


def _operand(name: str, operator: Any, value: Any) -> Scalar:
    """A filter's value, checked; numpy scalars are taken as what they stand for."""
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None:
        raise InputError(f'where: field {name!r}: None has no equals, use {{"$exists": False}}')
    if not isinstance(value, (str, int, float)) or value != value:
        hint = ", use $in" if isinstance(value, (list, tuple, set)) else ""
        raise InputError(
            f"where: field {name!r}: {operator} takes text, a number or true/false, "
            f"not {value!r}{hint}"
        )
    if isinstance(value, str):
        _check_unicode(name, value)
    return _scalar(value)


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"where: field {name!r}: {text!r} is not valid Unicode text") from None
