"""SVD: what the subspace keeps, how it is turned, and that searches in it find what they should."""

from __future__ import annotations

import contextlib
from pathlib import Path

import faiss
import numpy as np
import pytest
from test_index import as_stored, exact, records

from tigerfg.errors import InputError
from tigerfg.index import ivf
from tigerfg.index.collection import Collection
from tigerfg.index.factory import require_ivf, spanned, transformed, transforms_of
from tigerfg.index.plan import ROW_BYTES, IndexSettings
from tigerfg.index.probing import Centres
from tigerfg.index.span import trained

DIM, RANK, LISTS = 64, 20, 16


def vectors(count: int, seed: int = 0, noise: float = 0.0) -> np.ndarray:
    """Of length 1, in 20 directions of very different weight, apart from the noise."""
    shared = np.random.default_rng(99)
    directions = np.linalg.qr(shared.standard_normal((DIM, RANK)))[0].T
    centres = shared.standard_normal((40, RANK))
    rng = np.random.default_rng(seed)
    inside = centres[rng.integers(0, 40, count)] + 0.5 * rng.standard_normal((count, RANK))
    values = (inside * 0.9 ** np.arange(RANK)) @ directions + 0.3
    values += noise * rng.standard_normal(values.shape)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def built(path: Path, factory: str, values: np.ndarray) -> Collection:
    collection = Collection.create(
        path, model="m", fingerprint="f" * 64, embedding_dim=DIM, settings=IndexSettings(factory)
    )
    collection.put(records(0, values))
    collection.optimize()
    return collection


@pytest.mark.parametrize("graph", ["", "_HNSW8"])
def test_as_many_dimensions_as_the_vectors_fill(graph: str) -> None:
    """Rounded up to sixteens; and fewer for the centres."""
    sample = vectors(3000)
    index, factory = trained(f"SVD,IVF{LISTS}{graph},PQx4fs", sample)
    assert factory == f"SVD32,IVF{LISTS}{graph},PQ32x4fs"
    [matrix] = transforms_of(index)
    assert matrix.shape == (32, DIM)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(32), atol=1e-5)
    inner = transformed([matrix], sample)
    np.testing.assert_allclose(inner @ inner[:50].T, sample @ sample[:50].T, atol=1e-5)
    ivf = faiss.extract_index_ivf(index)
    [narrow] = transforms_of(ivf.quantizer)
    assert narrow.shape == (16, 32)
    kept = np.square(inner @ narrow.T).sum() / np.square(sample).sum()
    assert kept > 0.95
    best = np.linalg.svd(sample, compute_uv=False)[:16]
    assert kept == pytest.approx(np.square(best).sum() / np.square(sample).sum(), abs=1e-5)
    centres = Centres(faiss, ivf)
    assert (centres.graph is not None) == bool(graph)
    held = ivf.quantizer.reconstruct_n(0, LISTS)
    np.testing.assert_allclose(centres.scores(inner[:50]), inner[:50] @ held.T, atol=1e-5)


def test_no_dimension_varies_much_more_than_another() -> None:
    """Principal directions do: fast-scan, with one scale for all, would lose the others."""
    sample = vectors(3000)
    index, _ = trained(f"SVD20,IVF{LISTS},PQx4fs", sample)
    principal = sample @ np.linalg.svd(sample, full_matrices=False)[2][:RANK].T
    spread = [
        values.std(axis=0).max() / values.std(axis=0).min()
        for values in (principal, transformed(transforms_of(index), sample))
    ]
    assert spread[0] > 5
    assert spread[1] < 3


def test_all_dimensions_where_vectors_fill_them() -> None:
    sample = vectors(3000, noise=0.3)
    index, factory = trained(f"SVD,IVF{LISTS},RaBitQfs2", sample)
    assert factory == f"SVD64,IVF{LISTS},RaBitQfs2"
    inner = transformed(transforms_of(index), sample[:100])
    np.testing.assert_allclose(inner @ inner.T, sample[:100] @ sample[:100].T, atol=1e-5)


@pytest.mark.parametrize("code", ["PQx4fs", "PQ16x4fs", "RaBitQfs2", "RaBitQfs", "SQ8"])
@pytest.mark.parametrize("graph", ["", "_HNSW8"])
def test_what_is_nearest_is_found(tmp_path: Path, code: str, graph: str) -> None:
    """All of it in all lists; after additions and removals and opened again as well."""
    values, queries = vectors(3000, noise=0.01), vectors(30, seed=3, noise=0.01)
    collection = built(tmp_path / "cat", f"SVD,IVF{LISTS}{graph},{code}", values[:2500])
    collection.put(records(2500, values[2500:]))
    collection.delete(f"i{n}" for n in range(0, 3000, 3))
    index = collection._keeper.current()
    few = index.search(queries, 10)[1]
    index.notes |= {"nprobe": LISTS, "factor": 100}
    scores = queries @ as_stored(values).T
    scores[:, ::3] = -1
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10] + 1
    np.testing.assert_array_equal(index.search(queries, 10)[1], best)
    same = [len(set(a) & set(b)) for a, b in zip(few, best, strict=True)]
    assert sum(same) >= 0.9 * best.size
    lists = index._list_of.copy()
    collection.flush()
    collection.close()
    again = Collection.open(tmp_path / "cat", read_only=True)
    try:
        index = again._keeper.current()
        assert index.notes["factory"].startswith("SVD")
        live = index._live.nonzero()[0]
        np.testing.assert_array_equal(index._list_of[live], lists[live])
        index.notes |= {"nprobe": LISTS, "factor": 100}
        np.testing.assert_array_equal(index.search(queries, 10)[1], best)
    finally:
        again.close()


def test_equal_vectors(tmp_path: Path) -> None:
    """They fill one direction; the first k of them are found."""
    values = np.repeat(vectors(1), 500, axis=0)
    collection = built(tmp_path / "cat", "SVD,IVF2,PQx4fs", values)
    try:
        index = collection._keeper.current()
        assert index.notes["factory"] == "SVD16,IVF2,PQ16x4fs"
        index.notes["factor"] = 100
        np.testing.assert_array_equal(
            index.search(values[:1], 10)[1], exact(values[:500], values[:1])
        )
    finally:
        collection.close()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_k_results_whatever_fast_scan_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """A query's opposites get the least estimate there is, which its heap takes for empty."""
    monkeypatch.setattr(ivf, "EXACT_MOST", 0)
    signs = np.where(np.random.default_rng(0).random(40) < 0.5, -1, 1)[:, None]
    values = (vectors(1) * signs).astype(np.float32)
    collection = built(tmp_path / "cat", "SVD,IVF1,PQx4fs", values)
    try:
        index = collection._keeper.current()
        allowed = None if share == 1 else np.arange(1, 41)[::2]
        count = 40 if allowed is None else 20
        lost = 0
        queries = np.concatenate([values, vectors(10, seed=2)])
        for k in (1, 10, count, 50):
            scores, ids = index.search(queries, k, allowed)
            assert ids.shape == (50, min(k, count))
            assert all(len(set(line) - {-1}) == min(k, count) for line in ids.tolist())
            if allowed is not None:
                assert np.isin(ids, allowed).all()
            assert (np.diff(scores, axis=1) <= 0).all()
            lost += (index._candidates(*_asked(index, queries, 40)) < 0).sum()
        assert lost > 0
        assert len(collection.search(queries, 40)[3]) == 40
    finally:
        collection.close()


def _asked(index: ivf.IvfIndex, queries: np.ndarray, wanted: int) -> tuple:
    inner = transformed(index._transforms, queries)
    return inner, wanted, index._probing.choose(inner, index.lists), None


@pytest.mark.parametrize("start", ["SVD", "IVF"])
def test_auto_keeps_its_budget(start: str) -> None:
    """With vectors that fill all dimensions: what is counted is all that an index keeps."""
    items, dim = 3000, 48
    budgets = range(100_000, 1_000_000, 2000)
    budget = next(size for size in budgets if _choice(size, items, dim).startswith(start))
    factory = _choice(budget, items, dim)
    values = np.random.default_rng(0).standard_normal((items, dim)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    index, _ = trained(factory, values)
    index.add(values)
    centres = Centres(faiss, faiss.extract_index_ivf(index))
    arrays = [centres._columns, *transforms_of(index), *centres._transforms]
    size = len(faiss.serialize_index(index)) + ROW_BYTES * items
    size += sum(array.nbytes for array in arrays)
    assert 0.7 * budget < size <= budget


def _choice(budget: int, items: int, dim: int) -> str:
    with contextlib.suppress(InputError):
        return IndexSettings(memory_budget=budget).choose(items, dim)
    return ""


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("SVD", "SVD goes before IVF"),
        ("SVD,Flat", "SVD goes before IVF"),
        ("SVD,IVF8(IVF2,Flat),PQx4fs", "SVD goes before IVF"),
        ("SVD0,IVF8,PQx4fs", "SVD goes before IVF"),
        ("SVD65,IVF8,PQx4fs", "vectors have 64 dimensions, not 65"),
        ("SVD,IVF8,LSQ2x4", "cannot leave out items"),
        ("SVD,IVF0,PQx4fs", "SVD goes before IVF"),
        ("SVD,IVF8_HNSW0,PQx4fs", "a graph needs two links"),
        ("IVF8_HNSW1,Flat", "a graph needs two links"),
        ("SVD,IVF8,Nonsense", "index 'SVD,IVF8,Nonsense': faiss refuses it"),
        ("SVD,IVF8,PQx4fs,RFlat", "index 'SVD,IVF8,PQx4fs,RFlat' is no IVF index"),
        ("IVF8,PQx4fs", "faiss refuses it"),
    ],
)
def test_strings_that_cannot_be_used(factory: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        require_ivf(factory, DIM)


def test_too_few_items_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="5 items are too few"):
        built(tmp_path / "cat", "SVD,IVF2,PQx4fs", vectors(5))


def test_the_parts_of_a_string() -> None:
    assert spanned("IVF8,PQ4") is None
    for text in ("SVD,IVF8_HNSW4,PQx4fs", "SVD48,IVF8,PQ48x4fs", "SVD48,IVF8,RaBitQfs2"):
        assert str(spanned(text)) == text
    assert str(spanned("SVD48,IVF8,PQx4fs")) == "SVD48,IVF8,PQ48x4fs"
    assert require_ivf("SVD,IVF8,PQx4fs", DIM).d == DIM


@pytest.mark.parametrize("factory", ["IVF16,PQ16x4fs", "IVF16,Flat", "SVD32,IVF16,PQ16x4fs"])
def test_faiss_writes_nothing_to_the_terminal(factory: str, capfd: pytest.CaptureFixture) -> None:
    trained(factory, vectors(300))
    assert capfd.readouterr() == ("", "")
