"""What filters selected is kept until something is written, and no longer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tigerfg.index import selected
from tigerfg.index.collection import Collection
from tigerfg.index.selected import SelectedIds
from tigerfg.index.store import Store
from tigerfg.index.stored import Record


def record(name: str, colour: object) -> Record:
    text = json.dumps({"item_id": name, "attributes": {"color": colour}})
    vector = np.array([1, 0, 0, 0], np.float32)
    return Record(name, b"", text, vector, np.ones((1, 1), np.float32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "shop"
    with_items = Store.create(path, model="m", fingerprint="0" * 64, embedding_dim=4)
    with_items.put([record(f"i{n}", colour) for n, colour in enumerate(("red", "blue", 1, "1a"))])
    with_items.close()
    return path


def test_a_filter_is_read_once_and_again_after_a_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    select = Store.select
    monkeypatch.setattr(Store, "select", lambda s, where: read.append(where) or select(s, where))
    query = np.array([[1, 0, 0, 0]], np.float32)
    collection = Collection.open(path)
    try:

        def found(value: object) -> list[str]:
            [line] = collection.search(query, 10, {"color": value})
            return [match.document["item_id"] for match in line]

        assert found("red") == found("red") == ["i0"]
        assert found(1) == ["i2"]
        assert found("1") == []  # text, and the stored one is a number
        assert len(read) == 3
        collection.put([record("i4", "red")])
        assert found("red") == ["i0", "i4"]
        collection.delete(["i0"])
        assert found("red") == ["i4"]
        assert len(read) == 5
    finally:
        collection.close()


def test_another_process_writes(path: Path) -> None:
    writer, reader = Store.open(path), Store.open(path, read_only=True)
    kept = SelectedIds()
    with reader.snapshot():
        assert len(kept.of(reader, {"color": "red"})) == 1
    writer.put([record("i4", "red")])
    with reader.snapshot():
        assert len(kept.of(reader, {"color": "red"})) == 2
    writer.close()
    reader.close()


@pytest.mark.parametrize("limit", ["MOST_IDS", "MOST_FILTERS"])
def test_the_oldest_go_first(path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(selected, limit, 2)
    store, kept = Store.open(path, read_only=True), SelectedIds()
    for colour in ("red", "blue", "red", 1):
        assert len(kept.of(store, {"color": colour})) == 1
    assert len(kept._kept) == 2
    read: list[object] = []
    monkeypatch.setattr(Store, "select", lambda s, term: read.append(term) or np.zeros(0, np.int64))
    for colour in (1, "red"):
        kept.of(store, {"color": colour})
    assert not read
    kept.of(store, {"color": "blue"})
    assert len(read) == 1
    with pytest.raises(ValueError, match="read-only"):
        kept.of(store, {"color": 1})[0] = 7
    store.close()
