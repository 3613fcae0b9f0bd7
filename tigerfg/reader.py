"""The reading half of a Searcher: searches, items, facts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tigerfg.errors import InputError
from tigerfg.images import ImageSource
from tigerfg.index.collection import Collection, check_search
from tigerfg.index.index_stats import IndexStats
from tigerfg.index.where import parse_filter
from tigerfg.lazy_encoder import LazyEncoder
from tigerfg.query_sample import unit_vectors
from tigerfg.records import Item
from tigerfg.results import Hit, SearcherInfo

if TYPE_CHECKING:
    from tigerfg.encoder import Encoder
    from tigerfg.index.milvus import MilvusCollection

Box = Sequence[float]
Where = Mapping[str, Any]

logger = logging.getLogger("tigerfg")


class CatalogReader:
    """What can be asked of an open catalogue; `Searcher` adds what changes it."""

    def __init__(self, collection: Collection | MilvusCollection, encoder: LazyEncoder) -> None:
        self.model = encoder.bundle
        self._collection, self._encoder = collection, encoder

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: open the catalogue where it is "
            "needed, read_only=True beside others"
        )

    def search(
        self, image: ImageSource, box: Box | None = None, k: int = 10, where: Where | None = None
    ) -> list[Hit]:
        """The k items that the photo most likely shows, best first.

        Args:
            image: path, bytes, PIL image or uint8 array.
            box: the product in the photo, ``(x0, y0, x1, y1)`` in pixels of the image as stored;
                None if the photo is cropped already.
            k: how many; fewer come back only if fewer items (that match) are stored.
            where: filter, see `tigerfg.index.where`.

        Raises:
            InputError: the picture, the box, k or the filter cannot be used.
        """
        check_search(k, where)
        return self.search_embeddings(self.encode_query(image, box)[None], k, where)[0]

    def search_batch(
        self,
        images: Sequence[ImageSource],
        boxes: Sequence[Box | None] | None = None,
        k: int = 10,
        where: Where | None = None,
        on_error: str = "raise",
    ) -> list[list[Hit] | None]:
        """`search` for many photos at once.

        Args:
            boxes: one box or None a photo; None for no boxes at all.
            on_error: "raise" an InputError that names every photo that cannot be used, by
                position, before anything is searched; or "skip" them: each gives None in the
                result and a warning in the log.
        """
        check_search(k, where)
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error {on_error!r} is neither 'raise' nor 'skip'")
        one = isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, Iterable)
        if one or _is_picture(images):
            raise InputError("search_batch takes a list of images; use search for a single one")
        images = list(images)
        if boxes is not None and not isinstance(boxes, Iterable):
            raise InputError("boxes: give a list with one box, or None, an image")
        boxes = [None] * len(images) if boxes is None else list(boxes)
        if len(boxes) != len(images):
            raise InputError(f"{len(boxes)} boxes for {len(images)} images: give one box an image")
        queries = list(zip(images, boxes, strict=True))
        encoder = self._get_encoder()
        if on_error == "raise":
            return list(self.search_embeddings(encoder.encode_queries(queries), k, where))
        results = encoder.try_queries(queries)
        bad = {n: result for n, result in enumerate(results) if isinstance(result, InputError)}
        for position, error in bad.items():
            logger.warning("search_batch: query %d skipped: %s", position, error)
        good = [result for n, result in enumerate(results) if n not in bad]
        hits = iter(self.search_embeddings(np.stack(good), k, where) if good else ())
        return [None if n in bad else next(hits) for n in range(len(results))]

    def search_embeddings(
        self, embeddings: np.ndarray, k: int = 10, where: Where | None = None
    ) -> list[list[Hit]]:
        """`search` for embeddings (B, E) of unit length, as `encode_query` gives them."""
        k = check_search(k, where)  # faiss takes no numpy integer
        embeddings = unit_vectors(embeddings, "embeddings", self.model.embedding_dim)
        found = self._collection.search(embeddings, k, where)
        return [[Hit.from_match(*match) for match in matches] for matches in found]

    def encode_query(self, image: ImageSource, box: Box | None = None) -> np.ndarray:
        """The photo's embedding: float32 (E,), unit length."""
        return self._get_encoder().encode_query(image, box)

    def get(self, item_id: str) -> Item | None:
        """The stored item of this id, or None."""
        document = self._collection.document(item_id)
        return None if document is None else Item.from_dict(document)

    def count(self, where: Where | None = None) -> int:
        """How many items are stored, or match a filter (see `tigerfg.index.where`)."""
        if where is None:
            return len(self)
        parse_filter(where)
        return self._collection.count(where)

    def items(self, where: Where | None = None) -> Iterator[Item]:
        """The items in the order in which they were stored; of those alone that match a filter.

        Without a filter an item that is replaced meanwhile comes again: make a list of them before
        an `upsert` of all. With one, those come that matched at the first, but for what is removed
        or replaced before its turn.
        """
        if where is not None:
            parse_filter(where)
        self._collection.require_open()
        return map(Item.from_dict, self._collection.documents(where))

    def __contains__(self, item_id: object) -> bool:
        return isinstance(item_id, str) and self.get(item_id) is not None

    def __len__(self) -> int:
        return len(self._collection)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Item]:
        return self.items()

    @property
    def info(self) -> SearcherInfo:
        """What this catalogue is and what it runs on."""
        return SearcherInfo(
            **asdict(self._collection.meta),
            path=self._collection.path,
            items=len(self),
            engine=self._encoder.engine,
            read_only=self._collection.read_only,
            size_bytes=self._collection.size_bytes,
        )

    def stats(self) -> IndexStats:
        """What answers searches: exact or which index, and the recall and speed measured for it."""
        return self._collection.stats()

    def _get_encoder(self) -> Encoder:
        self._collection.require_open()
        return self._encoder.get()


def _is_picture(images: object) -> bool:
    """Whether an array is one picture rather than many."""
    shape = images.shape if isinstance(images, np.ndarray) else ()
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
