"""Which items and queries an evaluation takes, from a directory or a benchmark's `EvalSet`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from tigerfg.benchmark.datasets.source import EXCLUDED
from tigerfg.catalog import Item, Query, Rejected, read_items, read_queries
from tigerfg.errors import InputError
from tigerfg.text import item_text

if TYPE_CHECKING:
    from tigerfg.benchmark.datasets import EvalSet


@dataclass
class Selection:
    """Items and queries to evaluate, and those that could not be read.

    Attributes:
        name: for tables. directory: where it was read from.
        split: the wanted one, or None.
        filtered: the fields that items were filtered by.
    """

    name: str
    directory: str
    split: str | None
    items: list[Item]
    queries: list[Query]
    filtered: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rejected_items: list[Rejected] = field(default_factory=list)
    rejected_queries: list[Rejected] = field(default_factory=list)

    @classmethod
    def read(cls, directory: Path, split: str | None) -> Selection:
        """Read ``items.jsonl`` and ``queries.jsonl``; ``split`` keeps entries with that field."""
        chosen = cls(str(directory), str(directory), split, [], [])
        queries = list(read_queries(directory, on_reject=chosen.rejected_queries.append))
        items = list(read_items(directory, on_reject=chosen.rejected_items.append))
        wanted = {"split": split} if split else {}
        chosen.queries = keep(queries, wanted, "query")
        chosen.items = keep(items, wanted, "item")
        chosen.filtered = wanted
        return chosen

    @classmethod
    def of(cls, data: EvalSet) -> Selection:
        """The whole of a benchmark's set."""
        return cls(
            name=f"{data.name} {data.split}",
            directory=f"{data.name} {data.split}",
            split=data.split,
            items=list(data.items),
            queries=list(data.queries),
            notes=[f"right answers: {data.relevance}", *data.notes],
            rejected_items=list(data.rejected),
        )

    def restrict(self, item_filter: Mapping[str, str], query_kinds: Iterable[str]) -> None:
        """Keep the items whose fields have these values and the queries of these kinds."""
        self.items = keep(self.items, item_filter, "item")
        self.filtered = dict(item_filter) | self.filtered
        kinds = set(query_kinds)
        if kinds:
            found = {kind_of(query) for query in self.queries}
            if not kinds <= found:
                raise InputError(
                    f"{self.name}: no query has query_kind {', '.join(sorted(kinds - found))}; "
                    f"there are {', '.join(sorted(found))}"
                )
            self.queries = [query for query in self.queries if kind_of(query) in kinds]

    def digest(self) -> str:
        """SHA-256 of what is compared: ids, texts, boxes, answers, and the pictures' file names."""
        sha = hashlib.sha256()
        for item in self.items:
            line = [item.item_id, _file(item.image), item_text(item), item.target_box]
            sha.update(json.dumps(line).encode() + b"\n")
        for query in self.queries:
            line = [query.query_id, _file(query.image), query.box, query.item_ids]
            sha.update(json.dumps([*line, excluded_ids(query)]).encode() + b"\n")
        return sha.hexdigest()


def keep(entries: Sequence[Any], wanted: Mapping[str, str], noun: str) -> list[Any]:
    """The entries whose fields have the wanted values, compared as text."""
    for key, value in wanted.items():
        values = [_field(entry, key) for entry in entries]
        chosen = [e for e, own in zip(entries, values, strict=True) if own == value]
        if not chosen:
            there = sorted({own for own in values if own is not None})[:8]
            raise InputError(
                f"no {noun} left with {key}={value}; values of {key}: {', '.join(there) or 'none'}"
            )
        entries = chosen
    return list(entries)


def kind_of(query: Query) -> str:
    """The query's ``query_kind``, "all" without one."""
    return str(query.extra.get("query_kind", "all"))


def excluded_ids(query: Query) -> list[str]:
    """Ids of the items that a query does not search (leave-one-out)."""
    value = query.extra.get(EXCLUDED)
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]


def correct_ids(query: Query) -> list[str]:
    """Ids of the items that count as right for a query."""
    left_out = set(excluded_ids(query))
    return [item_id for item_id in query.item_ids if item_id not in left_out]


def product_numbers(queries: Sequence[Query]) -> list[int]:
    """A number per query, equal for queries that ask for one product.

    These are queries that are linked by items, correct or excluded, which they share; an excluded
    item counts because it is the query's own picture.
    """
    parent: dict[str, str] = {}

    def root(item_id: str) -> str:
        while parent.setdefault(item_id, item_id) != item_id:
            parent[item_id] = item_id = parent[parent[item_id]]
        return item_id

    linked = [[*query.item_ids, *excluded_ids(query)] for query in queries]
    for ids in linked:
        for other in ids[1:]:
            parent[root(other)] = root(ids[0])
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(ids[0]), len(numbers)) for ids in linked]


def _field(entry: Item | Query, key: str) -> str | None:
    value = entry.extra.get(key, getattr(entry, key, None))
    return None if value is None else str(value)


def _file(image: Any) -> str:
    """The end of a picture's path: the same wherever a copy of the data lies."""
    return "/".join(PurePath(image).parts[-2:]) if isinstance(image, (str, PurePath)) else ""
