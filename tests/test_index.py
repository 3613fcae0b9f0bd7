"""The approximate index: found, filtered, updated, reopened, damaged, built in the background."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tigerfg.errors import CatalogError, InputError
from tigerfg.index import ivf, keeper, later, plan, probing
from tigerfg.index.build import Point, next_nprobe, tune
from tigerfg.index.collection import Collection
from tigerfg.index.photo_like import COSINE, photo_like
from tigerfg.index.plan import IndexSettings, list_count
from tigerfg.index.refine import refined
from tigerfg.index.snapshot import copy_catalog
from tigerfg.index.store import Store
from tigerfg.index.stored import Record
from tigerfg.index.vectors import STAMP_FILE, VectorRows

DIM, LISTS = 32, 16
GRAPH = f"IVF{LISTS}_HNSW4,RaBitQfs"
FACTORIES = (
    f"IVF{LISTS},RaBitQfs",
    f"IVF{LISTS},PQ16x4fs",
    f"OPQ16,IVF{LISTS},PQ16x4fs",
    GRAPH,
    f"OPQ16,IVF{LISTS}_HNSW4,PQ16x4fs",
    f"SVD,IVF{LISTS},PQx4fs",
    f"SVD24,IVF{LISTS}_HNSW4,RaBitQfs2",
)
SETTINGS = IndexSettings(GRAPH, 0.98)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Clustered, of length 1."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, DIM))
    values = centres[rng.integers(0, 40, count)] + 0.6 * rng.standard_normal((count, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def of_other_kinds(count: int) -> np.ndarray:
    """Clustered around other centres than `vectors`."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal((40, DIM))[rng.integers(0, 40, count)]
    values = values + 0.6 * rng.standard_normal((count, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def as_stored(values: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """Rounded to float16, and of length 1 again."""
    rounded = values.astype(np.float16).astype(dtype)
    return rounded / np.linalg.norm(rounded, axis=1, keepdims=True)


def records(first: int, values: np.ndarray) -> list[Record]:
    grid = np.ones((1, 1), np.float32)
    return [
        Record(f"i{n}", b"h", json.dumps({"item_id": f"i{n}", "n": n}), value, grid)
        for n, value in enumerate(values, first)
    ]


def create(path: Path, choice: IndexSettings = SETTINGS) -> Collection:
    return Collection.create(
        path, model="m", fingerprint="f" * 64, embedding_dim=DIM, settings=choice
    )


def numbers(matches: list) -> list[int]:
    return [match.document["n"] for match in matches]


def recall(collection: Collection, held: dict[int, np.ndarray], queries: np.ndarray) -> float:
    """Of the 10 nearest; every result must be stored, once, with its exact score."""
    names, matrix = np.array(list(held)), np.stack(list(held.values()))
    matrix = as_stored(matrix)
    hits = 0
    for query, found in zip(queries, collection.search(queries, 10), strict=True):
        scores = matrix @ query
        best = numbers(found)
        assert len(best) == len(set(best)) == min(10, len(held))
        exact = dict(zip(names.tolist(), scores.tolist(), strict=True))
        assert [m.score for m in found] == pytest.approx([exact[n] for n in best], abs=1e-5)
        assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)
        hits += len(set(best) & set(names[np.argsort(-scores)[:10]].tolist()))
    return hits / (10 * len(queries))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cat"


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_kind_finds_updates_and_reopens(path: Path, factory: str) -> None:
    values = vectors(3000)
    held = dict(enumerate(values[:2000]))
    collection = create(path, IndexSettings(factory, 0.95))
    collection.put(records(0, values[:2000]))
    assert collection.stats().kind == "flat"
    stats = collection.optimize()
    kind = factory.replace("SVD,", f"SVD{DIM},").replace("PQx", f"PQ{DIM}x")
    assert (stats.kind, stats.items) == (kind, 2000)
    assert stats.recall is not None
    assert stats.recall >= 0.95
    assert {"nprobe", "factor", "recall", "error", "ms"} == stats.curve[0].keys()
    queries = vectors(50, seed=1)
    assert recall(collection, held, queries) >= 0.93  # tuned on others: within their noise
    collection.put(records(2000, values[2000:]))
    held |= dict(enumerate(values[2000:], 2000))
    assert numbers(collection.search(values[2500][None], 1)[0]) == [2500]
    gone = range(0, 3000, 3)
    collection.delete(f"i{n}" for n in gone)
    for n in gone:
        del held[n]
    assert recall(collection, held, queries) >= 0.9
    collection.flush()
    collection.close()
    with Reopened(path) as again:
        assert again.stats().kind == kind
        assert len(again) == again.stats().items == 2000
        assert recall(again, held, queries) >= 0.9


class Reopened:
    """A collection as a context manager."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.collection = Collection.open(path, read_only)

    def __enter__(self) -> Collection:
        return self.collection

    def __exit__(self, *_: object) -> None:
        self.collection.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "cat"
    collection = create(path)
    collection.put(records(0, vectors(6000)))
    collection.delete(f"i{n}" for n in range(5000, 5500))
    collection.optimize()
    collection.delete(f"i{n}" for n in range(5500, 6000))  # tombstones
    collection.close()
    return path


@pytest.mark.parametrize("allowed", [0, 1, 5, 50, 4000, 4500, 5000])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_k_results_whenever_k_items_match(filled: Path, allowed: int, k: int) -> None:
    where = {"n": {"$gte": 5000 - allowed}}
    with Reopened(filled, read_only=True) as collection:
        for found in collection.search(vectors(4, seed=3), k, where):
            assert len(found) == min(k, allowed)
            assert all(n >= 5000 - allowed for n in numbers(found))


def test_few_allowed_items_are_compared_exactly(filled: Path) -> None:
    values, queries = vectors(6000), vectors(20, seed=4)
    with Reopened(filled, read_only=True) as collection:
        found = collection.search(queries, 20, {"n": {"$lt": 3000}})
    for query, matches in zip(queries, found, strict=True):
        best = np.argsort(-(values[:3000] @ query))[:20]
        assert len(set(numbers(matches)) & set(best.tolist())) >= 19  # fp16 may swap the last two


@settings(max_examples=12)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "replace", "delete", "flush"]), st.integers(0, 400)),
        max_size=12,
    )
)
def test_any_history_is_found_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int]]
) -> None:
    """With all lists probed and every candidate refined, search is exact whatever happened."""
    path = tmp_path_factory.mktemp("history") / "cat"
    held = dict(enumerate(vectors(700)))
    collection = create(path)
    collection.put(records(0, vectors(700)))
    collection.optimize()
    for step, (what, number) in enumerate(history):
        if what == "put":
            first = 1000 + 100 * step
            new = vectors(1 + number % 60, seed=first)
            collection.put(records(first, new))
            held |= dict(enumerate(new, first))
        elif what == "replace":
            [new] = vectors(1, seed=5000 + step)
            collection.put(records(number, new[None]), replace=True)
            held[number] = new
        elif what == "delete":
            collection.delete(f"i{n}" for n in range(number, number + 150))
            held = {n: value for n, value in held.items() if not number <= n < number + 150}
        else:
            collection.close()
            collection = Collection.open(path)
    index = collection._keeper.current()
    index.notes |= {"nprobe": LISTS, "factor": 10_000}
    assert recall(collection, held, vectors(5, seed=7)) >= 0.98  # fp16 may swap the tenth
    collection.close()


def test_items_of_other_kinds_are_found_as_well_after_a_while(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is measured, and built anew; more items of the same kinds leave it as it is."""
    factory = f"SVD,IVF{4 * LISTS},PQx4fs"
    collection = create(path, IndexSettings(factory, 0.95))
    values = vectors(6000)
    collection.put(records(0, values[:4000]))
    collection.optimize()
    with caplog.at_level(logging.INFO, "tigerfg"):
        collection.put(records(4000, values[4000:4400]))
        collection.search(values[:1], 1)
        collection._keeper.wait()
    (line,) = [r.getMessage() for r in caplog.records if "came after" in r.getMessage()]
    assert "400 items" in line
    assert not line.endswith("built anew")
    index = collection._keeper.current()
    assert (index.notes["trained"], index.compared, index.later) == (4000, 400, 400)
    others = of_other_kinds(400)
    held = dict(enumerate([*values[:4400], *others]))
    queries = photo_like(others[:100])
    collection._keeper._builder = threading.current_thread()  # nothing is begun meanwhile
    collection.put(records(4400, others))
    before = recall(collection, held, queries)
    collection._keeper._builder = None
    collection.search(values[:1], 1)
    collection._keeper.wait()
    assert collection._keeper.current().notes["trained"] == 4800
    assert recall(collection, held, queries) > max(0.9, before + 0.1)
    collection.close()


def measured(path: Path) -> Collection:
    """An index of 2,000 items and 200 that came later, which it finds as well."""
    collection = create(path, IndexSettings(f"SVD,IVF{LISTS},PQx4fs", 0.95))
    values = vectors(2200)
    collection.put(records(0, values[:2000]))
    collection.optimize()
    collection.put(records(2000, values[2000:]))
    collection.search(values[:1], 1)
    collection._keeper.wait()
    assert collection._keeper.current().compared == 200
    return collection


def test_what_was_measured_is_not_measured_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(path).close()
    with Reopened(path) as again:
        monkeypatch.setattr(later, "ask", lambda *_: pytest.fail("measured again"))
        again.search(vectors(1), 1)
        again._keeper.wait()
        assert again._keeper.current().compared == 200
        assert not again._keeper.due()


def test_closing_ends_a_measurement(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next session begins it again."""
    monkeypatch.setattr(later, "LEAST", 1000)
    collection = create(path, IndexSettings(f"SVD,IVF{LISTS},PQx4fs", 0.95))
    collection.put(records(0, vectors(2000)))
    collection.optimize()
    collection.put(records(2000, vectors(200, seed=4)))
    begun, ask = threading.Event(), later.ask

    def slow(store: Store, last: int, stop: Callable[[], bool]) -> later.Asked | None:
        begun.set()
        while not stop():
            pass
        return ask(store, last, stop)

    monkeypatch.setattr(later, "LEAST", 100)
    monkeypatch.setattr(later, "ask", slow)
    collection.search(vectors(1), 1)
    assert begun.wait(10)
    collection.close()
    assert not (path / later.STAMP_FILE).exists()
    monkeypatch.setattr(later, "ask", ask)
    with Reopened(path) as again:
        again.search(vectors(1), 1)
        again._keeper.wait()
        assert again._keeper.current().compared == 200


def test_a_measurement_that_fails_is_told_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(later, "compare", broken)
    measured(path).close()
    assert "what came later was not measured: MemoryError" in caplog.text
    assert not (path / later.STAMP_FILE).exists()


def test_readers_follow_an_index_that_was_built_for_items_of_other_kinds(path: Path) -> None:
    """Before they are worn: their own finds those items less."""
    collection = create(path, IndexSettings(f"SVD,IVF{4 * LISTS},PQx4fs", 0.95))
    collection.put(records(0, vectors(4000)))
    collection.optimize()
    collection.flush()
    others = of_other_kinds(150)
    with Reopened(path, read_only=True) as reader:
        reader.search(others[:1], 1)
        collection.put(records(4000, others))
        collection.search(others[:1], 1)
        collection._keeper.wait()
        assert collection._keeper.current().notes["trained"] == 4150
        assert numbers(reader.search(others[:1], 1)[0]) == [4000]
        index = reader._keeper.current()
        assert index.worn < keeper.WORN
        assert index.notes["trained"] == 4150
    collection.close()


@pytest.mark.parametrize("factory", [name for name in FACTORIES if "_HNSW" in name])
def test_few_lists_come_from_the_graph_and_many_from_all_centres(
    path: Path, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    """Both ways give what the same lists gave with the centres compared one by one."""
    monkeypatch.setattr(probing, "SCANNED", 4)
    collection = create(path, IndexSettings(factory, 0.98))
    collection.put(records(0, vectors(3000)))
    collection.optimize()
    index = collection._keeper.current()
    queries = vectors(20, seed=3)
    found: dict[tuple[int, int], np.ndarray] = {}
    for nprobe in (1, 2, LISTS // 4, LISTS):
        for scanned in (1, 4, LISTS + 1):  # by the graph, by what is quicker, by all centres
            monkeypatch.setattr(probing, "SCANNED", scanned)
            index.notes |= {"nprobe": nprobe, "factor": 300}
            faiss.cvar.hnsw_stats.reset()
            found[nprobe, scanned] = index.search(queries, 10)[1]
            by_graph = probing.MOST * nprobe <= LISTS // scanned
            assert (faiss.cvar.hnsw_stats.n1 > 0) == by_graph
        np.testing.assert_array_equal(found[nprobe, 1], found[nprobe, 4])
        np.testing.assert_array_equal(found[nprobe, LISTS + 1], found[nprobe, 4])
    np.testing.assert_array_equal(found[LISTS, 4], exact(vectors(3000), queries))
    beside = photo_like(queries)  # between clusters: one list does not do
    few, many = (index.search(beside, 10)[1] for index.notes["nprobe"] in (1, LISTS))
    assert (few != many).any()
    collection.close()


def exact(values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Internal ids, which count from 1, of the 10 best by all vectors as they are stored."""
    return np.argsort(-(queries @ as_stored(values).T), axis=1, kind="stable")[:, :10] + 1


def test_a_filter_after_another_and_after_a_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ivf, "EXACT_MOST", 20)
    low, high = {"n": {"$lt": 400}}, {"n": {"$gte": 2000}}
    with contextlib.closing(create(path)) as collection:
        collection.put(records(0, vectors(3000)))
        collection.optimize()
        for where in (low, high, low):
            for line in collection.search(vectors(20, seed=3), 10, where):
                assert len(line) == 10
                assert {n < 400 if where is low else n >= 2000 for n in numbers(line)} == {True}
        late = vectors(1, seed=4)
        collection.put(records(3000, late))
        assert numbers(collection.search(late, 10, high)[0])[0] == 3000
        collection.delete(["i3000"])
        assert 3000 not in numbers(collection.search(late, 10, high)[0])


@pytest.mark.parametrize("filtered", [False, True])
def test_only_the_queries_that_come_short_look_further(
    path: Path, monkeypatch: pytest.MonkeyPatch, filtered: bool
) -> None:
    """Results do not depend on the other queries of a batch, nor does what they cost."""
    monkeypatch.setattr(ivf, "EXACT_MOST", 20)
    with contextlib.closing(create(path, IndexSettings(f"IVF{LISTS},PQ16x4fs", 0.9))) as collection:
        collection.put(records(0, vectors(3000)))
        collection.optimize()
        index = collection._keeper.current()
        index.notes |= {"nprobe": 1, "factor": 1, "reach": 0.0}
        allowed = index._ids()[:2900] if filtered else None
        queries, asked, whole = vectors(40, seed=3), [], index._candidates
        monkeypatch.setattr(
            index, "_candidates", lambda own, *rest: asked.append(len(own)) or whole(own, *rest)
        )
        scores, ids = index.search(queries, 150, allowed)
        assert asked[0] == 40
        assert 0 < asked[1] < 40
        for line, query in enumerate(queries):
            alone = index.search(query[None], 150, allowed)
            np.testing.assert_array_equal(ids[line], alone[1][0])
            np.testing.assert_allclose(scores[line], alone[0][0], atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 3 * DIM * 40, 1 << 22])
@pytest.mark.parametrize("gap", [False, True])
def test_candidates_are_ranked_exactly(
    path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, gap: bool
) -> None:
    """In parts of one, three and all queries; rows in the file and beyond it; equal ones by id."""
    monkeypatch.setattr("tigerfg.index.refine.AT_ONCE", at_once)
    values = vectors(300)
    values[100:140] = values[7]
    with contextlib.closing(create(path)) as collection:
        collection.put(records(0, values[:200]))
        if gap:
            collection.delete(["i30"])
        store = collection._store
        rows = VectorRows(store, fresh=True)
        rows.save()
        collection.put(records(200, values[200:]))
        rows.sync()
        ids = store.ids()
        there = np.setdiff1d(np.arange(300), [30] if gap else [])  # numbers of the items
        rng = np.random.default_rng(0)
        candidates = ids[np.stack([rng.permutation(len(there))[:40] for _ in range(8)])]
        equal = (there >= 100) & (there < 130)
        candidates[0] = np.concatenate([ids[equal][::-1], ids[there >= 200][:10]])
        candidates[1, 5:] = -1
        candidates[2] = -1
        queries = vectors(8, seed=6)
        queries[0] = values[7]
        scores, found = refined(rows, queries, candidates, 10)
        stored = as_stored(values[there], np.float64)
        for query, line, row, own in zip(queries, candidates, found, scores, strict=True):
            known = np.unique(line[line >= 0])
            right = stored[np.searchsorted(ids, known)] @ query.astype(np.float64)
            order = np.lexsort((known, -np.round(right, 6)))[:10]
            assert row.tolist() == known[order].tolist() + [-1] * (10 - len(order))
            np.testing.assert_allclose(own[: len(order)], right[order], atol=1e-6)
            assert np.isneginf(own[len(order) :]).all()


def test_an_interrupted_copy_of_the_vectors_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A read that fails between two blocks, and a stamp that cannot be written, cost nothing."""
    with contextlib.closing(create(path)) as collection:
        store, whole = collection._store, Store.vectors_since
        rows = VectorRows(store)
        collection.put(records(0, vectors(1000)))

        def broken(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield next(whole(store, number, 300))
            raise OSError("interrupted")

        monkeypatch.setattr(store, "vectors_since", broken)
        with pytest.raises(OSError, match="interrupted"):
            rows.sync()
        monkeypatch.setattr(store, "vectors_since", lambda n: whole(store, n, 300))
        rows.sync()
        ids, expected = store.ids(), vectors(1000).astype(np.float16)
        np.testing.assert_array_equal(rows.stored(ids), expected)
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
            rows.save()
        assert "vectors not saved" in caplog.text
        rows.save()
        caplog.clear()
        again = VectorRows(store)
        assert caplog.text == ""
        assert len(again._rows) == 1000
        np.testing.assert_array_equal(again.stored(ids), expected)


def test_a_reader_opens_while_the_writer_saves_vectors(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Between the start of its snapshot and its look at the stamp: it maps the file."""
    with (
        contextlib.closing(create(path)) as collection,
        contextlib.closing(Store.open(path, read_only=True)) as reader,
    ):
        collection.put(records(0, vectors(500)))
        rows = VectorRows(collection._store, fresh=True)
        rows.save()
        with reader.snapshot():
            assert len(reader) == 500
            collection.put(records(500, vectors(300, seed=1)))
            rows.sync()
            rows.save()
            found = VectorRows(reader)
            assert (len(found), found.unsaved) == (500, 0)
            expected = vectors(500).astype(np.float16)
            np.testing.assert_array_equal(found.stored(reader.ids()), expected)
        with reader.snapshot():
            found.sync()
            assert len(found) == 800
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_no_items_no_index(path: Path) -> None:
    """Nothing stored, or nothing left: building says so, and closing works."""
    with contextlib.closing(create(path)) as collection:
        with pytest.raises(InputError, match="0 items are too few"):
            collection.optimize()
        collection.put(records(0, vectors(1000)))
        collection.optimize()
        collection.delete(f"i{n}" for n in range(1000))
        assert collection.search(vectors(2), 5) == [[], []]
        collection.flush()
        with pytest.raises(InputError, match="0 items are too few"):
            collection.optimize()


def test_the_next_nprobe() -> None:
    steps = [1]
    while steps[-1] < 100:
        steps.append(next_nprobe(steps[-1]))
    assert steps == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]


@pytest.mark.parametrize(
    ("recalls", "chosen"),
    [
        ({1: 0.5, 2: 0.94, 3: 0.955, 4: 0.97, 6: 0.9999}, 4),  # 3 is above by less than its error
        ({1: 0.5, 2: 0.951, 3: 0.952}, 3),  # none is above by more: the best there is
        ({1: 0.5, 8: 0.9, 12: 0.9004, 16: 0.9014, 24: 0.902, 32: 1.0}, 32),  # slow is not flat
    ],
)
def test_the_point_that_is_chosen(
    monkeypatch: pytest.MonkeyPatch, recalls: dict[int, float], chosen: int
) -> None:
    class Index:
        lists = max(recalls)

    def measured(*arguments: object) -> Point:
        *_, nprobe, factor = arguments
        known = max(n for n in recalls if n <= nprobe)
        return Point(nprobe, factor, recalls[known], 0.006, float(nprobe))

    monkeypatch.setattr("tigerfg.index.build.FACTORS", (3,))
    monkeypatch.setattr("tigerfg.index.build._measure", measured)
    point, curve = tune(Index(), vectors(9), np.zeros((9, 10)), 0.95)
    assert point.nprobe == chosen
    assert len({p.nprobe for p in curve}) == len(curve)


def test_without_sample_queries_it_is_tuned_on_photo_like_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []

    def noted(index: object, queries: np.ndarray, *rest: object) -> object:
        asked.append(queries)
        return tune(index, queries, *rest)

    monkeypatch.setattr("tigerfg.index.build.tune", noted)
    items = vectors(3000)
    with contextlib.closing(create(path, IndexSettings("IVF16,SQfp16"))) as collection:
        collection.put(records(0, items))
        collection.optimize()
        nearest = (asked[0] @ items.T).max(axis=1)
        assert len(nearest) == 256
        assert nearest.max() < 0.99  # none is an item
        collection.optimize(items[:50])
    np.testing.assert_allclose(asked[1], items[:50], atol=1e-3)


def test_the_target_recall_is_that_of_the_sample_queries(path: Path) -> None:
    """Items are tight clusters, whose neighbours lie in one list; the queries lie between two."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, DIM))

    def unit(values: np.ndarray) -> np.ndarray:
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    def between(count: int) -> np.ndarray:
        return unit(centres[rng.integers(0, 200, (count, 2))].sum(axis=1))

    items = unit(centres[rng.integers(0, 200, 6000)] + 0.2 * rng.standard_normal((6000, DIM)))
    queries = between(200)
    collection = create(path, IndexSettings("IVF64,SQfp16", 0.95))
    collection.put(records(0, items))
    easy = collection.optimize()
    assert easy.queries == 0
    hard = collection.optimize(queries)
    assert hard.queries == 200
    assert hard.curve[0]["nprobe"] == easy.curve[0]["nprobe"] == 1
    assert hard.curve[0]["recall"] < easy.curve[0]["recall"] - 0.1
    assert hard.recall >= 0.95
    assert hard.nprobe > 1
    assert recall(collection, dict(enumerate(items)), between(200)) >= 0.93
    again = collection.optimize()  # they are kept (in float16),
    assert again.curve[0]["recall"] == pytest.approx(hard.curve[0]["recall"], abs=0.01)
    collection.close()
    snapshot = path.parent / "copy"
    copy_catalog(path, snapshot)
    for place in (path, snapshot):  # by the next process and a copy too,
        with Reopened(place) as again:
            assert again.stats().queries == 200
            again._keeper.build("IVF64,SQfp16", again.meta.settings)
            assert again.stats().queries == 200
    with Reopened(path) as again:  # until they are taken back
        assert again.optimize(queries[:0]).curve[0]["recall"] == easy.curve[0]["recall"]
        assert again.stats().queries == 0


def test_sample_queries_need_a_writer_and_touch_no_item(path: Path) -> None:
    collection = create(path, IndexSettings("auto", 0.95))
    collection.put(records(0, vectors(20)))
    number = collection._store.number
    assert collection.optimize(vectors(3, seed=1)).kind == "flat"  # kept for an index to come
    assert collection._store.number == number
    assert collection._store.check() == []
    np.testing.assert_allclose(collection._store.queries(), vectors(3, seed=1), atol=1e-3)
    with (
        Reopened(path, read_only=True) as reader,
        pytest.raises(CatalogError, match="open for reading only"),
    ):
        reader.optimize(vectors(1))
    assert len(collection._store.queries()) == 3
    collection.close()


def test_what_cannot_be_built_leaves_the_sample_queries(path: Path) -> None:
    collection = create(path, IndexSettings("IVF8,SQfp16", 0.95))
    collection.put(records(0, vectors(400)))
    collection.optimize(vectors(5, seed=1))
    collection.delete(f"i{n}" for n in range(396))
    with pytest.raises(InputError, match="too few"):
        collection.optimize(vectors(2, seed=2))
    assert len(collection._store.queries()) == 5
    collection.close()


def test_a_writer_keeps_few_vectors_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = create(path)
    collection.put(records(0, vectors(3000)))
    store = collection._store
    monkeypatch.setattr(store, "vectors_since", lambda n: type(store).vectors_since(store, n, 100))
    monkeypatch.setattr("tigerfg.index.vectors.MOST_TAIL", 400)
    rows = VectorRows(store, fresh=True)
    assert rows.unsaved < 400
    [file] = path.glob("vectors-*.f16")
    assert file.stat().st_size >= 2600 * (8 + 2 * DIM)
    again = VectorRows(store)
    ids = store.ids()
    np.testing.assert_array_equal(rows.get(ids), again.get(ids))
    np.testing.assert_allclose(rows.get(ids), vectors(3000), atol=1e-3)
    collection.close()


@pytest.mark.parametrize("file", [ivf.INDEX_FILE, "vectors-*.f16", STAMP_FILE])
@pytest.mark.parametrize("damage", ["gone", "cut", "flip", "empty"])
def test_a_damaged_file_costs_nothing_but_time(
    path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    values = vectors(1500)
    collection = create(path)
    collection.put(records(0, values))
    collection.optimize()
    collection.close()
    [target] = path.glob(file)
    content = bytearray(target.read_bytes())
    if damage == "gone":
        target.unlink()
    elif damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 0x10
        target.write_bytes(content)
    else:
        target.write_bytes(b"")
    caplog.clear()
    with caplog.at_level(logging.WARNING), Reopened(path) as again:
        assert recall(again, dict(enumerate(values)), vectors(20, seed=2)) >= 0.9
        again.put(records(1500, vectors(1, seed=8)))
    if damage != "gone":
        assert "from the store" in caplog.text
    with Reopened(path) as again:
        assert len(again) == 1501


@pytest.mark.parametrize("limit", [0, 30_000, 150_000])
def test_a_full_disk_costs_nothing_but_the_index_files(
    path: Path, caplog: pytest.LogCaptureFixture, limit: int
) -> None:
    """No room for anything, for the vectors (216 kB), or for the index (30 to 150 kB)."""
    values = vectors(3000)
    collection = create(path)
    collection.put(records(0, values))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with caplog.at_level(logging.WARNING):
            assert collection.optimize().kind == GRAPH
        assert recall(collection, dict(enumerate(values)), vectors(20, seed=2)) >= 0.9
        collection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "vectors not saved" in caplog.text
    assert ("ivf.index not saved" in caplog.text) == (limit < 150_000)
    assert not list(path.glob("*.new"))
    with Reopened(path) as again:
        assert again.optimize().kind == GRAPH
        assert recall(again, dict(enumerate(values)), vectors(20, seed=2)) >= 0.9


def test_a_second_index_does_not_lose_what_was_written_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes and searches go on while an index is built."""
    values = vectors(2400)
    collection = create(path)
    collection.put(records(0, values[:2000]))
    inside, go_on = threading.Event(), threading.Event()
    original = keeper.build

    def slow(*arguments: object) -> object:
        built = original(*arguments)
        inside.set()
        assert go_on.wait(30)
        return built

    monkeypatch.setattr(keeper, "build", slow)
    thread = threading.Thread(target=collection.optimize)
    thread.start()
    assert inside.wait(30)
    collection.put(records(2000, values[2000:]))
    collection.delete(["i7", "i2001"])
    assert numbers(collection.search(values[2100][None], 1)[0]) == [2100]
    assert collection.stats().building
    go_on.set()
    thread.join()
    held = {n: v for n, v in enumerate(values) if n not in (7, 2001)}
    assert collection.stats().kind == SETTINGS.index
    assert collection.stats().items == 2398
    assert recall(collection, held, vectors(20, seed=2)) >= 0.9
    collection.close()


def test_auto_builds_by_itself_when_the_catalogue_has_grown(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "FLAT_MOST", 1000)
    values = vectors(4000)
    collection = create(path, IndexSettings())
    collection.put(records(0, values[:900]))
    assert collection.stats().kind == "flat"
    collection.put(records(900, values[900:1500]))
    collection.search(values[:1], 1)  # the index follows the store when it is asked
    collection._keeper.wait()
    first = collection.stats()
    assert first.kind == "SVD32,IVF32,PQ32x4fs"
    collection.put(records(1500, values[1500:]))
    collection.search(values[:1], 1)
    collection._keeper.wait()
    assert collection.stats().kind == "SVD32,IVF64,PQ32x4fs"  # twice of what it was trained on
    collection.close()
    assert not (path / "flat.index").exists()
    assert len(list(path.glob("vectors-*.f16"))) == 1  # that of the first index is gone
    with Reopened(path, read_only=True) as reader:
        assert reader.stats().kind == "SVD32,IVF64,PQ32x4fs"


def test_few_items_are_searched_exactly_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "FLAT_MOST", 1000)
    monkeypatch.setattr(keeper, "FLAT_MOST", 1000)
    values = vectors(1500)
    collection = create(path, IndexSettings())
    collection.put(records(0, values))
    assert collection.optimize().kind.startswith("SVD")
    reader = Collection.open(path, read_only=True)
    assert reader.stats().kind.startswith("SVD")
    collection.delete(f"i{n}" for n in range(600))
    collection._keeper.wait()
    assert collection.stats().kind.startswith("SVD")  # 900: at once back and forth would be dear
    collection.delete(f"i{n}" for n in range(600, 750))
    collection.search(values[:1], 1)
    collection._keeper.wait()
    assert (collection.stats().kind, collection.stats().items) == ("flat", 750)
    assert numbers(collection.search(values[800][None], 1)[0]) == [800]
    collection.close()
    assert sorted(file.name for file in path.glob("*.index")) == ["flat.index"]
    assert numbers(reader.search(values[800][None], 1)[0]) == [800]
    assert reader.stats().kind == "flat"  # when it knows how much is gone
    reader.close()


def test_optimize_of_few_items_is_exact(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "FLAT_MOST", 1000)
    collection = create(path, IndexSettings())
    collection.put(records(0, vectors(1500)))
    assert collection.optimize().kind.startswith("SVD")
    collection.delete(f"i{n}" for n in range(600))
    assert collection.optimize().kind == "flat"
    collection.close()


def test_closing_builds_what_is_due(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "FLAT_MOST", 1000)
    collection = create(path, IndexSettings())
    collection.put(records(0, vectors(2000)))
    collection.close()
    with Reopened(path, read_only=True) as reader:
        assert reader.stats().kind.startswith("SVD")


def test_readers_take_the_index_that_a_writer_built(path: Path) -> None:
    collection = create(path)
    collection.put(records(0, vectors(1500)))
    collection.optimize()
    with Reopened(path, read_only=True) as reader:
        assert reader.stats().kind == SETTINGS.index
        collection.put(records(1500, vectors(100, seed=5)))
        collection.delete(["i3"])
        [found] = reader.search(vectors(100, seed=5)[40][None], 1)
        assert numbers(found) == [1540]
        assert reader.stats().items == 1599
        with pytest.raises(CatalogError, match="open for reading only"):
            reader.optimize()
    collection.close()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (IndexSettings("IVF4096,PQ16x4fs"), "too few to train"),
        (IndexSettings(memory_budget=100), "memory_budget 100: the smallest index of 300 items"),
    ],
)
def test_an_index_that_cannot_be_is_refused_and_search_stays(
    path: Path, choice: IndexSettings, words: str
) -> None:
    collection = create(path, choice)
    collection.put(records(0, vectors(300)))
    with pytest.raises(InputError, match=words):
        collection.optimize()
    assert numbers(collection.search(vectors(300)[5][None], 1)[0]) == [5]
    collection.flush()
    collection.close()


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("HNSW32", "is no IVF index"),
        ("IVF16,Nonsense", "faiss refuses it"),
        ("IVF0,PQ8", "numbers are at least 1"),  # ends the process in faiss
    ],
)
def test_what_is_no_index_makes_no_catalogue(path: Path, factory: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        create(path, IndexSettings(factory))
    assert not path.exists()


def test_equal_items_count_as_found_whichever_they_are(path: Path) -> None:
    """600 vectors 20 times each: ten of them are nearest, and which ten says nothing."""
    with contextlib.closing(create(path, IndexSettings("IVF16,SQfp16", 0.95))) as collection:
        collection.put(records(0, vectors(600).repeat(20, axis=0)))
        stats = collection.optimize()
    assert stats.recall >= 0.95
    assert stats.nprobe < 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"index": ""}, "index ''"),
        ({"index": 5}, "index 5"),
        ({"target_recall": 1.0}, "target_recall 1.0"),
        ({"target_recall": float("nan")}, "target_recall nan"),
        ({"target_recall": "0.9"}, "target_recall '0.9'"),
        ({"memory_budget": True}, "memory_budget True"),
        ({"memory_budget": 0}, "memory_budget 0"),
        ({"memory_budget": 1e9}, "memory_budget"),
    ],
)
def test_settings_that_cannot_be_used(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        IndexSettings(**options)


def test_auto_goes_by_size_and_budget() -> None:
    auto = IndexSettings()
    assert auto.choose(0, 256) == auto.choose(20_000, 256) == "flat"
    assert auto.choose(1_000_000, 256) == "SVD,IVF4096,PQx4fs"
    assert auto.choose(10_000_000, 256) == "SVD,IVF16384_HNSW16,PQx4fs"
    less = IndexSettings(memory_budget=130_000_000)
    assert less.choose(1_000_000, 256) == "IVF4096,RaBitQfs2"
    small = IndexSettings(memory_budget=71_000_000)
    assert small.choose(1_000_000, 256) == "IVF4096,RaBitQfs"
    assert small.choose(20_000, 256) == "flat"
    assert IndexSettings(memory_budget=1_600_000).choose(5_000, 256) == "IVF128,RaBitQfs2"
    assert IndexSettings("IVF8,Flat").choose(3, 256) == "IVF8,Flat"
    assert [list_count(n) for n in (0, 1, 100, 20_001, 10**8)] == [1, 1, 2, 512, 32768]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 500])
def test_photo_like_queries_lie_beside_the_items(count: int) -> None:
    items = vectors(count) if count else np.zeros((0, DIM), np.float32)
    moved = photo_like(items)
    assert moved.dtype == np.float32
    assert moved.shape == items.shape
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1.0, atol=1e-6)
    cosines = (moved * items).sum(axis=1)
    np.testing.assert_allclose(cosines, COSINE if count > 1 else 1.0, atol=1e-6)
    assert np.isfinite(photo_like(np.repeat(vectors(1), 5, axis=0))).all()  # none differ
    np.testing.assert_array_equal(photo_like(items), moved)
