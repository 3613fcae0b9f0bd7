"""What a catalogue is in Milvus: columns, rows, index types, and how they are searched.

The primary key is a hash of the item id, so that any id fits and none is ever part of an
expression. A column holds at most 65,535 bytes there; `objection` says which item does not fit.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tigerfg.errors import InputError
from tigerfg.index.milvus_filters import COLUMN, field_tokens
from tigerfg.index.plan import AUTO, FLAT
from tigerfg.index.stored import Record, Row, checked_id

METRIC = "COSINE"
MOST_BYTES = 65_535  # of a text or JSON column
LISTS = 1024
# What was encoded of an item, and its place: columns that another JSON form leaves as they are.
ENCODED = ("key", "number", "vector", "content_hash", "grounding_map")
# Index types whose scores are approximate: so many candidates a result are ranked again by their
# vectors, which come along.
_COARSE = {"IVF_PQ": 4, "GPU_IVF_PQ": 4, "IVF_SQ8": 2, "SCANN": 2, "HNSW_SQ": 2, "HNSW_PQ": 4}
_PROBED = ("IVF_", "GPU_IVF_", "SCANN")


@dataclass(frozen=True)
class MilvusIndex:
    """An index type of Milvus with its parameters, by Milvus's names."""

    kind: str
    params: Mapping[str, int]

    @classmethod
    def parse(cls, setting: str, dim: int, lite: bool) -> MilvusIndex:
        """From ``index=`` of a catalogue: "auto", "flat", or e.g. "IVF_PQ,nlist=4096,m=64".

        "auto" is IVF_PQ with a code of a byte for four dimensions; Milvus Lite has none: FLAT.

        Raises:
            InputError: not of this form.
        """
        if setting == AUTO:
            setting = "FLAT" if lite else "IVF_PQ"
        elif setting == FLAT:
            setting = "FLAT"
        kind, *pairs = setting.split(",")
        params: dict[str, int] = {}
        for pair in pairs:
            name, _, value = pair.partition("=")
            if not name or not value.isdecimal():
                raise InputError(f"index {setting!r}: {pair!r} is not name=number")
            params[name] = int(value)
        if not kind.replace("_", "").isalnum() or not kind.isupper():
            raise InputError(
                f"index {setting!r}: in Milvus give auto, flat or one of its index types, such as "
                "IVF_PQ, GPU_IVF_PQ or HNSW, with its parameters: IVF_PQ,nlist=4096,m=64"
            )
        if kind.startswith(_PROBED):
            if lite:
                raise InputError(
                    f"index {setting!r}: Milvus Lite heeds no nlist; give auto or HNSW"
                )
            params.setdefault("nlist", LISTS)
        if kind.endswith("IVF_PQ"):
            params.setdefault("m", max(1, dim // 4))
            params.setdefault("nbits", 8)
        return cls(kind, params)

    @property
    def lists(self) -> int | None:
        """Inverted lists; None for an index type that has none."""
        return self.params.get("nlist") if self.kind.startswith(_PROBED) else None

    @property
    def factor(self) -> int:
        """Candidates a result."""
        return _COARSE.get(self.kind, 1)

    def __str__(self) -> str:
        return ",".join([self.kind, *(f"{name}={value}" for name, value in self.params.items())])


def key_of(item_id: str) -> str:
    """The primary key: BLAKE2b-128 of the item id, 32 hex digits.

    Raises:
        InputError: the id is no string, or no valid Unicode text.
    """
    return hashlib.blake2b(checked_id(item_id).encode(), digest_size=16).hexdigest()


def objection(document: str) -> str | None:
    """Why Milvus cannot hold an item of this JSON form, or None."""
    size = len(document.encode())
    if size > MOST_BYTES:
        return (
            f"its record has {size} bytes as JSON, and Milvus keeps {MOST_BYTES}: shorten its "
            "description and extra fields"
        )
    size = len(json.dumps(field_tokens(json.loads(document))))
    if size > MOST_BYTES:
        return (
            f"its fields need {size} bytes to be filtered by, and Milvus keeps {MOST_BYTES}: put "
            "long texts into the description, which no filter sees"
        )
    return None


def to_row(record: Record, number: int) -> dict[str, Any]:
    """A record as Milvus stores it."""
    grid = np.ascontiguousarray(record.grounding_map, "<f2")
    code = base64.b64encode(grid.tobytes()).decode()
    return {
        "key": key_of(record.item_id),
        "number": number,
        "vector": np.asarray(record.vector, np.float32),
        "content_hash": record.content_hash.hex(),
        "grounding_map": f"{grid.shape[0]}x{grid.shape[1]}:{code}",
        **of_document(record.document),
    }


def of_document(document: str) -> dict[str, Any]:
    """The columns that an item's JSON form gives."""
    return {COLUMN: field_tokens(json.loads(document)), "document": document}


def from_row(row: Mapping[str, Any]) -> Row:
    """What hits need of a stored row."""
    shape, _, code = row["grounding_map"].partition(":")
    grid = np.frombuffer(base64.b64decode(code), "<f2").astype(np.float32)
    return Row(json.loads(row["document"]), grid.reshape([int(n) for n in shape.split("x")]))
