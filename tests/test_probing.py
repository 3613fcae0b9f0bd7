"""Which lists a query probes: the nearest within a margin, and what they hold is found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from test_index import DIM, FACTORIES, LISTS, as_stored, create, records, vectors

from tigerfg.index import ivf
from tigerfg.index.collection import Collection
from tigerfg.index.plan import IndexSettings
from tigerfg.index.probing import MOST, Holding, Probing, measured_margins

ITEMS = 3000


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@contextlib.contextmanager
def built(path: Path, factory: str) -> Iterator[Collection]:
    """A collection with this index, a third of its items deleted."""
    collection = create(path, IndexSettings(factory, 0.9))
    collection.put(records(0, vectors(ITEMS)))
    collection.optimize()
    collection.delete(f"i{n}" for n in range(0, ITEMS, 3))
    try:
        yield collection
    finally:
        collection.close()


def trained(metric: int, lists: int = 40) -> faiss.IndexIVFFlat:
    centres = faiss.IndexFlat(DIM, metric)
    centres.add(vectors(lists, seed=1))
    index = faiss.IndexIVFFlat(centres, DIM, lists, metric)
    index.is_trained = True
    return index


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("lists", [1, 2, 3, 7, 40])
def test_so_many_lists_on_average_and_the_nearest(metric: int, lists: int) -> None:
    index, queries = trained(metric, lists), vectors(101, seed=2)
    margins = measured_margins(faiss, index, queries)
    assert [n for n, _ in margins] == [n for n in (1, 2, 4, 8, 16, 32) if n < lists] + [lists]
    chooser = Probing(faiss, index, margins)
    similar = queries @ index.quantizer.reconstruct_n(0, lists).T
    for nprobe, margin in margins:
        chosen, scores = chooser.choose(queries, nprobe)
        assert chosen.shape == scores.shape == (101, min(MOST * nprobe, lists))
        probed = chosen >= 0
        assert probed[:, 0].all()
        assert probed.sum() == nprobe * 101
        distance = similar if metric == faiss.METRIC_INNER_PRODUCT else 2 - 2 * similar
        best = np.abs(distance - distance[np.arange(101), similar.argmax(1)][:, None])
        for line, row in zip(chosen, best, strict=True):
            kept = set(line[line >= 0].tolist())
            nearest = np.argsort(row, kind="stable")[: chosen.shape[1]]
            assert kept == {n for n in nearest.tolist() if row[n] <= margin + 1e-6} or (
                nprobe == lists and len(kept) == lists
            )


def test_lists_between_two_steps() -> None:
    index, queries = trained(faiss.METRIC_INNER_PRODUCT), vectors(200, seed=2)
    chooser = Probing(faiss, index, measured_margins(faiss, index, queries))
    probed = [(chooser.choose(queries, n)[0] >= 0).sum() / 200 for n in (4, 5.3, 6.5, 8)]
    assert probed[0] == 4
    assert probed[3] == 8
    assert probed == sorted(probed)
    assert probed[1] == pytest.approx(5.3, abs=0.7)
    assert probed[2] == pytest.approx(6.5, abs=0.7)


def test_a_query_between_clusters_probes_more() -> None:
    index, near = trained(faiss.METRIC_INNER_PRODUCT), vectors(40, seed=1)
    between = near[:20] + near[20:]
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    queries = np.concatenate([near[:20], between])
    chooser = Probing(faiss, index, measured_margins(faiss, index, queries))
    counts = (chooser.choose(queries, 2)[0] >= 0).sum(axis=1)
    assert counts[:20].mean() < 1.5
    assert counts[20:].mean() > 2.5


@pytest.mark.parametrize("factory", [*FACTORIES, f"IVF{LISTS},PQ16", f"IVF{LISTS},SQfp16"])
def test_the_best_of_the_chosen_lists_are_found(tmp_path: Path, factory: str) -> None:
    """Whatever is before the lists, one query or many, with and without a filter."""
    with built(tmp_path / "cat", factory) as collection:
        index = collection._keeper.current()
        everything = faiss.extract_index_ivf(index._index)
        queries = vectors(50, seed=3)
        inner = queries
        for transform in ivf.transforms_of(index._index):
            inner = transform.apply(inner)
        allowed = np.setdiff1d(np.arange(ITEMS), np.arange(0, ITEMS, 3)) + 1
        scores = queries @ as_stored(vectors(ITEMS)).T
        for nprobe in (1, 2, 3, LISTS):
            index.notes |= {"nprobe": nprobe, "factor": 1000}
            lists = index._probing.choose(inner, nprobe)[0]
            found = index.search(queries, 10)[1]
            for place, (query, line) in enumerate(zip(queries, lists, strict=True)):
                held = np.concatenate(
                    [
                        faiss.rev_swig_ptr(
                            everything.invlists.get_ids(int(one)),
                            everything.invlists.list_size(int(one)),
                        )
                        for one in line[line >= 0]
                    ]
                )
                held = np.intersect1d(held, allowed)
                assert len(held) >= 10
                best = held[np.argsort(-scores[place, held - 1], kind="stable")][:10]
                np.testing.assert_array_equal(found[place], best)
                np.testing.assert_array_equal(index.search(query[None], 10)[1][0], best)


def test_a_filter_leaves_as_many_vectors_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More lists where it leaves something in all of them, no more where it leaves whole lists."""
    monkeypatch.setattr(ivf, "EXACT_MOST", 0)
    with built(tmp_path / "cat", FACTORIES[0]) as collection:
        index = collection._keeper.current()
        index.notes |= {"nprobe": 2, "factor": 2}
        asked: list[tuple[float, int | None]] = []
        choose = index._probing.choose

        def seen(queries: np.ndarray, nprobe: float, among: Holding | None) -> tuple:
            asked.append((nprobe, among and among.count))
            return choose(queries, nprobe, among)

        monkeypatch.setattr(index._probing, "choose", seen)
        live = np.flatnonzero(index._live)
        half = live[::2]
        index.search(vectors(3, seed=3), 5, half)
        assert asked.pop() == (pytest.approx(2 * len(live) / len(half)), None)
        whole = live[np.isin(index._list_of[live], [3, 4, 5, 6])]
        index.search(vectors(3, seed=3), 5, whole)
        share = (len(live) / LISTS) / (len(whole) / 4)
        assert asked.pop() == (pytest.approx(2 * share), 4)


@pytest.mark.parametrize("factory", [*FACTORIES, f"IVF{LISTS},SQfp16"])
def test_what_a_filter_leaves_far_away_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    """Items of a few lists, added and removed since, for queries that are near others."""
    monkeypatch.setattr(ivf, "EXACT_MOST", 0)
    with built(tmp_path / "cat", factory) as collection:
        more = vectors(600, seed=8)
        collection.put(records(ITEMS, more))
        collection.delete(f"i{n}" for n in range(1, ITEMS, 3))
        index = collection._keeper.current()
        index.notes |= {"nprobe": 1, "factor": 1000}
        live = np.flatnonzero(index._live)
        far = live[np.isin(index._list_of[live], [1, 2])]
        assert (far > ITEMS).any()
        values = as_stored(np.concatenate([vectors(ITEMS), more]))
        queries = vectors(40, seed=3)
        near = faiss.extract_index_ivf(index._index).quantizer
        inner = index._transformed(queries)
        queries = queries[~np.isin(near.assign(inner, 2), [1, 2]).any(axis=1)]
        assert len(queries) > 10
        # the ids of added items follow those of two kinds of deletions
        names = [int(d["n"]) for d in collection.documents()]
        number = dict(zip(live.tolist(), names, strict=True))
        scores = queries @ values[[number[i] for i in far.tolist()]].T
        best = np.sort(far[np.argsort(-scores, axis=1, kind="stable")[:, :10]], axis=1)
        found = np.sort(index.search(queries, 10, far)[1], axis=1)
        same = [len(set(a) & set(b)) for a, b in zip(best.tolist(), found.tolist(), strict=True)]
        assert sum(same) >= 0.9 * best.size


def test_one_result_is_the_best_of_as_many_candidates_as_ten(tmp_path: Path) -> None:
    with built(tmp_path / "cat", f"IVF{LISTS},RaBitQfs") as collection:
        index = collection._keeper.current()
        index.notes |= {"nprobe": LISTS, "factor": 4}
        queries = vectors(200, seed=3)
        one, ten = index.search(queries, 1)[1], index.search(queries, 10)[1]
        np.testing.assert_array_equal(one[:, 0], ten[:, 0])


def test_the_graph_misses_hardly_a_list() -> None:
    """A search of the graph that keeps no more centres than asked for misses the last ones."""
    centres = faiss.IndexHNSWFlat(DIM, 8, faiss.METRIC_INNER_PRODUCT)
    centres.add(vectors(2048, seed=1))
    index = faiss.IndexIVFFlat(centres, DIM, 2048, faiss.METRIC_INNER_PRODUCT)
    queries = vectors(200, seed=2)
    chooser = Probing(faiss, index, measured_margins(faiss, index, queries))
    lists = chooser.choose(queries, 8)[0]
    exact, _ = faiss.downcast_index(centres.storage).search(queries, 32)[::-1]
    found = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(lists, exact, strict=True)]
    assert sum(found) >= 0.97 * (lists >= 0).sum()
