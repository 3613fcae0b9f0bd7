"""Search on GPUs: everything but faiss's own, on stand-ins; and on GPUs where there are any."""

from __future__ import annotations

import logging

import faiss
import numpy as np
import pytest

from tigerfg.errors import CatalogError, InputError
from tigerfg.index import gpu, gpu_index, keeper
from tigerfg.index.collection import Collection
from tigerfg.index.flat import FlatIndex
from tigerfg.index.gpu import MOST, FaissGpus, GpuSettings, code_bytes
from tigerfg.index.gpu_index import GpuIndex
from tigerfg.index.store import Store
from tigerfg.index.stored import Record

DIM = 32
LEAST = 0.9  # recall of 40 queries where nprobe is tuned to 0.95
ON_GPU = pytest.mark.skipif(
    not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()),
    reason="faiss finds no GPU",
)


class Limited:
    """A faiss index as it is on a GPU: at most 2,048 candidates, no parameters, no removal."""

    def __init__(self, index) -> None:
        self._index, self.nprobe = index, 1

    def train(self, vectors: np.ndarray) -> None:
        self._index.train(vectors)

    def add_with_ids(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        self._index.add_with_ids(vectors, ids)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert k <= MOST
        assert self.nprobe <= MOST
        self._index.nprobe = self.nprobe
        return self._index.search(queries, k)


class StandIns:
    """So many GPUs; `fails` names what does not fit."""

    def __init__(self, count: int, fails: tuple[str, ...] = ()) -> None:
        self.count, self.fails = count, fails

    def lists(self, device: int, dim: int, lists: int, items: int) -> Limited:
        return self._make("lists", dim, f"IVF{lists},SQfp16")

    def codes(self, device: int, dim: int, lists: int, items: int) -> Limited:
        return self._make("codes", dim, f"IVF{lists},PQ{code_bytes(dim)}np")

    def _make(self, what: str, dim: int, factory: str) -> Limited:
        if what in self.fails:
            raise RuntimeError("Error in alloc at StandardGpuResources.cpp: Error: out of memory")
        return Limited(faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT))


class CodesOnly(FaissGpus):
    """GPUs on which float16 vectors do not fit."""

    def lists(self, device: int, dim: int, lists: int, items: int) -> None:
        raise RuntimeError("Error: out of memory")


GPUS = [
    pytest.param(lambda: StandIns(1), id="one"),
    pytest.param(lambda: StandIns(3), id="three"),
    pytest.param(lambda: StandIns(2, ("lists",)), id="codes"),
    pytest.param(lambda: FaissGpus(64 << 20), id="faiss", marks=[ON_GPU, pytest.mark.gpu]),
    pytest.param(lambda: CodesOnly(0), id="faiss codes", marks=[ON_GPU, pytest.mark.gpu]),
]


def vectors_of(count: int, seed: int = 0) -> np.ndarray:
    """The same clusters for all seeds."""
    centres = np.random.default_rng(99).standard_normal((30, DIM))
    rng = np.random.default_rng(seed)
    found = centres[rng.integers(0, 30, count)] + 0.5 * rng.standard_normal((count, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def put(store: Store | Collection, vectors: np.ndarray, first: int = 0) -> None:
    grid = np.ones((1, 1), np.float32)
    store.put(
        [
            Record(f"i{n}", b"", f'{{"item_id": "i{n}", "n": {n}}}', vector, grid)
            for n, vector in enumerate(vectors, first)
        ]
    )


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "cat", model="m", fingerprint="f", embedding_dim=DIM)
    yield store
    store.close()


def check(
    index: GpuIndex, exact: FlatIndex, allowed: np.ndarray | None = None, k: int = 10
) -> float:
    """Scores are exact and results as many as there should be; returns the recall."""
    queries = vectors_of(40, seed=9)
    scores, ids = index.search(queries, k, allowed)
    wanted_scores, wanted = exact.search(queries, k, allowed)
    assert ids.shape == wanted.shape
    assert (np.diff(scores, axis=1) <= 0).all()
    hits = 0
    for line, row, best, own in zip(scores, ids, wanted_scores, wanted, strict=True):
        assert len(set(row.tolist())) == len(row)
        assert allowed is None or np.isin(row, allowed).all()
        # the stand-ins multiply in float16: 2^-12 of a score and more
        assert (line <= best + 3e-4).all(), "better than the exact results"
        hits += len(set(row.tolist()) & set(own.tolist()))
    return hits / wanted.size


@pytest.mark.parametrize("make", GPUS)
@pytest.mark.parametrize("replicate", [False, True])
def test_results_are_those_of_exact_search(store, make, replicate):
    put(store, vectors_of(3000))
    with store.snapshot():
        exact = FlatIndex(store)
        index = GpuIndex(make(), store, exact, 0.95, replicate)
        assert index.recall >= 0.95
        assert check(index, exact) >= LEAST
        assert check(index, exact, k=1) >= LEAST
        by_items = index.nprobe
    centres = vectors_of(3000)[:60].reshape(2, 30, DIM).sum(axis=0)  # between two clusters
    store.keep(centres / np.linalg.norm(centres, axis=1, keepdims=True), None)
    with store.snapshot():
        by_queries = GpuIndex(make(), store, exact, 0.95, replicate)
        assert by_queries.recall >= 0.95
        assert by_queries.nprobe > by_items
    store.delete([f"i{n}" for n in range(0, 500)])
    put(store, vectors_of(400, seed=3), 5000)
    with store.snapshot():
        exact.sync()
        index.sync(exact)
        assert len(index) == len(exact) == 2900
        assert not index.outdated
        assert check(index, exact) >= LEAST
        ids = store.ids()
        rng = np.random.default_rng(1)
        for count in (1450, 300, 30, 11, 10, 3, 1):
            allowed = np.sort(rng.choice(ids, count, replace=False))
            assert check(index, exact, allowed) >= (LEAST if count > 100 else 1.0)
        assert index.search(vectors_of(2), 10, np.zeros(0, np.int64))[1].shape == (2, 0)
        assert index.search(vectors_of(0), 10)[1].shape == (0, 0)
        assert index.search(vectors_of(2), 10_000)[1].shape == (2, 2900)
    store.delete([f"i{n}" for n in range(500, 1500)])
    with store.snapshot():
        exact.sync()
        index.sync(exact)
        assert index.outdated
        assert check(index, exact) >= LEAST
    index.close()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("replicate", [False, True])
def test_a_search_in_steps_gives_the_same(store, monkeypatch, count, replicate):
    put(store, vectors_of(3000))
    queries = vectors_of(40, seed=9)
    with store.snapshot():
        index = GpuIndex(StandIns(count), store, FlatIndex(store), 0.95, replicate)
        scores, ids = index.search(queries, 10)
        for pairs in (1, 10 * index.nprobe * 7):
            monkeypatch.setattr(gpu_index, "PAIRS", pairs)
            stepped = index.search(queries, 10)
            np.testing.assert_array_equal(stepped[1], ids)
            np.testing.assert_allclose(stepped[0], scores, rtol=1e-6)
    index.close()


@pytest.mark.parametrize(
    ("dim", "count"), [(32, 8), (128, 32), (256, 64), (384, 96), (512, 64), (768, 96), (2048, 64)]
)
def test_codes_are_such_as_faiss_has_kernels_for(dim, count):
    assert code_bytes(dim) == count


def test_growth_makes_the_copy_outdated(store):
    put(store, vectors_of(500))
    with store.snapshot():
        exact = FlatIndex(store)
        index = GpuIndex(StandIns(2), store, exact, 0.9)
    put(store, vectors_of(600, seed=1), 500)
    with store.snapshot():
        exact.sync()
        index.sync(exact)
        assert index.outdated
    index.close()


def test_what_does_not_fit_is_a_clear_error(store):
    put(store, vectors_of(300))
    with store.snapshot(), pytest.raises(CatalogError, match="on a GPU: out of memory"):
        GpuIndex(StandIns(1, ("lists", "codes")), store, FlatIndex(store), 0.9)


def test_memory_errors_of_any_kind_lead_to_codes(store, monkeypatch):
    def lists(*arguments: int) -> None:
        raise MemoryError("std::bad_alloc")

    put(store, vectors_of(300))
    monkeypatch.setattr(StandIns, "lists", lists)
    with store.snapshot():
        index = GpuIndex(StandIns(1), store, FlatIndex(store), 0.9)
    assert index.kind.endswith("PQ8")
    index.close()


@pytest.fixture
def small(monkeypatch):
    """Every catalogue is large enough for a GPU."""
    monkeypatch.setattr(keeper, "FLAT_MOST", 10)


def test_a_collection_searches_on_the_gpus_it_finds(tmp_path, monkeypatch, small):
    monkeypatch.setattr(GpuSettings, "find", lambda self: StandIns(2))
    collection = Collection.create(
        tmp_path / "cat",
        model="m",
        fingerprint="f",
        embedding_dim=DIM,
        gpu=GpuSettings(),
    )
    vectors = vectors_of(600)
    put(collection, vectors)
    assert collection.stats().gpu is None
    lines = collection.search(vectors[:20], 3)
    assert [line[0].document["n"] for line in lines] == list(range(20))
    assert collection.stats().gpu["kind"].endswith("SQfp16")
    collection.delete(["i0"])
    [line] = collection.search(vectors[:1], 3)
    assert line[0].document["n"] != 0
    [line] = collection.search(vectors[:1], 3, {"n": {"$lt": 6}})
    assert len(line) == 3
    assert all(match.document["n"] < 6 for match in line)
    collection.delete([f"i{n}" for n in range(1, 300)])  # the copy is made anew
    [line] = collection.search(vectors[400:401], 1)
    assert line[0].document["n"] == 400
    assert collection.stats().gpu is not None
    collection.optimize(vectors[300:305])  # the copy is tuned anew
    assert collection.stats().gpu is None
    [line] = collection.search(vectors[400:401], 1)
    assert line[0].document["n"] == 400
    assert collection.stats().gpu is not None
    collection.close()


def test_a_gpu_that_refuses_costs_a_warning_or_an_error(tmp_path, monkeypatch, small, caplog):
    monkeypatch.setattr(GpuSettings, "find", lambda self: StandIns(1, ("lists", "codes")))
    made = {"model": "m", "fingerprint": "f", "embedding_dim": DIM}
    collection = Collection.create(tmp_path / "auto", **made, gpu=GpuSettings())
    put(collection, vectors_of(50))
    with caplog.at_level(logging.WARNING, "tigerfg"):
        assert len(collection.search(vectors_of(1), 3)[0]) == 3
        assert len(collection.search(vectors_of(1), 3)[0]) == 3
    assert caplog.text.count("searching on the CPU") == 1
    collection.close()
    strict = Collection.create(tmp_path / "strict", **made, gpu=GpuSettings("require"))
    put(strict, vectors_of(50))
    with pytest.raises(CatalogError, match="out of memory"):
        strict.search(vectors_of(1), 3)
    strict.close()


@pytest.fixture
def closed(monkeypatch):
    """The copies on GPUs that were closed, in turn."""
    closed, close = [], GpuIndex.close
    monkeypatch.setattr(GpuIndex, "close", lambda self: closed.append(self) or close(self))
    return closed


@pytest.mark.parametrize("error", [RuntimeError("Error: out of memory"), MemoryError()])
@pytest.mark.parametrize("when", ["construction", "tuning", "catching up", "search"])
@pytest.mark.parametrize("count", [1, 2])
def test_gpus_that_fail_at_any_time(
    tmp_path, monkeypatch, small, caplog, closed, error, when, count
):
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(GpuSettings, "find", lambda self: StandIns(count))
    made = {"model": "m", "fingerprint": "f", "embedding_dim": DIM}
    place = {"construction": "train", "catching up": "add_with_ids"}.get(when, "search")
    for use in ("auto", "require"):
        closed.clear()
        collection = Collection.create(tmp_path / use, **made, gpu=GpuSettings(use))
        put(collection, vectors_of(900))
        if when in ("catching up", "search"):
            collection.search(vectors_of(1), 3)
            put(collection, vectors_of(1, seed=4), 900)
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "tigerfg"):
            patch.setattr(Limited, place, fail)
            if use == "require":
                for _ in range(2):
                    with pytest.raises(CatalogError, match=r"searched on a GPU: (out of|Memory)"):
                        collection.search(vectors_of(1), 3)
            else:
                assert len(collection.search(vectors_of(1), 3)[0]) == 3
        if use == "auto":
            assert len(collection.search(vectors_of(1), 3)[0]) == 3  # GPUs are not tried again
            assert collection.stats().gpu is None
            assert caplog.text.count("searching on the CPU") == 1
        assert closed
        assert closed[0]._parts == []
        collection.close()


def test_an_interrupted_copy_is_closed(tmp_path, monkeypatch, small, closed):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GpuSettings, "find", lambda self: StandIns(1))
    collection = Collection.create(
        tmp_path / "cat", model="m", fingerprint="f", embedding_dim=DIM, gpu=GpuSettings()
    )
    put(collection, vectors_of(50))
    collection.search(vectors_of(1), 3)
    put(collection, vectors_of(1, seed=4), 50)
    with monkeypatch.context() as patch:
        patch.setattr(Limited, "add_with_ids", interrupt)
        with pytest.raises(KeyboardInterrupt):
            collection.search(vectors_of(1), 3)
    assert len(closed) == 1
    assert len(collection.search(vectors_of(1, seed=4), 51)[0]) == 51  # a new one
    assert collection.stats().gpu is not None
    collection.close()


def test_gpus_that_faiss_cannot_use(monkeypatch, caplog):
    def refuse(temporary: int) -> None:
        raise RuntimeError("Error in alloc: Error: out of memory\nat line 1")

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(gpu, "FaissGpus", refuse)
    with caplog.at_level(logging.INFO, "tigerfg"):
        assert GpuSettings().find() is None
    assert "searching on the CPU: faiss cannot use one: out of memory" in caplog.text
    with pytest.raises(CatalogError, match="and faiss cannot use one: out of memory"):
        GpuSettings("require").find()


def test_a_required_gpu_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    made = {"model": "m", "fingerprint": "f", "embedding_dim": DIM}
    with pytest.raises(CatalogError, match="a GPU is required for searching, and this faiss"):
        Collection.create(tmp_path / "cat", **made, gpu=GpuSettings("require"))
    Collection.open(tmp_path / "cat").close()  # made, whole, and let go


def test_bad_settings():
    with pytest.raises(InputError, match="gpu 'yes'"):
        GpuSettings("yes")
    with pytest.raises(InputError, match="temporary"):
        GpuSettings(temporary=-1)
