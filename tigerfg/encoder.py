"""Pictures and items in, embeddings out: decoding on threads while the engine computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from tigerfg.engines.cpu import thread_count
from tigerfg.errors import EngineError, InputError
from tigerfg.images import ImageSource, crop_map, load_image, preprocess
from tigerfg.settings import whole_number
from tigerfg.stage_clock import StageClock
from tigerfg.text import item_text

if TYPE_CHECKING:
    from PIL import Image

    from tigerfg.attention_crop import AttentionCrop
    from tigerfg.bundle import Bundle
    from tigerfg.engines import Engine
    from tigerfg.records import Item

Query = tuple[ImageSource, Sequence[float] | None]
T = TypeVar("T")
R = TypeVar("R")


class EncodedItem(NamedTuple):
    """What a model says about one item."""

    embedding: np.ndarray  # float32 (E,), unit length
    grounding_map: np.ndarray  # float32 (rows, columns), the patches that show the picture


class _Pixels(NamedTuple):
    """One picture as `preprocess` returns a batch of one."""

    pixels: np.ndarray  # float32 (1, 3, S, S)
    patch_mask: np.ndarray  # bool (1, N)
    extents: np.ndarray  # int64 (1, 2)
    picture: Image.Image | None = None  # where it is looked at again; its longer side is S


class Encoder:
    """A bundle's two towers on one engine. Safe to call from several threads.

    Args:
        bundle: preprocessing and tokenizer.
        engine: computes; not closed by `close`.
        batch_size: most pictures of one engine call.
        workers: threads that decode; None for one per CPU this process may use, at most 8.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, batch_size: int = 32, workers: int | None = None
    ) -> None:
        self.bundle, self.engine = bundle, engine
        self._closed = False
        self.batch_size = whole_number(batch_size, "batch_size")
        if workers is None:
            workers = min(8, thread_count(None))
        workers = whole_number(workers, "workers")
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tigerfg-decode")

    def encode_query(self, image: ImageSource, box: Sequence[float] | None = None) -> np.ndarray:
        """Embedding float32 (E,) of one picture; InputError if it cannot be used."""
        result = self.try_queries([(image, box)])[0]
        if isinstance(result, InputError):
            raise result
        return result

    def encode_queries(self, queries: Sequence[Query]) -> np.ndarray:
        """Embeddings float32 (B, E) of (picture, box or None) pairs.

        Raises:
            InputError: names the position and the reason of every query that cannot be used.
        """
        results = self.try_queries(queries)
        bad = [(n, result) for n, result in enumerate(results) if isinstance(result, InputError)]
        if bad:
            lines = "; ".join(f"query {position}: {error}" for position, error in bad)
            raise InputError(lines) from bad[0][1]
        return np.stack(results) if results else self._no_embeddings()

    def try_queries(self, queries: Sequence[Query]) -> list[np.ndarray | InputError]:
        """As `encode_queries`, but each query gives its embedding (E,) or its error."""
        size = self.bundle.preprocessing.query_size

        def decode(query: Query) -> _Pixels | InputError:
            return self._decode(query[0], query[1], size)

        # A thread would only add latency to a single query.
        decoded = map(decode, queries) if len(queries) == 1 else self.ahead(decode, queries)
        results: list[np.ndarray | InputError] = []
        while batch := list(islice(decoded, self.batch_size)):
            good = [picture for picture in batch if isinstance(picture, _Pixels)]
            encoded = iter(self._run_queries(good) if good else ())
            results += [next(encoded) if isinstance(p, _Pixels) else p for p in batch]
        return results

    def encode_items(self, items: Sequence[Item]) -> list[EncodedItem | InputError]:
        """One result an item, in order: its encoding, or why it has none."""
        pairs = ((item, None) for item in items)
        return [result for batch in self.stream_items(pairs) for _, result in batch]

    def stream_items(
        self,
        tagged: Iterable[tuple[Item, T]],
        batch_size: int | None = None,
        clock: StageClock | None = None,
    ) -> Iterator[list[tuple[T, EncodedItem | InputError]]]:
        """Encode any number of items in batches, reading and decoding ahead of the engine.

        Args:
            tagged: items, each with a tag that comes back beside its result.
            batch_size: as in the constructor.
            clock: gets the time of the stages decode and encode.

        Yields:
            Batches in order. An item that cannot be encoded gives an InputError as its result and
            does not touch the others.
        """
        batch_size = batch_size or self.batch_size
        size, again = self.bundle.preprocessing.item_size, bool(self.bundle.attention_crop)
        clock = clock or StageClock()

        def decode(pair: tuple[Item, T]) -> tuple[Item, T, _Pixels | InputError]:
            item, tag = pair
            with clock.measure("decode"):
                return item, tag, self._decode(item.image, None, size, keep=again)

        decoded = self.ahead(decode, tagged, 2 * batch_size)
        while batch := list(islice(decoded, batch_size)):
            good = [(item, picture) for item, _, picture in batch if isinstance(picture, _Pixels)]
            with clock.measure("encode"):
                encoded = iter(self._run_items(*zip(*good, strict=True)) if good else ())
            yield [
                (tag, next(encoded) if isinstance(picture, _Pixels) else picture)
                for _, tag, picture in batch
            ]

    def ahead(
        self, function: Callable[[T], R], values: Iterable[T], window: int | None = None
    ) -> Iterator[R]:
        """``map(function, values)`` on the decoding threads, in order, ``window`` values ahead."""
        window = window or 2 * self.batch_size
        running: deque[Future[R]] = deque()
        try:
            for value in values:
                running.append(self._pool.submit(function, value))
                if len(running) > window:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except (CancelledError, RuntimeError) as error:  # of a pool that is shut down
            if self._closed:
                raise EngineError("the encoder was closed meanwhile") from error
            raise
        finally:
            for future in running:
                future.cancel()

    def close(self) -> None:
        """Stop the threads."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _decode(
        self, source: ImageSource, box: Sequence[float] | None, size: int, *, keep: bool = False
    ) -> _Pixels | InputError:
        spec = self.bundle.preprocessing
        try:
            image = load_image(source, box, target_size=size, interpolation=spec.interpolation)
            pixels = _Pixels(*preprocess([image], size, spec))
            if not keep:
                return pixels
            # A caller's image, which may be closed or painted on by then, is copied.
            return pixels._replace(picture=image.copy() if image is source else image)
        except InputError as error:
            return error

    def _run_queries(self, pictures: Sequence[_Pixels]) -> list[np.ndarray | InputError]:
        pixels, masks, _ = _batch(pictures)
        embeddings = self._checked(self.engine.encode_queries(pixels, masks), pixels)
        return [_unusable(embedding) or embedding for embedding in embeddings]

    def _run_items(
        self, items: Sequence[Item], pictures: Sequence[_Pixels]
    ) -> list[EncodedItem | InputError]:
        pixels, masks, extents = _batch(pictures)
        token_ids, token_mask = self.bundle.tokenizer([item_text(item) for item in items])
        encoding = self.engine.encode_items(pixels, masks, token_ids, token_mask)
        spec = self.bundle.preprocessing
        results = [
            _unusable(embedding)
            or EncodedItem(embedding, crop_map(values, extent, spec.item_size, spec.patch))
            for embedding, values, extent in zip(
                self._checked(encoding.embedding, pixels),
                encoding.grounding_map,
                extents,
                strict=True,
            )
        ]
        crop = self.bundle.attention_crop
        return self._look_again(crop, results, pictures) if crop else results

    def _look_again(
        self,
        crop: AttentionCrop,
        items: Sequence[EncodedItem | InputError],
        pictures: Sequence[_Pixels],
    ) -> list[EncodedItem | InputError]:
        """The items with the embeddings of their attention crops in theirs."""
        spec = self.bundle.preprocessing
        good = [
            (item, pixels.picture)
            for item, pixels in zip(items, pictures, strict=True)
            if isinstance(item, EncodedItem)
        ]
        parts = [crop.cut(picture, item.grounding_map, spec.patch) for item, picture in good]
        prepared = [_Pixels(*preprocess([part], spec.query_size, spec)) for part in parts]
        seen = iter(self._run_queries(prepared) if prepared else ())
        return [
            _joined(crop, item, next(seen)) if isinstance(item, EncodedItem) else item
            for item in items
        ]

    def _checked(self, embeddings: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        expected = (len(pixels), self.bundle.embedding_dim)
        if embeddings.shape != expected:
            raise EngineError(
                f"the engine returned embeddings of shape {embeddings.shape} instead of "
                f"{expected}: export the bundle again"
            )
        return embeddings

    def _no_embeddings(self) -> np.ndarray:
        return np.zeros((0, self.bundle.embedding_dim), np.float32)


def _batch(pictures: Sequence[_Pixels]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, patch masks and extents of several pictures, as `preprocess` returns a batch."""
    pixels, masks, extents, _ = zip(*pictures, strict=True)
    return np.concatenate(pixels), np.concatenate(masks), np.concatenate(extents)


def _joined(
    crop: AttentionCrop, item: EncodedItem, part: np.ndarray | InputError
) -> EncodedItem | InputError:
    if isinstance(part, InputError):
        return part
    embedding = crop.join(item.embedding, part)
    return _unusable(embedding) or item._replace(embedding=embedding)


def _unusable(embedding: np.ndarray) -> InputError | None:
    """An error for an embedding that is not of unit length, NaN included; else None."""
    norm = float(np.linalg.norm(embedding))
    if abs(norm - 1) < 0.01:
        return None
    return InputError(f"the model gave an embedding of length {norm:.3g} instead of 1 for it")
