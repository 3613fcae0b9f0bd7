"""`where` filters as expressions of Milvus; what they mean is in `where`.

Milvus has no "any element of this list is below x", compares numbers of different kinds in ways of
its own, and older servers take no bound parameters. So an item's field values are stored in a JSON
column as *tokens*: hexadecimal text that sorts as the values do. Expressions then hold nothing but
our own words and hexadecimal digits, whatever names and values a catalogue or a caller has.

    {"has": [name, ...], "is": ["name=value", ...],
     "least": {"name": {"n": value, "t": value}}, "most": the same}

Some element is below x exactly if the least one is, so two tokens a field and kind answer ranges.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from tigerfg.index.where import Condition, Group, Scalar, filter_fields, joined, parse_filter

COLUMN = "fields"
_ENDS = {
    "$gt": ("most", ">"),
    "$gte": ("most", ">="),
    "$lt": ("least", "<"),
    "$lte": ("least", "<="),
}


def field_tokens(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON column holds of an item, from its JSON form."""
    fields = filter_fields(document)
    least: dict[str, dict[str, str]] = {}
    most: dict[str, dict[str, str]] = {}
    for name, values in fields.items():
        by_kind: dict[str, list[str]] = {}
        for value in values:
            by_kind.setdefault(_kind(value), []).append(value_token(value))
        least[name_token(name)] = {kind: min(tokens) for kind, tokens in by_kind.items()}
        most[name_token(name)] = {kind: max(tokens) for kind, tokens in by_kind.items()}
    return {
        "has": [name_token(name) for name in fields],
        "is": [_pair(name, value) for name, values in fields.items() for value in values],
        "least": least,
        "most": most,
    }


def compile_filter(where: Mapping[str, Any]) -> str:
    """Compile a filter to a boolean expression over the JSON column; "" for the empty filter.

    Raises:
        InputError: see `parse_filter`.
    """
    return _compile(parse_filter(where))


def name_token(name: str) -> str:
    """A field's name; never empty."""
    return "x" + name.encode().hex()


def value_token(value: Scalar) -> str:
    """A value; of one kind, tokens sort as the values, and equal values have equal ones."""
    if isinstance(value, str):
        return value.encode().hex()  # UTF-8 sorts by code point
    rounded = float(value) + 0.0  # -0.0 is 0.0
    bits = struct.unpack(">Q", struct.pack(">d", rounded))[0]
    ordered = bits ^ (0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else 1 << 63)
    # Whole numbers beyond 2^53 are told apart by what rounding took from them, at most 1,024.
    rest = value - int(rounded) if isinstance(value, int) else 0
    return f"{ordered:016x}{rest + 0x8000:04x}"


def _kind(value: Scalar) -> str:
    return "t" if isinstance(value, str) else "n"


def _pair(name: str, value: Scalar) -> str:
    return f"{name_token(name)}={_kind(value)}{value_token(value)}"


def _compile(term: Group | Condition) -> str:
    if isinstance(term, Condition):
        return _condition(term)
    parts = [text for text in map(_compile, term.parts) if text]
    if len(parts) < len(term.parts) and term.word == "or":
        return ""  # one of them is always true
    return joined(parts, term.word) if parts else ""


def _condition(term: Condition) -> str:
    name, operator, operand = term
    if operator == "$exists":
        found = f'json_contains({COLUMN}["has"], "{name_token(name)}")'
        return found if operand else f"(not {found})"
    if operator in ("$eq", "$ne"):
        found = f'json_contains({COLUMN}["is"], "{_pair(name, operand)}")'
        return found if operator == "$eq" else f"(not {found})"
    if operator in ("$in", "$nin"):
        pairs = ", ".join(f'"{_pair(name, value)}"' for value in operand)
        # an empty list is no operand of Milvus; no field has the name ""
        found = f'json_contains_any({COLUMN}["is"], [{pairs or chr(34) * 2}])'
        return found if operator == "$in" else f"(not {found})"
    end, sign = _ENDS[operator]
    place = f'{COLUMN}["{end}"]["{name_token(name)}"]["{_kind(operand)}"]'
    return f'({place} {sign} "{value_token(operand)}")'
