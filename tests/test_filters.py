"""Filters on the store beside a plain Python evaluation of the same rules."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tigerfg.errors import InputError
from tigerfg.index.filters import matching
from tigerfg.index.store import Store
from tigerfg.index.stored import Record
from tigerfg.index.where import filter_fields, parse_filter

KEYS = [
    "color",
    "price",
    "category",
    "title",
    "stock",
    "missing",
    'a"b',
    "x'); DROP TABLE items; --",
    "a$.color",
    "größe\\",
    "%",
    "a.b",
]
TEXTS = [
    "Red",
    "red",
    "",
    "70",
    "70.0",
    "-1",
    "7e1",
    "' OR 1=1 --",
    "Ä",
    "\U0001f600",
    "a\0b",
    "1_0",
]
NUMBERS = [-1, 0, 1, 49.9, 70, 70.0, 2**63, -(2**63) - 1, 2**53 + 1, 1e300]
SCALARS = st.sampled_from([*TEXTS, *NUMBERS, True, False])
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.none(), st.just({"nested": "Red"}))


def documents() -> st.SearchStrategy[list[dict[str, Any]]]:
    document = st.fixed_dictionaries(
        {
            "title": st.sampled_from(["", "Red", "70"]),
            "category": st.sampled_from(["", "Shoes", "Red"]),
            "attributes": st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
        },
        optional={"stock": VALUES, "color": VALUES},
    )
    return st.lists(document, min_size=1, max_size=8)


def filters() -> st.SearchStrategy[dict[str, Any]]:
    comparison = st.dictionaries(
        st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), SCALARS, min_size=1
    )
    lists = st.dictionaries(
        st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, max_size=3), min_size=1
    )
    exists = st.fixed_dictionaries({"$exists": st.booleans()})
    leaf = st.dictionaries(
        st.sampled_from(KEYS), st.one_of(SCALARS, comparison, lists, exists), max_size=3
    )
    return st.recursive(
        leaf,
        lambda inner: st.dictionaries(
            st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3), min_size=1
        ),
        max_leaves=6,
    )


def expected(document: dict[str, Any], where: dict[str, Any]) -> bool:
    """The documented rules, evaluated the plain way."""
    return all(
        all(expected(document, part) for part in condition)
        if name == "$and"
        else any(expected(document, part) for part in condition)
        if name == "$or"
        else all(
            holds(values_of(document, name), operator, operand)
            for operator, operand in (
                condition if isinstance(condition, dict) else {"$eq": condition}
            ).items()
        )
        for name, condition in where.items()
    )


def values_of(document: dict[str, Any], name: str) -> list[Any]:
    for source in (
        {key: document[key] for key in ("item_id", "title", "category") if document[key]},
        document["attributes"],
        {key: document[key] for key in ("stock", "color") if key in document},
    ):
        if name in source:
            value = source[name]
            break
    else:
        return []
    values = value if isinstance(value, list) else [value]
    values = [v for v in values if isinstance(v, (str, int, float))]
    decimal = r"-?[0-9]+(\.[0-9]+)?"
    return values + [float(v) for v in values if isinstance(v, str) and re.fullmatch(decimal, v)]


def holds(values: list[Any], operator: str, operand: Any) -> bool:
    if operator == "$exists":
        return bool(values) == operand
    if operator in ("$ne", "$nin"):
        return not holds(values, {"$ne": "$eq", "$nin": "$in"}[operator], operand)
    if operator == "$in":
        return any(holds(values, "$eq", one) for one in operand)
    compare = {
        "$eq": lambda a, b: a == b,
        "$gt": lambda a, b: a > b,
        "$gte": lambda a, b: a >= b,
        "$lt": lambda a, b: a < b,
        "$lte": lambda a, b: a <= b,
    }[operator]
    # Numbers beyond 64 bits are doubles in SQLite.
    as_stored = [float(v) if isinstance(v, int) and abs(v) >= 2**63 else v for v in values]
    if isinstance(operand, int) and abs(operand) >= 2**63:
        operand = float(operand)
    return any(
        compare(value, operand)
        for value in as_stored
        if isinstance(value, str) == isinstance(operand, str)
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    store = Store.create(
        tmp_path_factory.mktemp("filters") / "cat", model="m", fingerprint="f", embedding_dim=4
    )
    store._db.execute("PRAGMA synchronous = OFF")  # thousands of small writes
    yield store
    store.close()


def fill(store: Store, stored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for number, document in enumerate(stored):
        document["item_id"] = f"i{number}"
    vector, grid = np.array([1, 0, 0, 0], np.float32), np.ones((1, 1), np.float32)
    old = [document["item_id"] for document in store.documents_after(0)[1]]
    store.delete(old)
    store.put(
        [Record(d["item_id"], b"", json.dumps(d, ensure_ascii=False), vector, grid) for d in stored]
    )
    return stored


def select(store: Store, where: dict[str, Any]) -> np.ndarray:
    return store.select(parse_filter(where))


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=documents(), where=filters())
def test_filter_equals_python_evaluation(store, stored, where):
    stored = fill(store, stored)
    ids = select(store, where)
    found = [row.document["item_id"] for _, row in sorted(store.rows(ids.tolist()).items())]
    assert found == [d["item_id"] for d in stored if expected(d, where)]


def test_deleted_items_leave_no_filter_values(store):
    fill(store, [{"title": "t", "category": "", "attributes": {"a": ["x", "7", 7, 7.0]}}])
    assert len(select(store, {"a": "x"})) == 1
    store.delete(["i0"])
    assert store.check() == []
    assert len(select(store, {"a": {"$exists": True}})) == 0


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("color", "no mapping"),
        ({"color": {"$regex": "x"}}, "unknown operator '$regex'"),
        ({"$not": {}}, "unknown operator '$not'"),
        ({"color": ["Red"]}, "use $in"),
        ({"color": None}, '{"$exists": false}'),
        ({"color": {}}, "no condition"),
        ({"color": {"$in": "Red"}}, "takes a list"),
        ({"color": {"$exists": 1}}, "true or false"),
        ({"color": {"$lt": float("nan")}}, "nan"),
        ({"color": {"$eq": b"x"}}, "takes text"),
        ({"$and": []}, "at least one"),
        ({"$or": {"a": 1}}, "takes a list"),
        ({7: 1}, "not text"),
        ({"color": "\ud800"}, "Unicode"),
        ({"\ud800": 1}, "Unicode"),
    ],
)
def test_bad_filter_is_refused(where, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        parse_filter(where)
    assert "\n" not in str(caught.value)


def test_nesting_is_limited_and_wide_filters_work(store):
    deep: dict[str, Any] = {"a": 1}
    for _ in range(40):
        deep = {"$and": [deep]}
    with pytest.raises(InputError, match="levels deep"):
        parse_filter(deep)
    fill(store, [{"title": "t", "category": "", "attributes": {"n": 2999}}])
    assert len(select(store, {"$or": [{"n": n} for n in range(3000)]})) == 1
    assert len(select(store, {"n": {"$in": list(range(70_000))}})) == 1
    assert len(select(store, {"n": {"$nin": list(range(70_000))}})) == 0


def test_names_and_values_never_reach_the_sql():
    hostile = "x' OR 1=1; DROP TABLE items; --"
    read: list[tuple[str, list[Any]]] = []

    def record(sql: str, parameters: list[Any]) -> np.ndarray:
        read.append((sql, parameters))
        return np.array([1])

    operands = dict.fromkeys(("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"), hostile)
    operands |= {"$in": [hostile], "$nin": [hostile], "$exists": True}
    for operator, operand in operands.items():
        where = {"$or": [{hostile: {operator: operand}}]}
        matching(parse_filter(where), record, lambda: np.array([1]))
    assert len(read) == len(operands)
    for sql, parameters in read:
        assert set(parameters) == {hostile}
        assert re.fullmatch(r"[A-Za-z.?=<>'() ]+", sql)


def test_numpy_scalars_count_as_numbers():
    for number, plain in ((np.float32(2), 2.0), (np.int64(2), 2), (np.True_, 1)):
        [(_, _, operand)] = parse_filter({"n": number}).parts
        assert (type(operand), operand) == (type(plain), plain)


def test_a_list_as_long_as_an_embedding_is_kept_but_not_filtered_on(caplog):
    documents = [
        {"item_id": "long", "clip": [0.5] * 100 + list(range(300)), "price": 1},
        {"item_id": "short", "clip": list(range(256)), "price": 1},
    ]
    assert filter_fields(documents[0]) == {"item_id": ["long"], "price": [1]}
    assert len(filter_fields(documents[1])["clip"]) == 256
    filter_fields(documents[0])
    assert caplog.text.count("field 'clip' holds lists of more than 256 values") == 1
