"""What a `Searcher` gives back: hits, reports and facts about the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tigerfg.records import Item, Rejected


@dataclass(frozen=True)
class Hit:
    """One found item.

    Attributes:
        item_id: the item's id.
        score: cosine similarity of query and item, in [-1, 1].
        item: the stored item; its image is the absolute path, None if it came without a path.
        grounding_map: float32 (rows, columns), where the item tower looked for the product in the
            item's picture: one weight a patch of the upright picture, summing to 1 to the precision
            of float16.
    """

    item_id: str
    score: float
    item: Item
    grounding_map: np.ndarray = field(repr=False, compare=False)

    @classmethod
    def from_match(cls, score: float, document: dict[str, Any], grounding_map: np.ndarray) -> Hit:
        """Build a hit from what a collection's search gives."""
        own = grounding_map.copy()  # several hits of a batch may be one item's
        return cls(document["item_id"], score, Item.from_dict(document), own)


@dataclass(frozen=True)
class SearcherInfo:
    """What `Searcher.info` tells.

    Attributes:
        catalog_id, model, fingerprint, embedding_dim, created, index, target_recall,
            memory_budget: see `StoreMeta`.
        path: the directory, or the address.
        engine: name, precision and device; None until the first picture is encoded.
        size_bytes: of all files in the catalogue's directory; None where it is in Milvus, or gone.
    """

    path: Path | str
    items: int
    catalog_id: str
    model: str
    fingerprint: str
    embedding_dim: int
    created: str
    index: str
    target_recall: float
    memory_budget: int | None
    engine: str | None
    read_only: bool
    size_bytes: int | None


@dataclass(frozen=True)
class AddReport:
    """What became of the items of one call, or, given to ``progress``, so far.

    Attributes:
        added: items that were not in the catalogue and now are.
        replaced: items that took the place of a stored one (`upsert` only).
        updated: stored items whose picture and text are the same and whose other fields changed:
            nothing was encoded; of `update`, changes.
        unchanged: items that are stored already just as they are given.
        rejected: items left out, with their reasons.
        seconds: time since the call began.
        rejects_file: where the rejects were written too, one JSON object a line; None if none.
        stages: seconds by stage, over all threads: waiting for the items (read) and for pictures
            behind addresses (fetch), checks and content hashes (check), decode, encode, store. They
            overlap: the busiest limits the whole; check and decode share `Encoder`'s threads.
    """

    added: int = 0
    replaced: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    seconds: float = 0.0
    rejects_file: Path | None = None
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def stored(self) -> int:
        """Items that are in the catalogue as they were given."""
        return self.added + self.replaced + self.updated + self.unchanged

    @property
    def images_per_second(self) -> float:
        """Items stored a second with their vectors, which, but for `load`, were encoded."""
        return (self.added + self.replaced) / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        counts = {
            "added": self.added,
            "replaced": self.replaced,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "rejected": len(self.rejected),
        }
        parts = [f"{count} {what}" for what, count in counts.items() if count] or ["0 items"]
        encoded = ""
        if "encode" in self.stages and self.images_per_second:  # else nothing was
            encoded = f" ({self.images_per_second:.0f} encoded/s)"
        return f"{', '.join(parts)} in {self.seconds:.1f} s{encoded}"


@dataclass(frozen=True)
class VerifyReport:
    """What `Searcher.verify` found.

    Attributes:
        items: stored items. compared: of the sample, how many were encoded again.
        least_cosine: lowest cosine of a stored vector with the new one; None if none was compared.
        moved: how many lie as far apart as another window of the attention crop explains, and are
            so few that it may.
        skipped: why others of the sample could not be compared, reason -> count.
        problems: one line each; empty when all is well.
        seconds: the whole took.
    """

    items: int
    compared: int
    least_cosine: float | None
    moved: int
    skipped: dict[str, int]
    problems: list[str]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems
