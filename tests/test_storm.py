"""Eight threads write, delete and search at once: every result is that of one state of the history.

As a program it does as much as it is told: `python tests/test_storm.py 200000`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tigerfg.index.collection import Collection
from tigerfg.index.plan import IndexSettings
from tigerfg.index.stored import Record

DIM, K, IDS = 16, 10, 2000
GRID = np.ones((1, 1), np.float32)
FOREVER = np.iinfo(np.int64).max


class History:
    """Every vector that was ever stored, with the write that stored it and the one that removed it.

    A write is noted before it is made and counted when it has returned: a search that began after
    `committed` = a and ended before `begun` = b must give the result of one of the states a..b.
    """

    def __init__(self, most: int) -> None:
        self.lock = threading.Lock()
        self.begun = self.committed = 0
        self.size = 0
        self.item = np.zeros(most, np.int64)
        self.vector = np.zeros((most, DIM), np.float32)
        self.born = np.full(most, FOREVER)
        self.dead = np.full(most, FOREVER)
        self.row_of: dict[int, int] = {}
        self.edition: dict[int, int] = {}  # of an item's JSON form: the write that gave it

    def begin(self, put: dict[int, np.ndarray], removed: list[int]) -> None:
        """Note the next write."""
        self.begun += 1
        for item in {*removed, *put} & self.row_of.keys():
            self.dead[self.row_of.pop(item)] = self.begun
        for item, vector in put.items():
            row, self.size = self.size, self.size + 1
            stored = vector.astype(np.float16).astype(np.float32)
            self.item[row], self.vector[row] = item, stored / np.linalg.norm(stored)
            self.born[row], self.row_of[item] = self.begun, row
            self.edition[item] = self.begun

    def begin_update(self, items: list[int]) -> dict[int, int]:
        """Note that these items, those that are there, get another JSON form; returns editions."""
        self.begun += 1
        there = dict.fromkeys(self.row_of.keys() & set(items), self.begun)
        self.edition |= there
        return there

    def explains(self, query: np.ndarray, found: dict[int, float], first: int, last: int) -> bool:
        """Whether the items and scores found are the best of one of these states."""
        size = self.size
        scores = self.vector[:size] @ query
        for state in range(first, last + 1):
            alive = (self.born[:size] <= state) & (state < self.dead[:size])
            rows = np.flatnonzero(alive)
            best = rows[np.argsort(-scores[rows])[: K + 1]]
            exact = dict(zip(self.item[best].tolist(), scores[best].tolist(), strict=True))
            least = min(list(exact.values())[:K], default=0.0)
            if len(found) == min(K, len(rows)) and all(
                item in exact and abs(score - exact[item]) < 1e-5 and score > least - 1e-6
                for item, score in found.items()
            ):
                return True
        return False


def storm(path: Path, operations: int, threads: int, index: str) -> Counter[str]:
    """Mixed operations; returns how many of each kind; AssertionError for a wrong result."""
    collection = Collection.create(
        path,
        model="m",
        fingerprint="f" * 64,
        embedding_dim=DIM,
        settings=IndexSettings(index),
    )
    history = History(5 * operations + IDS)
    done: Counter[str] = Counter()
    wrong: list[str] = []
    left = iter(range(operations))

    def unit(rng: np.random.Generator) -> np.ndarray:
        vector = rng.standard_normal(DIM).astype(np.float32)
        return vector / np.linalg.norm(vector)

    def write(rng: np.random.Generator) -> None:
        chosen = np.unique(rng.integers(0, IDS, rng.integers(1, 6))).tolist()
        with history.lock:
            kind = rng.random()
            if kind < 0.2:
                done["update"] += 1
                there = history.begin_update(chosen)
                documents = {f"i{n}": document_of(n, history.begun) for n in chosen}
                assert collection.update(documents) == len(there)
            elif kind < 0.55:
                done["delete"] += 1
                history.begin({}, chosen)
                collection.delete(f"i{n}" for n in chosen)
            else:
                done["put"] += 1
                put = {n: unit(rng) for n in chosen}
                history.begin(put, [])
                collection.put(records_of(put, history.begun), replace=True)
            history.committed = history.begun

    def search(rng: np.random.Generator) -> None:
        query, where = unit(rng), None
        with history.lock:
            first, editions = history.committed, dict(history.edition)
        found = collection.search(query[None], K, where)[0]
        last = history.begun
        named = {match.document["n"]: match.score for match in found}
        with history.lock:
            done["search"] += 1
            if not history.explains(query, named, first, last):
                wrong.append(f"states {first}-{last}: {named}")
            wrong.extend(
                f"{match.document}, edition {editions[match.document['n']]} was stored"
                for match in found
                if match.document["edition"] < editions[match.document["n"]]
            )

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not wrong and next(left, None) is not None:
                (write if rng.random() < 0.5 else search)(rng)
        except BaseException as error:
            wrong.append(repr(error))
            raise

    with history.lock:
        first = {n: unit(np.random.default_rng(10**6 + n)) for n in range(IDS)}
        history.begin(first, [])
        collection.put(records_of(first, history.begun))
        history.committed = history.begun
    if index != "flat":
        collection.optimize()
        exhaustive(collection)
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong, wrong[0]
    collection.close()
    again = Collection.open(path, read_only=True)
    stored = {document["n"]: document["edition"] for document in again.documents()}
    assert stored == {n: history.edition[n] for n in history.row_of}
    again.close()
    return done


def document_of(number: int, edition: int) -> str:
    return json.dumps({"item_id": f"i{number}", "n": number, "edition": edition})


def records_of(vectors: dict[int, np.ndarray], edition: int) -> list[Record]:
    return [
        Record(f"i{n}", b"h", document_of(n, edition), vector, GRID)
        for n, vector in vectors.items()
    ]


def exhaustive(collection: Collection) -> None:
    """Probe all lists and refine all candidates, also of an index that is built later: exact."""
    keeper = collection._keeper
    original = keeper.current

    def current() -> object:
        index = original()
        if hasattr(index, "notes"):
            index.notes |= {"nprobe": index.lists, "factor": IDS}
        return index

    keeper.current = current  # type: ignore[method-assign]


@pytest.mark.parametrize("index", ["flat", "IVF8,RaBitQfs"])
def test_every_result_is_that_of_one_state(tmp_path: Path, index: str) -> None:
    done = storm(tmp_path / "cat", 1500, 8, index)
    assert sum(done.values()) == 1500
    assert min(done["put"], done["delete"], done["search"]) > 200
    assert done["update"] > 100


def test_the_model_of_the_history_is_not_satisfied_by_anything() -> None:
    history = History(10)
    one, other = np.eye(DIM, dtype=np.float32)[:2]
    history.begin({1: one, 2: other}, [])
    history.begin({}, [1])
    query = (one + 0.5 * other).astype(np.float32)
    both, rest = {1: 1.0, 2: 0.5}, {2: 0.5}
    assert history.explains(query, both, 1, 1)
    assert not history.explains(query, both, 2, 2)
    assert history.explains(query, rest, 2, 2)
    assert not history.explains(query, rest, 1, 1)
    assert history.explains(query, rest, 1, 2)
    assert not history.explains(query, {2: 0.6}, 2, 2)


if __name__ == "__main__":
    for kind in ("flat", "IVF8,RaBitQfs"):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            counts = storm(Path(folder) / "cat", int(sys.argv[1]), 8, kind)
            print(kind, dict(counts), f"{time.perf_counter() - started:.0f} s")
