"""The grammar of `where` filters, in the operator style of MongoDB and Pinecone.

A filter is a mapping: field names to conditions, which all must hold.

    {"category": "Shoes", "price": {"$gte": 20, "$lt": 50}, "color": {"$in": ["Red", "Blue"]}}
    {"$or": [{"brand": "Nordvik"}, {"brand": {"$exists": False}}]}

Messages write them as JSON has them, as the option --where takes.

Fields are ``item_id``, ``title``, ``category``, the attributes by their key and the extra fields by
their name; of equal names the first in this order counts. The rules:

- A field has one value (text, number, true/false) or several (a list): a condition holds when it
  holds for any of them. A missing field, null, an empty list and an empty title or category have
  none; only ``$ne``, ``$nin`` and ``{"$exists": False}`` match them. Objects inside objects cannot
  be filtered on, nor can fields whose name starts with ``$``, nor lists of more than 256 values,
  such as the embedding of another model: the log says so once, and they count as missing.
- Text compares with text (by code point, case counts), numbers with numbers; true and false are the
  numbers 1 and 0. Stored text that is a plain decimal number ("70", "9.90") also counts as that
  number, so that catalogues from CSV can be filtered by price.

`parse_filter` checks a filter and gives its terms; `filters` makes SQL of them, `milvus_filters`
an expression of Milvus.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tigerfg.errors import InputError

Scalar = str | int | float

COMPARISONS = ("$gt", "$gte", "$lt", "$lte")
_OPERATORS = ("$eq", "$ne", *COMPARISONS, "$in", "$nin", "$exists")
_DECIMAL = re.compile(r"-?[0-9]{1,300}(\.[0-9]{1,300})?", re.ASCII)
_MAX_DEPTH = 32
MOST_VALUES = 256  # of a list that can be filtered on: each is a row of an index

logger = logging.getLogger("tigerfg")


class Condition(NamedTuple):
    """One operator on one field: a scalar, for $in and $nin a list of them, for $exists a bool."""

    name: str
    operator: str
    operand: Any


class Group(NamedTuple):
    """Parts of which all ("and") or any ("or") must hold; no parts of "and": always true."""

    word: str
    parts: Sequence[Condition | Group]


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
        if isinstance(value, list) and len(value) > MOST_VALUES:
            _tell_unseen(key)
            continue
        values = list(dict.fromkeys(_stored_values(value)))
        if values:
            fields[key] = values
    return fields


@lru_cache(maxsize=1000)
def _tell_unseen(name: str) -> None:
    """Once a field."""
    logger.warning(
        "field %r holds lists of more than %d values: kept, but no filter sees them",
        name,
        MOST_VALUES,
    )


def parse_filter(where: Mapping[str, Any]) -> Group:
    """The terms of a filter, its values as they are stored.

    Raises:
        InputError: no mapping, an unknown operator, or an operand of the wrong type.
    """
    return _parse(where, 0)


def always(term: Condition | Group) -> bool:
    """Whether a filter asks for nothing, so that every item matches, whatever it holds."""
    if isinstance(term, Condition):
        return term.operator == "$nin" and not term.operand
    return (all if term.word == "and" else any)(map(always, term.parts))


def joined(terms: Sequence[str], word: str) -> str:
    """``(a word b word ...)`` as a balanced tree: Milvus limits an expression's depth."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return f"({joined(terms[:middle], word)} {word} {joined(terms[middle:], word)})"


def _stored_values(value: Any) -> Iterator[Scalar]:
    """Scalars under which a JSON value is found."""
    for element in value if isinstance(value, list) else [value]:
        if isinstance(element, (str, int, float)):
            yield _scalar(element)
        if isinstance(element, str) and _DECIMAL.fullmatch(element):
            yield _scalar(float(element) if "." in element else int(element))


def _scalar(value: Scalar) -> Scalar:
    """A value as it is stored: text, 64-bit integer or double."""
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return int(value)
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return value


def _parse(where: Any, depth: int) -> Group:
    if not isinstance(where, Mapping):
        raise InputError(f"where: {where!r} is no mapping of field names to conditions")
    if depth > _MAX_DEPTH:
        raise InputError(f"where: nested more than {_MAX_DEPTH} levels deep")
    terms: list[Condition | Group] = []
    for name, condition in where.items():
        if not isinstance(name, str):
            raise InputError(f"where: field name {name!r} is not text")
        _check_unicode(name, name)
        if name in ("$and", "$or"):
            if not isinstance(condition, (list, tuple)) or not condition:
                raise InputError(f"where: {name} takes a list of filters with at least one in it")
            terms.append(Group(name[1:], [_parse(part, depth + 1) for part in condition]))
        elif name.startswith("$"):
            raise InputError(
                f"where: unknown operator {name!r} beside field names: use $and or $or"
            )
        else:
            operators = condition if isinstance(condition, Mapping) else {"$eq": condition}
            if not operators:
                raise InputError(f"where: field {name!r} has no condition")
            terms += [
                Condition(name, operator, _operand(name, operator, operand))
                for operator, operand in operators.items()
            ]
    return Group("and", terms)


def _operand(name: str, operator: Any, operand: Any) -> Any:
    """An operator's operand, checked."""
    if operator == "$exists":
        if not isinstance(operand, bool):
            raise InputError(f"where: field {name!r}: $exists takes true or false")
        return operand
    if operator in ("$in", "$nin"):
        # an iterator would be used up before the filter is
        one = isinstance(operand, (str, bytes, Mapping)) or getattr(operand, "shape", None) == ()
        if one or not isinstance(operand, Collection):
            raise InputError(f"where: field {name!r}: {operator} takes a list of values")
        return [_value(name, operator, value) for value in operand]
    if operator in ("$eq", "$ne", *COMPARISONS):
        return _value(name, operator, operand)
    raise InputError(
        f"where: field {name!r}: unknown operator {operator!r}, use one of {', '.join(_OPERATORS)}"
    )


def _value(name: str, operator: str, value: Any) -> Scalar:
    """A filter's value, checked; numpy scalars are taken as what they stand for."""
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None:
        raise InputError(f'where: field {name!r}: null equals nothing, use {{"$exists": false}}')
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
