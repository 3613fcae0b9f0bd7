"""Other fields of stored items, without their pictures: prices and stock, many times a day."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from tigerfg.errors import InputError
from tigerfg.index.stored import checked_id, parse_document
from tigerfg.ingest_run import Given, IngestRun, OnProgress
from tigerfg.prepare import content_hash, document_of, stored_path
from tigerfg.records import Item, Rejected, is_empty
from tigerfg.rows import CsvText
from tigerfg.text import item_text

if TYPE_CHECKING:
    from tigerfg.index.collection import Collection
    from tigerfg.index.milvus import MilvusCollection
    from tigerfg.results import AddReport

BATCH = 1000  # items of a transaction
_KEPT = b"the stored picture"  # stands for one that came without a path

Change = Mapping[str, Any]


def update(
    changes: Iterable[Change | Rejected],
    collection: Collection | MilvusCollection,
    progress: OnProgress = None,
) -> AddReport:
    """See `Searcher.update`."""
    given = Given(changes, "changes", "give an iterable of dicts with an item_id")
    with IngestRun(collection.folder, progress, given.total) as run:
        left = iter(given)
        while batch := list(islice(left, BATCH)):
            _update(batch, collection, run)
        given.raise_failure()
        return run.report()


def _update(
    batch: list[Change | Rejected], collection: Collection | MilvusCollection, run: IngestRun
) -> None:
    named = list(_named(batch, run))
    known = collection.known({item_id for item_id, _ in named})
    stored = {item_id: entry.document for item_id, entry in known.items()}
    documents = dict(stored)  # as they are after the changes so far
    updated = 0
    for item_id, change in named:
        try:
            if item_id not in stored:
                raise InputError(f"item_id {item_id!r} is not in the catalogue: upsert it whole")
            before = parse_document(documents[item_id])
            if before is None:
                raise InputError(f"item_id {item_id!r}: its record is damaged: upsert it whole")
            changed = _changed(before, change, known[item_id].content_hash)
            if wrong := collection.objection(changed):
                raise InputError(wrong)
        except InputError as error:
            run.reject(_rejected(item_id, change, error))
            continue
        if changed == documents[item_id]:
            run.skip_unchanged()
        else:
            documents[item_id] = changed
            updated += 1
    other = {name: text for name, text in documents.items() if text != stored[name]}
    run.update(collection, other, updated)


def _named(batch: list[Change | Rejected], run: IngestRun) -> Iterator[tuple[str, Change]]:
    """The changes that name an item; the others are rejected."""
    for change in batch:
        if isinstance(change, Rejected):
            run.reject(change)
            continue
        try:
            item_id = Item.from_dict(change).item_id
            if not item_id:
                raise InputError("item_id is missing: name the stored item that changes")
            yield checked_id(item_id), change
        except InputError as error:
            run.reject(_rejected(None, change, error))


def _rejected(item_id: str | None, change: Change, error: InputError) -> Rejected:
    return Rejected(item_id, str(error), *getattr(change, "origin", ()))


def _changed(stored: dict[str, Any], change: Change, encoded: bytes) -> str:
    """The JSON form of a stored item with some fields changed.

    Args:
        encoded: the content hash of what was encoded of it.

    Raises:
        InputError: a field cannot be stored, or is one of those that were encoded.
    """
    name = f"item_id {stored['item_id']!r}"
    change = {key: value for key, value in change.items() if not is_empty(value)}
    image, given = stored.get("image"), change.get("image")
    change = {key: _typed(name, key, value, stored.get(key)) for key, value in change.items()}
    merged = {**stored, **change, "image": image}
    if isinstance(given, (str, os.PathLike)):
        same = stored_path(given) == image
    else:  # none, or the picture itself; with another text it is refused below
        same = given is None or content_hash(Item.from_dict({**stored, "image": given})) == encoded
    if not same:
        raise InputError(f"{name}: image is another one: upsert the whole item")
    kept = {key: value for key, value in merged.items() if value is not None or key not in change}
    item = Item.from_dict(kept)
    dataclasses.replace(item, image=item.image or _KEPT).validate()
    for key, value in item.extra.items():
        if key in stored["attributes"] and value != stored.get(key):
            raise InputError(
                f"{name}: {key} is one of its attributes, which filters see before a field of that "
                "name and the embedding was made with: upsert the whole item"
            )
    if item_text(item) != item_text(Item.from_dict(stored)):
        raise InputError(
            f"{name}: title, category, attributes or description are others, and the embedding was "
            "made with them: upsert the whole item"
        )
    return document_of(item)


def _typed(name: str, key: str, value: Any, stored: Any) -> Any:
    """A cell of a csv file as what the stored field is, a number or a list for example, which
    filters see; other values as they are."""
    if not isinstance(value, CsvText) or stored is None or isinstance(stored, str):
        return value
    text = value.lower() if isinstance(stored, bool) else value
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    kinds = (int, float) if type(stored) in (int, float) else (type(stored),)
    if type(found) not in kinds:
        raise InputError(f"{name}: {key} is {value!r}, where the catalogue has {stored!r}")
    return found
