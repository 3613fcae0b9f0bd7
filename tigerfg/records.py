"""What a catalogue is made of: items, queries and rejects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tigerfg.boxes import parse_box
from tigerfg.errors import InputError

if TYPE_CHECKING:
    from tigerfg.decoding import ImageSource

MOST_DEPTH = 100  # of lists and objects in a field: far below where Python's own stack ends
_JSON_KINDS = frozenset("biufUO")  # of numpy's types: true/false, numbers, text, anything


class FileRecord(dict[str, Any]):
    """A record of a file; its ``origin`` is its line and the file, or () where there are none."""

    def __init__(self, values: Mapping[str, Any], origin: tuple = ()) -> None:
        super().__init__(values)
        self.origin = origin


@dataclass(frozen=True)
class Item:
    """One product of a catalogue.

    Attributes:
        item_id: unique in its catalogue.
        image: path, encoded bytes, PIL image or uint8 array; None where only a stored record
            without its picture is at hand.
        title, category, attributes, description: the text that guides the grounding; may be empty.
            Attributes map names to JSON values; of numpy, numbers and arrays are taken as well.
        target_box: where the product is, ``(x0, y0, x1, y1)`` in pixels of the image as stored;
            used for training and evaluation only.
        extra: fields of the source that tigerfg does not know: kept, not used.
        origin: line and file that it was read from, or (): told where it is rejected, not stored.
    """

    item_id: str
    image: ImageSource | None
    title: str = ""
    category: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    target_box: tuple[float, float, float, float] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    origin: tuple = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("attributes", "extra"):
            object.__setattr__(self, name, _python(getattr(self, name)))
        object.__setattr__(self, "target_box", _as_tuple(self.target_box))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Item:
        """Build an item from a record; nothing is checked before `validate`.

        Missing or null fields take their defaults, integer ids become strings, unknown fields go
        to ``extra``. A NaN is null: pandas has one where a cell is empty. Of a `FileRecord` the
        origin is kept.
        """
        known, extra = _split(values, {entry.name for entry in fields(cls)})
        known["item_id"] = plain_id(known.get("item_id"))
        known.setdefault("image", None)
        return cls(**known, extra=extra, origin=getattr(values, "origin", ()))

    def to_dict(self) -> dict[str, Any]:
        """The record that `from_dict` reads, as JSON-able values; extra fields at the top level.

        An image that is no path is written as None.
        """
        record = {
            "item_id": self.item_id,
            "image": _image_path(self.image),
            "title": self.title,
            "category": self.category,
            "attributes": dict(self.attributes),
            "description": self.description,
            "target_box": _box(self.target_box),
        }
        return {**record, **self.extra, **record}

    def validate(self) -> None:
        """Raise InputError, naming the item and the field, if the item cannot be stored.

        The picture itself is not opened.
        """
        _check_id(self.item_id, "item_id")
        name = f"item_id {self.item_id!r}"
        _check_image(self.image, name)
        for key in ("title", "category", "description"):
            value = getattr(self, key)
            if not isinstance(value, str):
                raise InputError(f"{name}: {key} is {_kind(value)}, not a string")
        if self.target_box is not None:
            parse_box(self.target_box, f"{name}: target_box")
        for key in ("attributes", "extra"):
            value = getattr(self, key)
            if not isinstance(value, Mapping):
                raise InputError(f"{name}: {key} is {_kind(value)}, not an object")
            for word in value:
                if not isinstance(word, str):
                    raise InputError(f"{name}: {key} has {_kind(word)} for a name: give a string")
        _check_json(self.to_dict(), name)

    @property
    def has_text(self) -> bool:
        """Whether there is any text that can guide the grounding."""
        return bool(self.title or self.category or self.attributes or self.description)


@dataclass(frozen=True)
class Query:
    """A photo of one product and, for evaluation, the items that show it.

    Attributes:
        box: the product in the photo, ``(x0, y0, x1, y1)`` in pixels of the image as stored; None
            if the photo is cropped already.
        item_ids: the right answers; empty if unknown.
        extra: fields of the source that tigerfg does not know: kept, not used.
    """

    query_id: str
    image: ImageSource | None
    box: tuple[float, float, float, float] | None = None
    item_ids: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", _python(self.extra))
        object.__setattr__(self, "box", _as_tuple(self.box))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Query:
        """Build a query from a record, as `Item.from_dict` does."""
        known, extra = _split(values, {entry.name for entry in fields(cls)})
        known["query_id"] = plain_id(known.get("query_id"))
        known.setdefault("image", None)
        if isinstance(known.get("item_ids"), (list, tuple)):
            known["item_ids"] = tuple(map(plain_id, known["item_ids"]))
        return cls(**known, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The record that `from_dict` reads, as JSON-able values; extra fields at the top level."""
        record = {
            "query_id": self.query_id,
            "image": _image_path(self.image),
            "box": _box(self.box),
            "item_ids": list(self.item_ids),
        }
        return {**record, **self.extra, **record}

    def validate(self) -> None:
        """Raise InputError, naming the query and the field, if the query cannot be used."""
        _check_id(self.query_id, "query_id")
        name = f"query_id {self.query_id!r}"
        _check_image(self.image, name)
        if self.box is not None:
            parse_box(self.box, f"{name}: box")
        if not isinstance(self.item_ids, Sequence) or isinstance(self.item_ids, str):
            raise InputError(f"{name}: item_ids is {_kind(self.item_ids)}, not a list of ids")
        for item_id in self.item_ids:
            _check_id(item_id, f"{name}: item_ids")
        if not isinstance(self.extra, Mapping):
            raise InputError(f"{name}: extra is {_kind(self.extra)}, not an object")
        _check_json(self.to_dict(), name)


@dataclass(frozen=True)
class Rejected:
    """An input that was left out, and why.

    Attributes:
        item_id: id of the item or query, if it was readable.
        reason: one line that names the field and the fix.
        line: line (or row) number in the source from 1, if it has lines.
        source: file that the input came from.
    """

    item_id: str | None
    reason: str
    line: int | None = None
    source: str | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.source, self.line) if part is not None)
        named = self.item_id is None or repr(self.item_id) in self.reason
        what = self.reason if named else f"item_id {self.item_id!r}: {self.reason}"
        return f"{place}: {what}" if place else what


def _split(values: Mapping[str, Any], names: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    if not isinstance(values, Mapping):
        raise InputError(f"a record is {_kind(values)}, not an object")
    names = names - {"extra", "origin"}
    values = {key: None if is_empty(value) else value for key, value in values.items()}
    known = {key: value for key, value in values.items() if key in names and value is not None}
    return known, {key: value for key, value in values.items() if key not in names}


def is_empty(value: Any) -> bool:
    """Whether a field's value is NaN, which pandas has where a cell is empty."""
    return isinstance(value, float) and value != value


def plain_id(value: Any) -> Any:
    """An id as it is kept: integers become strings."""
    value = _python(value)
    try:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    except ValueError:  # thousands of digits: refused as what it is
        return value


def _as_tuple(box: Any) -> Any:
    """A box given as a list or an array as a tuple; anything else as it is."""
    box = _python(box)
    return tuple(box) if isinstance(box, list) else box


def _box(box: Sequence[float] | None) -> list[float] | None:
    """A box as JSON has it."""
    return None if box is None else [_python(value) for value in box]


def _python(value: Any, most: int = MOST_DEPTH + 1) -> Any:
    """Numbers and arrays of numpy as Python's, also in lists and objects, ``most`` of them deep;
    anything else, such as its times, as it is."""
    if type(value) in (str, int, float):  # most are: the rest takes a while
        return value
    if getattr(getattr(value, "dtype", None), "kind", None) in _JSON_KINDS:
        value = value.tolist()
    if most and isinstance(value, Mapping):
        return {name: _python(one, most - 1) for name, one in value.items()}
    if most and isinstance(value, list):
        return [_python(one, most - 1) for one in value]
    return value


def _image_path(image: ImageSource | None) -> str | None:
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else None


def _check_id(value: Any, name: str) -> None:
    if value is None or value == "":
        raise InputError(f"{name} is missing: give every record a unique id")
    if not isinstance(value, str):
        raise InputError(f"{name} is {_kind(value)}, not a string")
    if value != value.strip() or any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise InputError(
            f"{name} {value!r} has control characters or spaces at its ends: remove them"
        )


def _check_image(image: Any, name: str) -> None:
    if image is None or (isinstance(image, str) and not image):
        raise InputError(f"{name}: image is missing: give the path of its picture")
    if isinstance(image, (bool, int, float, list, tuple, dict)):
        raise InputError(f"{name}: image is {_kind(image)}, not a path")


def _check_json(record: dict[str, Any], name: str) -> None:
    """Whether the store can keep the record: JSON values only, no lone surrogates, not too deep."""
    for key, value in record.items():
        if _deeper(value, MOST_DEPTH):
            raise InputError(f"{name}: {key} has lists or objects more than {MOST_DEPTH} deep")
    try:
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        for key, value in record.items():
            try:
                json.dumps({key: value}, ensure_ascii=False, allow_nan=False).encode("utf-8")
            except UnicodeEncodeError:
                raise InputError(f"{name}: {key} is no valid Unicode text") from error
            except (TypeError, ValueError, RecursionError) as cause:
                raise InputError(f"{name}: {key} is not JSON: {cause}") from error
        raise InputError(f"{name}: the record is not JSON: {error}") from error


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects stand deeper in one another than that."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return False
    return not most or any(_deeper(entry, most - 1) for entry in value)


def _kind(value: Any) -> str:
    kinds = {bool: "true/false", int: "a number", float: "a number", str: "a string"}
    kinds |= {list: "a list", tuple: "a list", dict: "an object", type(None): "null"}
    return kinds.get(type(value), f"of type {type(value).__name__}")
