"""Training data straight from a suite's shards, however many there are."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tigerfg.benchmark.suite import PAIRS_A_GROUP, Manifest, Pair, pair_schema
from tigerfg.benchmark.suite.manifest import AGAIN
from tigerfg.errors import InputError
from tigerfg.images import check_box, letterbox, load_image
from tigerfg.text import item_text
from tigerfg.training.left_out import name_left_out
from tigerfg.training.pool import FULL_TEXT
from tigerfg.training.sources import SceneArrays
from tigerfg.training.texts import (
    UNKNOWN_WORDS,
    anchor_words,
    text_variants,
    with_unknown_words,
)

_OPEN_SHARDS = 32  # files, each with half a megabyte of footer in memory


def manifest_digest(directory: Path) -> str:
    """Short digest of a suite's training pairs: of what the manifest says of every shard.

    Raises:
        InputError: no suite.
    """
    manifest = Manifest.load(directory)
    told = json.dumps([manifest.products, manifest.shards])
    return hashlib.sha256(told.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class _Row:
    """A pair as pictures of the network's size; boxes in pixels of ``scene``, None if unknown.

    ``others`` are the other products of the picture: number, -1 if unknown, and box.
    """

    pair: Pair
    crop: np.ndarray
    crop_extent: tuple[int, int]
    scene: np.ndarray
    scene_extent: tuple[int, int]
    box: tuple[float, float, float, float] | None
    others: list[tuple[int, np.ndarray]]


class ShardPool:
    """A `tigerfg.training.sources.Source` over the training shards of a suite.

    A draw takes whole row groups in random order, so a batch is few contiguous reads, products of
    a batch differ as far as they do in the row groups, and near-twins stay side by side. Memory
    does not grow with the suite: one batch, and the footers and product ids of a few files.

    A row that cannot be used is replaced by the same row of the next row group, where none is
    usable by the row after it, and counted in ``skipped``, by its reason, once by every pool that
    comes upon it: a resumed run counts it again. So is a row group or a shard that cannot be read.
    The log names the first of every reason; rows are counted from 0 in their shard.

    Args:
        directory: a suite with all its shards, as `tigerfg suite` makes it.
        query_size, item_size: sides of the letterboxed pictures in px.
        unknown_words: share of texts drawn with invented words in them.

    Raises:
        InputError: as `training_manifest`.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(
        self,
        directory: str | Path,
        query_size: int,
        item_size: int,
        unknown_words: float = UNKNOWN_WORDS,
    ) -> None:
        self._directory = Path(directory)
        manifest = training_manifest(self._directory)
        self.products: int = manifest.products
        self.skipped: Counter[str] = Counter()
        self.unknown_words = unknown_words
        self._sizes = (query_size, item_size)
        self._names = [shard["name"] for shard in manifest.shards]
        groups = [-(-shard["rows"] // PAIRS_A_GROUP) for shard in manifest.shards]
        self._starts = np.concatenate([[0], np.cumsum(groups)])  # first row group of each shard
        self._lengths = np.concatenate([_lengths(shard["rows"]) for shard in manifest.shards])
        self._bad: set[tuple[int, int | None]] = set()  # (row group, row, or None for all of it)
        self._file = lru_cache(maxsize=_OPEN_SHARDS)(self._open)
        self._numbers = lru_cache(maxsize=_OPEN_SHARDS)(self._read_numbers)

    def draw(self, count: int, rng: np.random.Generator) -> ShardRows:
        """`count` rows of random row groups, each begun at a random row; deterministic by `rng`."""
        places: list[np.ndarray] = []
        left = count
        while left > 0:
            for group in rng.permutation(len(self._lengths)):
                length = int(self._lengths[group])
                start, taken = int(rng.integers(length)), min(left, length)
                rows = (start + np.arange(taken)) % length
                places.append(np.stack([np.full(taken, group), rows], axis=1))
                left -= taken
                if not left:
                    break
        chosen = np.concatenate(places) if places else np.zeros((0, 2), np.int64)
        return ShardRows(self, chosen, rng.integers(1 << 63, size=count))

    def read(self, places: np.ndarray) -> list[_Row]:
        """The usable rows at or after places (B, 2): row group and row in it (`_in_turn`)."""
        tables: dict[int, list[dict[str, Any]]] = {}
        return [self._usable(int(group), int(row), tables) for group, row in places]

    def _usable(self, group: int, row: int, tables: dict[int, list[dict[str, Any]]]) -> _Row:
        for at, chosen in self._in_turn(group, row):
            if (at, None) in self._bad or (at, chosen) in self._bad:
                continue
            if at not in tables and not self._read_group(at, tables):
                continue
            try:
                return self._decode(tables[at][chosen], self._numbers(self._shard(at)))
            except InputError as error:
                self._skip((at, chosen), str(error))
        raise InputError(
            f"{self._directory}: none of its rows can be used: delete the shards that "
            f"`tigerfg suite {self._directory} --verify` names, then {AGAIN}"
        )

    def _in_turn(self, group: int, row: int) -> Iterator[tuple[int, int]]:
        """All places: this row of this row group and the next ones, then the row after it..."""
        for further in range(PAIRS_A_GROUP):
            for step in range(len(self._lengths)):
                at = (group + step) % len(self._lengths)
                yield at, (row + further) % int(self._lengths[at])

    def _read_group(self, group: int, tables: dict[int, list[dict[str, Any]]]) -> bool:
        from pyarrow import ArrowException

        shard = self._shard(group)
        try:
            table = self._file(shard).read_row_group(group - int(self._starts[shard]))
            if len(table) != self._lengths[group] or not table.schema.equals(pair_schema()):
                raise InputError("other rows or columns than the manifest and the schema say")
            tables[group] = table.to_pylist()
        except (ArrowException, InputError, OSError, UnicodeDecodeError):
            self._skip(
                (group, None), "row group: its shard is missing, damaged or of another schema"
            )
            return False
        return True

    def _shard(self, group: int) -> int:
        return int(np.searchsorted(self._starts, group, side="right")) - 1

    def _read_numbers(self, shard: int) -> dict[str, int]:
        """Product id -> number of the shard's products, which are what its pictures show."""
        from pyarrow import ArrowException

        file, numbers = self._file(shard), {}
        for group in range(file.num_row_groups):
            with suppress(ArrowException, OSError, UnicodeDecodeError):  # told when it is drawn
                table = file.read_row_group(group, columns=["product_id", "product"])
                columns = (table[name].to_pylist() for name in ("product_id", "product"))
                numbers.update(zip(*columns, strict=True))
        return {name: n for name, n in numbers.items() if 0 <= n < self.products}

    def _open(self, shard: int) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(
            self._directory / self._names[shard], memory_map=True, page_checksum_verification=True
        )

    def _skip(self, place: tuple[int, int | None], reason: str) -> None:
        self._bad.add(place)
        self.skipped[reason] += 1
        group, row = place
        shard = self._shard(group)
        first = (group - int(self._starts[shard])) * PAIRS_A_GROUP
        what = f"rows from {first}" if row is None else f"row {first + row}"
        file = self._directory / self._names[shard]
        name_left_out(file, what, reason, self.skipped[reason])

    def _decode(self, values: dict[str, Any], numbers: dict[str, int]) -> _Row:
        """A row of the table; InputError with the reason, the same for all rows of its kind."""
        try:
            pair = Pair.from_row(values)
        except (TypeError, ValueError) as error:
            raise InputError("attributes: not a JSON object") from error
        if not isinstance(pair.attributes, dict):
            raise InputError("attributes: not a JSON object")
        if not 0 <= pair.product < self.products:
            raise InputError("product: not a number below the manifest's products")
        try:
            crop, crop_extent = letterbox(pair.query_image, self._sizes[0])
        except InputError as error:
            raise InputError("query_image: not a picture that can be decoded") from error
        try:
            picture = load_image(pair.item_image)
        except InputError as error:
            raise InputError("item_image: not a picture that can be decoded") from error
        scene, scene_extent = letterbox(picture, self._sizes[1])
        stored, scale = picture.size, self._sizes[1] / max(picture.size)
        try:
            x0, y0, x1, y1 = check_box(pair.target_box, stored)
        except InputError:
            box = None
        else:
            box = (x0 * scale, y0 * scale, x1 * scale, y1 * scale)
        others = [(numbers.get(p, -1), np.multiply(b, scale)) for p, b in pair.objects[1:]]
        return _Row(pair, crop, crop_extent, scene, scene_extent, box, others)


class ShardRows:
    """Rows of a draw: what `sources.Rows` says, read when first asked for anything."""

    def __init__(self, pool: ShardPool, places: np.ndarray, seeds: np.ndarray) -> None:
        self._pool, self._places, self._seeds = pool, places, seeds
        self._calls: Counter[str] = Counter()
        self._read: list[_Row] | None = None

    def __getitem__(self, rows: slice) -> ShardRows:
        return ShardRows(self._pool, self._places[rows], self._seeds[rows])

    @property
    def products(self) -> np.ndarray:
        """(B,) int64; reads the rows, since one that cannot be used is replaced."""
        return np.array([row.pair.product for row in self._rows], np.int64)

    def crops(self) -> tuple[np.ndarray, np.ndarray]:
        """The shopper's crops, at every second call the target cut out of the item pictures."""
        size = self._pool._sizes[0]
        call = self._next("crops")
        if call % 2 and self._rows:
            crops = [
                (row.crop, row.crop_extent)
                if row.box is None
                else letterbox(load_image(row.pair.item_image, row.pair.target_box), size)
                for row in self._rows
            ]
        else:
            crops = [(row.crop, row.crop_extent) for row in self._rows]
        return _pictures([c for c, _ in crops], size), _numbers([e for _, e in crops], 2)

    def scenes(self) -> SceneArrays:
        """The item pictures, the same at every call; another of the other products' boxes."""
        call = self._next("scenes")
        rows = self._rows
        others = []
        for row, seed in zip(rows, self._seeds, strict=True):
            rest = row.others or [(-1, np.zeros(4))]
            pick = int(np.random.default_rng((int(seed), 1)).integers(1 << 30)) + call
            others.append(rest[pick % len(rest)])
        return SceneArrays(
            _pictures([row.scene for row in rows], self._pool._sizes[1]),
            _numbers([row.scene_extent for row in rows], 2),
            _numbers([row.box or (0,) * 4 for row in rows], 4),
            _numbers([box for _, box in others], 4),
            np.array([number for number, _ in others], np.int64),
            np.array([row.box is not None for row in rows], bool),
        )

    def texts(self) -> list[str]:
        """The full text for half of the rows, else parts left out; some with invented words."""
        call = self._next("texts")
        chosen = []
        for row, seed in zip(self._rows, self._seeds, strict=True):
            rng = np.random.default_rng((int(seed), 2, call))
            item = row.pair.item()
            full = rng.random() < FULL_TEXT
            text = item_text(item) if full else text_variants(item, rng)[1]
            if rng.random() < self._pool.unknown_words:
                cluttered = len(row.pair.objects) > 1
                text = with_unknown_words(text, anchor_words(item), cluttered, rng)
            chosen.append(text)
        return chosen

    @property
    def _rows(self) -> list[_Row]:
        if self._read is None:
            self._read = self._pool.read(self._places)
        return self._read

    def _next(self, what: str) -> int:
        """How many calls for this there were before."""
        self._calls[what] += 1
        return self._calls[what] - 1


def training_manifest(directory: Path) -> Manifest:
    """The manifest of a suite that can be trained on.

    Raises:
        InputError: no suite, an incomplete one, one without training pairs, or a shard that is
            missing or of another size.
        MissingExtraError: pyarrow is not installed.
    """
    pair_schema()  # a missing pyarrow is told before the first batch
    manifest = Manifest.load(directory)
    wanted = manifest.settings["pairs"]
    if manifest.pairs != wanted or not wanted:
        there = f"{manifest.pairs} of {wanted} training pairs are there"
        raise InputError(f"{directory}: {there}: {AGAIN}")
    for shard in manifest.shards:
        file = directory / shard["name"]
        if not file.is_file():
            raise InputError(f"{file}: missing: {AGAIN}")
        if (size := file.stat().st_size) != shard["bytes"]:
            wrong = f"{size} bytes, and the manifest says {shard['bytes']}"
            raise InputError(f"{file}: {wrong}: delete it, then {AGAIN}")
    return manifest


def _lengths(rows: int) -> np.ndarray:
    """Rows of every row group of a shard."""
    return np.minimum(PAIRS_A_GROUP, rows - np.arange(0, rows, PAIRS_A_GROUP))


def _pictures(pictures: list[np.ndarray], size: int) -> np.ndarray:
    return np.asarray(pictures, np.uint8).reshape(-1, size, size, 3)


def _numbers(rows: list[Any], columns: int) -> np.ndarray:
    return np.asarray(rows, np.float32).reshape(-1, columns)
