"""Which lists a query probes: the nearest within a margin, and what they hold is found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from test_index import DIM, FACTORIES, LISTS, as_stored, create, records, vectors

from tigerfg.errors import InputError
from tigerfg.index import derived, ivf
from tigerfg.index.collection import Collection
from tigerfg.index.factory import require_ivf, transformed, transforms_of
from tigerfg.index.plan import IndexSettings
from tigerfg.index.probing import MOST, Centres, Probing, from_score, measured_margins

ITEMS = 3000


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


def centres_of(values: np.ndarray, kind: str = "Flat") -> Centres:
    """An inner-product index of faiss with these as centres."""
    centres = faiss.index_factory(DIM, kind, faiss.METRIC_INNER_PRODUCT)
    centres.add(values)
    count = len(values)
    return Centres(faiss, faiss.IndexIVFFlat(centres, DIM, count, faiss.METRIC_INNER_PRODUCT))


def probing(centres: Centres, sample: np.ndarray) -> Probing:
    return Probing(centres, measured_margins(centres, sample))


@pytest.mark.parametrize("lists", [1, 2, 3, 7, 40])
def test_so_many_lists_on_average_and_the_nearest(lists: int) -> None:
    centres, queries = centres_of(vectors(lists, seed=1)), vectors(101, seed=2)
    margins = measured_margins(centres, queries)
    assert [n for n, _ in margins] == [n for n in (1, 2, 4, 8, 16, 32) if n < lists] + [lists]
    chooser = Probing(centres, margins)
    similar = queries @ vectors(lists, seed=1).T
    for nprobe, margin in margins:
        chosen, scores = chooser.choose(queries, nprobe)
        assert chosen.shape == scores.shape
        assert chosen.shape[1] <= MOST * nprobe
        probed = chosen >= 0
        assert probed[:, 0].all()
        # the one that lies on the margin may be rounded to either side
        assert abs(probed.sum() - nprobe * 101) <= 1
        best = similar.max(axis=1, keepdims=True) - similar
        for line, row, own, known in zip(chosen, best, scores, similar, strict=True):
            kept = set(line[line >= 0].tolist())
            np.testing.assert_allclose(own[line >= 0], known[line[line >= 0]], atol=1e-5)
            nearest = np.argsort(row, kind="stable")[: MOST * nprobe]
            assert kept - {n for n in nearest.tolist() if row[n] <= margin + 1e-6} == set()
            assert {n for n in nearest.tolist() if row[n] <= margin - 1e-6} - kept == set()


def test_lists_between_two_steps() -> None:
    queries = vectors(200, seed=2)
    chooser = probing(centres_of(vectors(40, seed=1)), queries)
    probed = [(chooser.choose(queries, n)[0] >= 0).sum() / 200 for n in range(4, 9)]
    assert probed == sorted(probed)
    assert probed == pytest.approx([4, 5, 6, 7, 8], abs=0.7)


@pytest.mark.parametrize("lists", [1, 3, 40])
def test_by_score_the_same_lists(lists: int) -> None:
    """And with some of them only, those that these would take alone.

    Margins are quantiles of the sample they are measured with, so that one of its centres lies on
    each, where faiss and BLAS may round to different sides: other queries are asked.
    """
    centres, queries = centres_of(vectors(lists, seed=1)), vectors(60, seed=2)
    chooser = probing(centres, vectors(60, seed=3))
    for nprobe in (1, 2, 7, lists):
        expected = chooser.choose(queries, min(nprobe, lists))[0]
        scores = centres.scores(queries)
        chosen, values = from_score(scores, chooser.least(scores, min(nprobe, lists), lists))
        for line, row, known, wanted in zip(chosen, values, scores, expected, strict=True):
            assert set(line.tolist()) - {-1} == set(wanted.tolist()) - {-1}
            np.testing.assert_array_equal(row[line >= 0], known[line[line >= 0]])
    held = np.arange(lists) % 3 == 0
    scores = centres.scores(queries, held)
    chosen, _ = from_score(scores, chooser.least(scores, int(held.sum()), int(held.sum())))
    assert (np.sort(chosen, axis=1) == np.flatnonzero(held)).all()
    chosen, _ = from_score(scores, chooser.least(scores, 1, int(held.sum())))
    best = np.where(held, queries @ vectors(lists, seed=1).T, -9).argmax(axis=1)
    assert (chosen == best[:, None]).any(axis=1).all()
    assert (chosen >= 0).sum(axis=1).max() <= MOST


def test_a_query_between_clusters_probes_more() -> None:
    near = vectors(40, seed=1)
    between = near[:20] + near[20:]
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    queries = np.concatenate([near[:20], between])
    chooser = probing(centres_of(near), queries)
    counts = (chooser.choose(queries, 2)[0] >= 0).sum(axis=1)
    assert counts[:20].mean() < 1.5
    assert counts[20:].mean() > 2.5


@pytest.mark.parametrize("factory", [*FACTORIES, f"IVF{LISTS},PQ16", f"IVF{LISTS},SQfp16"])
def test_the_best_of_the_chosen_lists_are_found(tmp_path: Path, factory: str) -> None:
    """Whatever is before the lists, one query or many."""
    with built(tmp_path / "cat", factory) as collection:
        index = collection._keeper.current()
        everything = faiss.extract_index_ivf(index._index)
        queries = vectors(50, seed=3)
        inner = transformed(transforms_of(index._index), queries)
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


@pytest.mark.parametrize("factory", [*FACTORIES, f"IVF{LISTS},SQfp16"])
def test_what_a_filter_leaves_is_found_however_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    """At random, on the queries' other side, or lists far from them; items added, items removed."""
    monkeypatch.setattr(ivf, "EXACT_MOST", 0)
    monkeypatch.setattr(ivf, "AT_ONCE", 7 * LISTS)  # seven queries at once
    with built(tmp_path / "cat", factory) as collection:
        more = vectors(600, seed=8)
        collection.put(records(ITEMS, more))
        collection.delete(f"i{n}" for n in range(1, ITEMS, 3))
        index = collection._keeper.current()
        index.notes |= {"nprobe": 1, "factor": 100}
        live = np.flatnonzero(index._live)
        lists = faiss.extract_index_ivf(index._index).invlists
        for number in range(LISTS):  # those of added items as well
            inside = faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))
            assert (index._list_of[inside] == number).all()
        numbers = [document["n"] for document in collection.documents()]
        values = as_stored(np.concatenate([vectors(ITEMS), more])[numbers])
        queries = vectors(40, seed=3)
        side = values @ queries.mean(axis=0)
        rng = np.random.default_rng(0)
        for left in (
            rng.random(len(live)) < 0.3,
            side < np.quantile(side, 0.2),
            np.isin(index._list_of[live], [1, 2]),
        ):
            allowed = live[left]
            assert index._list_of[allowed].max() > 0
            best = allowed[np.argsort(-(queries @ values[left].T), axis=1)[:, :10]]
            for found in (
                index.search(queries, 10, allowed)[1],
                np.concatenate([index.search(one[None], 10, allowed)[1] for one in queries]),
            ):
                same = [len(set(a) & set(b)) for a, b in zip(best, found, strict=True)]
                assert sum(same) >= 0.95 * best.size
                assert np.isin(found, allowed).all()


def test_how_far_lists_reach_beyond_the_last_result(tmp_path: Path) -> None:
    with built(tmp_path / "cat", f"IVF{LISTS},SQfp16") as collection:
        index = collection._keeper.current()
        queries = as_stored(vectors(50, seed=3))
        near = index.search(queries, 10)[1]
        centres = index._ivf.quantizer.reconstruct_n(0, LISTS)
        theirs = np.take_along_axis(queries @ centres.T, index._list_of[near].astype(np.int64), 1)
        for count in (10, 4):  # so many neighbours
            last = (queries * index.rows.get(near[:, count - 1])).sum(axis=1)
            below = last[:, None] - theirs[:, :count]
            known = np.where(np.arange(10) < count, near, -1)
            for share in (0.5, 0.9, 1.0):
                expected = max(0, np.quantile(below, share))
                assert index.reach(queries, known, share) == pytest.approx(expected, abs=1e-5)
        assert index.reach(queries, np.full((50, 10), -1), 0.9) == 2


def test_one_result_is_the_best_of_as_many_candidates_as_ten(tmp_path: Path) -> None:
    with built(tmp_path / "cat", f"IVF{LISTS},RaBitQfs") as collection:
        index = collection._keeper.current()
        index.notes |= {"nprobe": LISTS, "factor": 4}
        queries = vectors(200, seed=3)
        one, ten = index.search(queries, 1)[1], index.search(queries, 10)[1]
        np.testing.assert_array_equal(one[:, 0], ten[:, 0])


def test_the_graph_misses_hardly_a_list() -> None:
    """A search of the graph that keeps no more centres than asked for misses the last ones."""
    centres, queries = centres_of(vectors(2048, seed=1), "HNSW8"), vectors(200, seed=2)
    lists = probing(centres, queries).choose(queries, 8)[0]
    exact = np.argsort(-centres.scores(queries), axis=1)[:, :32]
    found = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(lists, exact, strict=True)]
    assert sum(found) >= 0.97 * (lists >= 0).sum()


def test_a_search_leaves_the_graph_as_it_is(tmp_path: Path) -> None:
    """What is added afterwards is assigned by it."""
    with built(tmp_path / "cat", FACTORIES[3]) as collection:
        index = collection._keeper.current()
        graph = faiss.downcast_index(index._ivf.quantizer)
        before = graph.hnsw.efSearch
        for nprobe in (1, 2, LISTS):
            index.notes |= {"nprobe": nprobe}
            index.search(vectors(5, seed=3), 10)
        assert graph.hnsw.efSearch == before


def test_arrays_by_id_are_no_longer_than_the_ids(tmp_path: Path) -> None:
    with built(tmp_path / "cat", FACTORIES[0]) as collection:
        index = collection._keeper.current()
        assert len(index._live) == len(index._list_of) == ITEMS + 1


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("IVF16,RQ2x4fs", "cannot leave out items"),
        ("IVF16,LSQ2x4", "cannot leave out items"),
        ("IVF16(IVF4,Flat),Flat", "never all compared"),
        ("IVF16,FlatDedup", "loses items beside equal ones"),
        ("IVF16,PQ8x4fs_64", "blocks of 64 when items are removed; give IVF16,PQ8x4fs, whose"),
        ("SVD,IVF16,PQx4fs_128", "blocks of 128 when items are removed; give SVD,IVF16,PQx4fs, "),
    ],
)
def test_indexes_that_could_not_keep_the_promises(factory: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        require_ivf(factory, DIM)


def test_the_file_of_another_version_is_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collection = create(tmp_path / "cat", IndexSettings(FACTORIES[0], 0.9))
    collection.put(records(0, vectors(ITEMS)))
    collection.optimize()
    collection.close()
    file = tmp_path / "cat" / ivf.INDEX_FILE
    content = file.read_bytes()
    assert content.count(derived._MAGIC) == 1
    file.write_bytes(content.replace(derived._MAGIC, b"tigerfg2"))
    collection = Collection.open(tmp_path / "cat")
    try:
        assert len(collection.search(vectors(3, seed=3), 10)[0]) == 10
        assert "another version of tigerfg wrote it" in caplog.text
    finally:
        collection.close()
