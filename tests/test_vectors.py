"""Rows of stored vectors: which id lies where, and what is exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tigerfg.index.halves import widened
from tigerfg.index.vectors import VectorRows

DIM = 9


class Items:
    """What `VectorRows` asks of a store: items by id, the last of them the number of writes."""

    def __init__(self, path: Path) -> None:
        self.path, self.number, self.read_only, self.replaced = path, 0, False, False
        self.meta = SimpleNamespace(embedding_dim=DIM, catalog_id="a")
        self.vectors: dict[int, np.ndarray] = {}

    def put(self, number: int, steps: list[int]) -> None:
        """Items so far behind the last one each, their vectors random."""
        rng = np.random.default_rng(self.number)
        for step in steps:
            self.number += step
            self.vectors[self.number] = rng.standard_normal(DIM).astype(np.float16)
        self.number += number

    def ids(self) -> np.ndarray:
        return np.array(list(self.vectors), np.int64)

    def vectors_since(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        new = [known for known in self.vectors if known > number]
        for start in range(0, len(new), 3):
            ids = np.array(new[start : start + 3])
            yield ids, np.stack([self.vectors[known] for known in ids]).astype(np.float32)


WRITES = st.tuples(
    st.integers(0, 2),  # items put and removed again before anyone looks
    st.lists(st.sampled_from([1, 1, 1, 1, 2, 40, 1 << 31, 1 << 33]), max_size=9),
    st.sampled_from(["sync", "save", "reopen"]),
)


@given(history=st.lists(WRITES, min_size=1, max_size=6))
@settings(max_examples=60)
def test_every_id_has_its_vector(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[int, list[int], str]]
) -> None:
    """Ids without a gap, with some, far apart; in the file, beyond it, and read again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tigerfg.index.vectors.MOST_TAIL", 5)
        follow(Items(tmp_path_factory.mktemp("rows")), history)


def follow(items: Items, history: list[tuple[int, list[int], str]]) -> None:
    rows = VectorRows(items)
    query = np.random.default_rng(0).standard_normal((1, DIM)).astype(np.float32)
    for number, steps, then in history:
        items.put(number, steps)
        rows.sync()
        if then != "sync":
            rows.save()
        if then == "reopen":
            rows = VectorRows(items)
        ids = np.array(list(items.vectors), np.int64)[::-1]
        stored = [items.vectors[known] for known in ids]
        expected = np.array(stored, np.float64).reshape(-1, DIM)
        assert len(rows) == len(ids)
        assert rows.unsaved < 5
        np.testing.assert_array_equal(rows.stored(ids), expected)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(rows.get(ids), expected, rtol=1e-6)
        scores = rows.scores(query, ids[None])  # sums of 9 products, in float32
        np.testing.assert_allclose(scores[0], expected @ query[0], atol=3e-6)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("gone", [None, 2, 9])
def test_a_reader_maps_rows_that_were_saved_after_its_snapshot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fresh: bool, gone: int | None
) -> None:
    """But those of a fresh file that lacks an item of the snapshot: then the store is read."""
    items = Items(tmp_path)
    items.put(2, [1] * 6)
    VectorRows(items).save()
    before = Items(tmp_path)  # at that state
    before.read_only, before.number, before.vectors = True, items.number, dict(items.vectors)
    items.put(0, [1] * 5)
    items.vectors.pop(gone, None)
    VectorRows(items, fresh).save()
    rows, ids = VectorRows(before), np.array(list(before.vectors))
    lost = fresh and gone == 2
    assert (len(rows), rows.unsaved) == (6, 6 if lost else 0)
    assert ("another process has replaced their file" in caplog.text) == lost
    np.testing.assert_array_equal(rows.stored(ids), list(before.vectors.values()))
    before.number, before.vectors = items.number, items.vectors
    rows.sync()
    ids = np.array(list(items.vectors))
    np.testing.assert_array_equal(rows.stored(ids), list(items.vectors.values()))


def test_scores_of_tiny_values_and_zeros(tmp_path: Path) -> None:
    """Components that float16 holds with few bits, or not at all, beside large ones."""
    items = Items(tmp_path)
    items.put(0, [1, 1])
    tiny = np.array([1, 6e-8, -6e-8, 3e-5, -6e-5, 0, -0.0, 1e-3, 0.25], np.float16)
    items.vectors[1], items.vectors[2] = tiny, tiny * np.float16(-1)
    query = np.array([[0, 1, -1, 1, -1, 1, 1, 0, 0]], np.float32)
    wide = tiny.astype(np.float64)
    right = wide @ query[0] / np.linalg.norm(wide)
    found = VectorRows(items).scores(query, np.array([[1, 2, 1]]))
    np.testing.assert_allclose(found[0], [right, -right, right], rtol=1e-6)
    assert found[0, 0] == found[0, 2]


def test_halves_are_widened_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits.view(np.float16)
    halves = halves[np.isfinite(halves)]
    wide = widened(halves)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide.view(np.uint32), halves.astype(np.float32).view(np.uint32))
