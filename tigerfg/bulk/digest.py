"""The digest that a unit's file carries of its own records.

Parquet's pages have checksums; its footer has none, and a bit flipped there can hide rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from tigerfg.index.stored import Record

DIGEST = "tigerfg.digest"  # its name in the metadata of the file's schema


def records_digest(records: Iterable[Record]) -> str:
    """BLAKE2b-128, in hexadecimal, of records as a file holds them: vectors and maps in float16."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        grounding_map = np.asarray(record.grounding_map, np.float16)
        parts = (
            record.item_id.encode(),
            record.content_hash,
            record.document.encode(),
            np.asarray(record.vector, np.float16).tobytes(),
            repr(grounding_map.shape).encode(),
            grounding_map.tobytes(),
        )
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
