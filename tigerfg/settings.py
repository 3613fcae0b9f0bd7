"""Settings dataclasses: values checked by the fields' annotations, with errors that name the field.

A settings class is a frozen dataclass on `Checked`. Its fields are of type int, float, bool, str,
Path, dict, Literal, tuple or another settings class, each perhaps `| None`, or one value
`| tuple[...]` of several, and `Annotated` with a `Limit` where not every value of the type will do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from tigerfg.errors import InputError

Settings = TypeVar("Settings")


class Limit(NamedTuple):
    """What the value of a field must be beside its type: in words, and the test of it."""

    words: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Limit("a whole number, 1 or more", lambda n: n >= 1)]
Natural = Annotated[int, Limit("a whole number, 0 or more", lambda n: n >= 0)]
Seed = Annotated[int, Limit("a whole number from 0 to 2^63 - 1", lambda n: 0 <= n < 2**63)]
Positive = Annotated[float, Limit("a number above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Limit("a number, 0 or more", lambda x: x >= 0)]
Share = Annotated[float, Limit("a number from 0 to 1", lambda x: 0 <= x <= 1)]

_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
    Path: "a path",
    dict: "an object",
}


def whole_number(value: Any, name: str, least: int = 1) -> int:
    """An argument as an int, of Python's or numpy's; InputError names it if it is none, or less."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            number = operator.index(value)
            if number >= least:
                return number
    raise InputError(f"{name} {value!r} must be a whole number, at least {least}")


class Checked:
    """Base of settings dataclasses: every field is checked when one is made; JSON's lists, objects
    and strings become tuples, settings and paths.

    Raises:
        InputError: a field is of another type or value; it is named with its place.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            object.__setattr__(self, name, _checked(getattr(self, name), hint, name))


def build(kind: type[Settings], values: dict[str, Any], own: Sequence[str] = ()) -> Settings:
    """A settings dataclass from JSON's values.

    Args:
        own: fields that the caller sets itself, so that they are not told as a choice.

    Raises:
        InputError: a field is unknown, missing, or of another type or value; it is named with its
            place, such as stages.0.lr.
    """
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            choice = ", ".join(field for field in fields if field not in own)
            raise InputError(f"{name}: there is no such setting; choose among {choice}")
    for name, entry in fields.items():
        if name not in values and entry.default is entry.default_factory:  # it has neither
            raise InputError(f"{name}: it is missing; give {_words(_hints(kind)[name])}")
    return kind(**values)


def build_at(field: str, kind: type[Settings], values: dict[str, Any]) -> Settings:
    """As `build`, of settings that are a field of others: errors name their place in these."""
    try:
        return build(kind, values)
    except InputError as error:
        raise InputError(f"{field}.{error}") from error


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _checked(value: Any, hint: Any, field: str) -> Any:
    """The value as the annotation has it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):  # with None, or a tuple, which stands last
        if value is None and args[-1] is NoneType:
            return None
        several = get_origin(args[-1]) is tuple and isinstance(value, (list, tuple))
        return _checked(value, args[-1] if several else args[0], field)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build_at(field, hint, value)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = args[:1] * len(value) if args[-1] is ... else args
        if len(kinds) == len(value):
            pairs = enumerate(zip(value, kinds, strict=True))
            return tuple(_checked(part, kind, f"{field}.{n}") for n, (part, kind) in pairs)
    if origin is tuple or not _fits(value, hint):
        shown = " ".join(repr(value).split())
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise InputError(f"{field}: {shown}; give {_words(hint)}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, args[0]) and all(limit.holds(value) for limit in args[1:])
    if origin is Literal:
        return value in args
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max  # False for NaN
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    """What an annotation allows."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _words(args[0])
    if origin is Annotated:
        return args[1].words
    if origin is Literal:
        return " or ".join((", ".join(args[:-1]), args[-1]))
    if origin is tuple:
        return "a list" if args[-1] is ... else f"a list of {len(args)}"
    return _WORDS.get(origin or hint, "an object")
