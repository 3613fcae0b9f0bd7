"""An item before it is encoded: checked, its picture's path absolute, what a model sees hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tigerfg.decoding import decoding, describe_source, load_image, open_source
from tigerfg.download import is_address
from tigerfg.errors import InputError
from tigerfg.index.stored import Known, parse_document
from tigerfg.records import Item, Rejected
from tigerfg.text import item_text

if TYPE_CHECKING:
    from PIL import Image

_BLOCK = 1 << 20


class Prepared(NamedTuple):
    """An item that passed its checks, ready to be encoded and stored."""

    item: Item
    document: str  # the item's JSON form, the image as an absolute path, an address or null
    content_hash: bytes  # of its picture and its text, which is what is encoded

    @property
    def unfetched(self) -> bool:
        """Whether its picture is still behind its address: see `as_stored`."""
        return is_address(self.item.image)


def prepare(
    entry: Item | Mapping[str, Any] | Rejected | Prepared, fetched: bytes | InputError | None = None
) -> Prepared | Rejected:
    """Check one item and hash its picture and its text; what is done already is handed through.

    Args:
        fetched: where the image is an address: its picture, or why there is none.
    """
    if isinstance(entry, (Rejected, Prepared)):
        return entry
    item_id = None
    try:
        item = _as_item(entry)
        item_id = item.item_id if isinstance(item.item_id, str) else None
        item.validate()
        if isinstance(item.image, (str, os.PathLike)):
            item = dataclasses.replace(item, image=stored_path(item.image))
        document = document_of(item)
        if isinstance(fetched, InputError):
            raise fetched
        if fetched is not None:
            item = dataclasses.replace(item, image=fetched)
        return Prepared(item, document, content_hash(item))
    except InputError as error:
        return Rejected(item_id, str(error), *getattr(entry, "origin", ()))


def at_address(entry: Item | Mapping[str, Any] | Rejected | Prepared) -> Item | None:
    """An entry as an item that is valid and whose picture is to be fetched; None for others."""
    if isinstance(entry, (Rejected, Prepared)):
        return None
    try:
        item = _as_item(entry)
        if not is_address(item.image):
            return None
        item.validate()
        return item
    except InputError:
        return None


def as_stored(item: Item, stored: Known) -> Prepared | None:
    """A valid item with the content hash of a stored one that has its address and its text, so
    that its picture need not be fetched if an address stands for its picture; else None."""
    before = at_address(parse_document(stored.document) or {})  # None if it is damaged
    if before is None or (before.image, item_text(before)) != (item.image, item_text(item)):
        return None
    return Prepared(item, document_of(item), stored.content_hash)


def _as_item(entry: Item | Mapping[str, Any]) -> Item:
    if isinstance(entry, Item):
        return entry
    if isinstance(entry, Mapping):
        return Item.from_dict(entry)
    raise InputError(f"an item is an Item or a dict, not {type(entry).__name__}")


def stored_path(image: str | os.PathLike) -> str:
    """A picture's path as it is stored: absolute, or its address."""
    name = os.fsdecode(image)
    # abspath would make a path of an address: decoding names it
    return name if "://" in name else os.path.abspath(name)


def document_of(item: Item) -> str:
    """The JSON form in which an item that is valid is stored."""
    return json.dumps(item.to_dict(), ensure_ascii=False, allow_nan=False)


def content_hash(item: Item) -> bytes:
    """BLAKE2b-128 of what a model sees of an item: its text and its picture's bytes or pixels."""
    image: Any = item.image
    digest = hashlib.blake2b(item_text(item).encode() + b"\0", digest_size=16)
    if isinstance(image, str):
        name = describe_source(image)
        with decoding(name), open_source(image, name) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        digest.update(image)
    elif isinstance(image, np.ndarray):
        digest.update(f"{image.shape} {image.dtype}".encode())
        digest.update(np.ascontiguousarray(image).tobytes())
    elif hasattr(image, "tobytes"):
        digest.update(_picture_bytes(image))
    return digest.digest()


def _picture_bytes(image: Image.Image) -> bytes:
    try:
        shown = load_image(image)  # upright, its palette and transparency applied
    except InputError:  # told where it is encoded
        return b""
    return f"{shown.mode} {shown.size}".encode() + shown.tobytes()
