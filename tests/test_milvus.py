"""Milvus: filters beside a plain evaluation, addresses, limits, what a server says no to."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from milvus_places import MILVUS, new_place
from test_filters import NUMBERS, TEXTS, documents, expected, filters

from tigerfg.errors import CatalogError, InputError
from tigerfg.index.database import StoreMeta
from tigerfg.index.milvus_address import MilvusAddress
from tigerfg.index.milvus_filters import compile_filter, name_token, value_token
from tigerfg.index.milvus_schema import MOST_BYTES, MilvusIndex, objection
from tigerfg.index.plan import IndexSettings
from tigerfg.index.stored import Record
from tigerfg.records import Item
from tigerfg.searcher import Searcher

DIM = 16
# libraries loaded here may have set the processor to take numbers below 1e-308 for zero
FLOATS = st.floats(allow_nan=False, allow_subnormal=False)


def record(number: int, document: dict | None = None, vector: np.ndarray | None = None) -> Record:
    if vector is None:
        vector = np.random.default_rng(number).standard_normal(DIM)
    whole = {"item_id": f"i{number}", "title": "", "category": "", "attributes": {}}
    text = json.dumps({**whole, **(document or {})}, ensure_ascii=False)
    grid = np.full((2, 3), 1 / 6, np.float32)
    return Record(f"i{number}", b"h" * 16, text, vector / np.linalg.norm(vector), grid)


@pytest.fixture(params=MILVUS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def collection(kind: str, tmp_path: Path):
    yield from opened(kind, tmp_path)


@pytest.fixture(scope="module")
def population(kind: str, tmp_path_factory: pytest.TempPathFactory):
    """A collection of random documents, and these."""
    rng = random.Random(0)
    stored = []
    for number in range(150):
        keys = ["color", "price", "stock", 'a"b', "x'); DROP TABLE items; --", "größe\\", "a.b"]
        values = [*TEXTS, *NUMBERS, True, False]

        def one(values: list = values) -> object:
            many = rng.random() < 0.3
            return (
                [rng.choice(values) for _ in range(rng.randrange(4))]
                if many
                else rng.choice(values)
            )

        stored.append(
            {
                "item_id": f"i{number}",
                "title": rng.choice(["", "Red", "70"]),
                "category": rng.choice(["", "Shoes", "Red"]),
                "attributes": {key: one() for key in rng.sample(keys, rng.randrange(5))},
                **({"stock": one()} if rng.random() < 0.5 else {}),
            }
        )
    for collection in opened(kind, tmp_path_factory.mktemp("milvus")):
        collection.put([record(n, document) for n, document in enumerate(stored)])
        yield collection, stored


def opened(kind: str, folder: Path, **options):
    from tigerfg.index.milvus import MilvusCollection

    for place in new_place(kind, folder):
        collection = MilvusCollection.create(
            place, model="m", fingerprint="f", embedding_dim=DIM, **options
        )
        yield collection
        collection.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=filters())
def test_filter_equals_python_evaluation(population, where):
    collection, stored = population
    wanted = {document["item_id"] for document in stored if expected(document, where)}
    [found] = collection.search(record(0).vector[None].astype(np.float32), len(stored), where)
    assert {match.document["item_id"] for match in found} == wanted


@given(a=st.one_of(st.integers(), FLOATS), b=st.data())
def test_tokens_of_numbers_sort_as_the_numbers(a, b):
    near = [a, float(a), a + 1] if isinstance(a, int) and abs(a) < 2**1000 else [a]
    b = b.draw(st.one_of(st.sampled_from(near), st.integers(), FLOATS))
    inside = [v if isinstance(v, float) or -(2**63) <= v < 2**63 else None for v in (a, b)]
    if None in inside:
        return  # stored as doubles: see `where`
    x, y = value_token(a), value_token(b)
    assert (x < y, x == y) == (a < b, a == b)


def test_whole_numbers_beyond_double_precision_are_told_apart():
    numbers = [2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1025, 2**63 - 1024, 2**63 - 1, -(2**63)]
    tokens = [value_token(number) for number in numbers]
    assert sorted(tokens) == [value_token(number) for number in sorted(numbers)]
    assert len(set(tokens)) == len(tokens)
    assert value_token(2**53) == value_token(float(2**53))
    assert value_token(-0.0) == value_token(0)


@given(st.text(), st.text())
def test_tokens_of_texts_sort_by_code_point(a, b):
    a, b = (text.encode("utf-8", "ignore").decode() for text in (a, b))
    assert (value_token(a) < value_token(b)) == ([*map(ord, a)] < [*map(ord, b)])


@given(stored=documents(), where=filters())
def test_expressions_hold_no_text_of_callers(stored, where):
    words = {"json_contains", "json_contains_any", "fields", "has", "is", "least", "most"}
    words |= {"n", "t", "and", "or", "not"}
    text = compile_filter(where)
    for sign in '()[]"=<>, ':
        text = text.replace(sign, " ")
    hexadecimal = set("0123456789abcdef")
    for word in text.split():
        assert word in words or set(word[1:]) <= hexadecimal or set(word) <= hexadecimal


def test_the_empty_filter_is_no_expression():
    assert compile_filter({}) == ""
    assert compile_filter({"$or": [{"a": 1}, {}]}) == ""
    assert name_token("") != ""


def test_a_write_replaces_deletes_and_reads_back(collection):
    assert collection.put([record(n) for n in range(5)]) == 0
    with pytest.raises(CatalogError, match="'i3' is taken"):
        collection.put([record(3)])
    changed = {"title": "new", "attributes": {"size": [1, "ü"]}}
    assert collection.put([record(3, changed), record(7)], replace=True) == 1
    assert len(collection) == 6
    assert collection.document("i3")["title"] == "new"
    assert collection.document("nope") is None
    assert collection.known(["i1", "nope"]) == {"i1": (b"h" * 16, record(1).document)}
    assert collection.delete(["i0", "nope"]) == 1
    assert [d["item_id"] for d in collection.documents()] == ["i1", "i2", "i4", "i3", "i7"]
    [line] = collection.search(record(7).vector[None].astype(np.float32), 2)
    assert line[0].document["item_id"] == "i7"
    np.testing.assert_allclose(line[0].grounding_map, np.full((2, 3), 1 / 6), atol=1e-3)
    assert collection.put([]) == 0
    assert collection.search(np.zeros((0, DIM), np.float32), 3) == []


@pytest.mark.parametrize("call", ["create_index", "load_collection"])
@pytest.mark.parametrize("drops", [True, False])
def test_a_catalogue_that_is_not_made_to_its_end(kind, tmp_path, monkeypatch, call, drops):
    """Interrupted, none is left; of a process that ended, it is whole when it is opened."""
    from pymilvus import MilvusClient

    from tigerfg.index.milvus import MilvusCollection

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    made = {"model": "m", "fingerprint": "f", "embedding_dim": DIM}
    for place in new_place(kind, tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(MilvusClient, call, stop)
            if not drops:
                patch.setattr(MilvusClient, "drop_collection", stop)
            with pytest.raises(KeyboardInterrupt):
                MilvusCollection.create(place, **made)
        assert MilvusCollection.exists(place) != drops
        collection = (
            MilvusCollection.create(place, **made) if drops else MilvusCollection.open(place)
        )
        assert collection._table._client.list_indexes(collection._table.address.collection)
        assert collection.meta.model == "m"
        collection.put([record(1)])
        assert len(collection.search(np.zeros((1, DIM), np.float32), 3)[0]) == 1
        collection.close()


def test_a_lost_index_is_made_again(collection):
    """Of a process that ended between the old one and the new."""
    from tigerfg.index.milvus import MilvusCollection

    collection.put([record(1)])
    client, name = collection._table._client, collection._table.address.collection

    def lose() -> None:
        client.release_collection(name)
        for index in client.list_indexes(name):
            client.drop_index(name, index)
        assert not client.list_indexes(name)

    lose()
    assert collection._table.pending() == 0
    again = MilvusCollection.open(collection.path)
    assert client.list_indexes(name)
    assert len(again.search(np.zeros((1, DIM), np.float32), 3)[0]) == 1
    again.close()
    lose()
    assert collection.optimize().items == 1
    assert client.list_indexes(name)


def test_two_writers_see_each_other(collection):
    from tigerfg.index.milvus import MilvusCollection

    place = collection.path
    other = MilvusCollection.open(place)
    collection.put([record(1)])
    other.put([record(2)])
    assert len(collection) == len(other) == 2
    assert other.meta == collection.meta
    other.close()
    with pytest.raises(CatalogError, match="closed"):
        other.document("i1")
    with pytest.raises(CatalogError, match="is there already"):
        MilvusCollection.create(place, model="m", fingerprint="f", embedding_dim=DIM)
    reader = MilvusCollection.open(place, read_only=True)
    for write in (lambda: reader.put([record(3)]), lambda: reader.delete(["i1"]), reader.optimize):
        with pytest.raises(CatalogError, match="reading only"):
            write()
    reader.close()


def test_verify_encodes_a_sample_again(kind, tmp_path):
    from fakes import FakeBundle, FakeEngine, save_picture

    for place in new_place(kind, tmp_path):
        with Searcher.create(place, FakeBundle(), engine=FakeEngine()) as searcher:
            files = [save_picture(tmp_path / f"{n}.png", n) for n in range(6)]
            searcher.add([Item(f"i{n}", file) for n, file in enumerate(files)])
            report = searcher.verify(sample=5)
            assert (report.ok, report.items, report.compared) == (True, 6, 5)
            assert report.least_cosine == pytest.approx(1, abs=1e-5)
            with pytest.raises(CatalogError, match="Milvus's own tools"):
                searcher.snapshot(tmp_path / "copy")


def test_commands_take_addresses(kind, tmp_path):
    from fakes import save_picture

    for n in range(5):
        save_picture(tmp_path / f"{n}.png", n)
    records = [{"item_id": f"i{n}", "image": f"{n}.png", "title": f"Item {n}"} for n in range(5)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for place in new_place(kind, tmp_path):
        if kind == "milvus-lite":  # a file is open in one process at a time
            place = f"milvus://{tmp_path}/own.db/shop"

        def tigerfg(*words: str, place: str = place) -> str:
            command = [sys.executable, "-m", "tigerfg.cli", *words, "--catalog", place]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        told = tigerfg("index", "--items", str(tmp_path / "items.jsonl"), "--engine", "onnx")
        assert told.startswith("5 added")
        assert place in told
        hits = json.loads(tigerfg("search", str(tmp_path / "3.png"), "--json", "-k", "2"))
        assert [hit["rank"] for hit in hits] == [1, 2]
        assert "5 items" in tigerfg("stats")
        assert "no problem" in tigerfg("verify")


def test_optimize_tunes_nprobe_and_the_next_start_knows(kind, tmp_path):
    from tigerfg.index.milvus import MilvusCollection

    if kind == "milvus-lite":
        pytest.skip("Milvus Lite has no IVF_PQ and heeds no nlist")
    setting = "IVF_PQ,nlist=16,m=8"
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, DIM))
    vectors = centres[rng.integers(0, 20, 2000)] + 0.4 * rng.standard_normal((2000, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    options = {"settings": IndexSettings(setting, 0.9)}
    for collection in opened(kind, tmp_path, **options):
        assert collection.stats().nprobe == 16
        for start in range(0, 2000, 500):
            rows = range(start, start + 500)
            collection.put([record(n, {"stock": n}, vectors[n]) for n in rows])
        stats = collection.optimize()
        assert stats.items == 2000
        assert stats.kind.startswith(setting.split(",")[0])
        assert stats.recall >= 0.9
        assert stats.nprobe == stats.curve[-1]["nprobe"]
        assert stats.queries == 0
        photos = rng.standard_normal((50, DIM))
        photos = (photos / np.linalg.norm(photos, axis=1, keepdims=True)).astype(np.float32)
        stats = collection.optimize(photos)
        assert stats.queries == 50
        assert stats.recall >= 0.9
        stats = collection.optimize()
        assert stats.queries == 0
        again = MilvusCollection.open(collection.path)
        assert again.stats().nprobe == stats.nprobe
        again.close()
        told = MilvusCollection.open(collection.path + "?nprobe=3")
        assert told.stats().nprobe == 3
        assert told.stats().recall is None
        # results are ranked by exact scores, and a filter never costs one
        queries = vectors[:20].astype(np.float32)
        lines = told.search(queries, 10, {"stock": {"$lt": 10}})
        exact = np.sort(queries @ vectors[:10].T.astype(np.float32))[:, ::-1]
        np.testing.assert_allclose([[m.score for m in line] for line in lines], exact, atol=1e-5)
        told.close()


def test_every_line_that_comes_short_is_asked_again():
    """And no other; the first of a batch may be one that has found all there is."""
    from tigerfg.index.milvus import MilvusCollection

    class Table:
        address, closed = MilvusAddress.parse("milvus://host/shop"), False

        def __init__(self):
            self.asked = []

        def nearest(self, embeddings, k, expression, index, nprobe):
            self.asked.append(embeddings[:, 0].tolist())
            there = [4 if nprobe == index.lists else int(own) for own in embeddings[:, 0]]
            return [["match"] * min(k, n) for n in there]

        def count(self, expression=""):
            return 4

    meta = StoreMeta.new("m", "f", DIM, IndexSettings("IVF_FLAT,nlist=64"))
    queries = np.zeros((3, DIM), np.float32)
    queries[:, 0] = 4, 3, 2  # as many as a query's nearest lists hold
    for k, again in ((10, [3, 2]), (3, [2]), (2, None)):
        collection = MilvusCollection(table := Table(), meta, {}, read_only=False)
        assert [len(line) for line in collection.search(queries, k)] == [min(k, 4)] * 3
        assert table.asked == [[4, 3, 2]] + ([again] if again else [])


def test_an_exact_collection_has_nothing_to_tune(kind, tmp_path):
    for collection in opened(kind, tmp_path, settings=IndexSettings("flat")):
        collection.put([record(n) for n in range(3)])
        stats = collection.optimize()
        assert (stats.kind, stats.items, stats.nprobe, stats.recall) == ("FLAT", 3, None, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("milvus://host", "no name of a collection"),
        ("milvus://host/a-b", "'a-b' is no name of a collection"),
        ("milvus://host:0x/a", "port"),
        ("milvus:///shop", "neither a host nor a file"),
        ("milvus://host/db/shop", "?db="),
        ("milvus://host/shop?nprobe=0", "nprobe '0'"),
        ("milvus://host/shop?tls=yes", "tls 'yes'"),
        ("milvus://user:secret@host/shop?colour=1", "'colour' is no setting"),
    ],
)
def test_bad_address_is_refused(text, words):
    with pytest.raises(InputError) as caught:
        MilvusAddress.parse(text)
    assert words.lower() in str(caught.value).lower()
    assert "secret" not in str(caught.value)


def test_addresses(monkeypatch):
    address = MilvusAddress.parse("milvus://ann:p%40ss@db.example/shop?db=eu&tls=1&nprobe=32")
    assert (address.uri, address.collection) == ("https://db.example:19530", "shop")
    assert (address.token, address.database, address.nprobe) == ("ann:p@ss", "eu", 32)
    assert str(address) == "milvus://db.example:19530/shop?db=eu"
    monkeypatch.setenv("MILVUS_TOKEN", "key")
    assert MilvusAddress.parse("milvus://[::1]:1/shop").uri == "http://[::1]:1"
    assert MilvusAddress.parse("milvus://host/shop").token == "key"
    lite = MilvusAddress.parse("milvus:///data/my%20shop.db/items")
    assert (lite.uri, lite.collection, lite.lite) == ("/data/my shop.db", "items", True)


def test_index_settings_go_by_milvus_names():
    assert str(MilvusIndex.parse("auto", 256, lite=False)) == "IVF_PQ,nlist=1024,m=64,nbits=8"
    assert str(MilvusIndex.parse("auto", 256, lite=True)) == "FLAT"
    assert str(MilvusIndex.parse("flat", 256, lite=False)) == "FLAT"
    assert MilvusIndex.parse("GPU_IVF_PQ,nlist=4096", 256, lite=False).lists == 4096
    hnsw = MilvusIndex.parse("HNSW,M=16,efConstruction=200", 256, lite=False)
    assert (hnsw.lists, hnsw.factor) == (None, 1)
    for setting in ("IVF4096,PQ64", "ivf_pq", "IVF_PQ,nlist", "IVF_PQ,nlist=-1"):
        with pytest.raises(InputError, match="index"):
            MilvusIndex.parse(setting, 256, lite=False)
    with pytest.raises(InputError, match="Lite"):
        MilvusIndex.parse("IVF_FLAT", 256, lite=True)


def test_what_does_not_fit_is_refused_before_it_is_encoded():
    fits = {"item_id": "a", "description": "x" * (MOST_BYTES - 100)}
    assert objection(json.dumps(fits)) is None
    assert "65535" in objection(json.dumps({**fits, "description": "ü" * MOST_BYTES}))
    assert "description" in objection(json.dumps({"item_id": "a", "notes": "x" * 20_000}))


def test_no_server_and_no_folder_are_clear_errors(tmp_path):
    pytest.importorskip("pymilvus")
    from tigerfg.index.milvus import MilvusCollection

    with pytest.raises(CatalogError, match="cannot connect"):
        MilvusAddress.parse("milvus://127.0.0.1:9/shop").connect(timeout=1)
    with pytest.raises(CatalogError, match="no directory"):
        MilvusCollection.open(f"milvus://{tmp_path}/none/lite.db/shop")
    with pytest.raises(InputError, match="memory_budget"):
        MilvusCollection.create(
            "milvus://host/shop",
            model="m",
            fingerprint="f",
            embedding_dim=DIM,
            settings=IndexSettings("auto", 0.9, 1 << 30),
        )


def test_only_an_idle_connection_to_lite_is_left_in_peace(monkeypatch, tmp_path):
    """After 110 s of pings Milvus Lite closes the connection; a server may have its pings."""
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    monkeypatch.setattr(pymilvus, "MilvusClient", lambda **options: options["grpc_options"])
    lite = MilvusAddress.parse(f"milvus://{tmp_path}/lite.db/shop").connect()
    assert lite == {"grpc.keepalive_permit_without_calls": False}
    assert MilvusAddress.parse("milvus://localhost/shop").connect() == {}
