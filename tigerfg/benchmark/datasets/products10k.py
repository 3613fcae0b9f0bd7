"""Products-10K: some 190,000 pictures of about 10,000 products sold by JD.com.

Bai, Chen, Yu, Wang, Zhang: "Products-10K: A Large-scale Product Recognition Dataset", 2020
(arXiv 2008.10545). ``train.zip``, ``test.zip``, ``train.csv`` and ``test_kaggletest.csv`` come from
products-10k.github.io, also from Kaggle's competition "products-10k". The licence could not be
confirmed.

Layout, confirmed by several public loaders::

    train.csv                         name,class,group
    test_kaggletest.csv               name,class,Usage (Public or Private)
    test.csv                          Kaggle's list without classes: of no use here
    train/0.jpg ...  test/0.jpg ...

Whether ``test.csv`` ever has classes could not be confirmed; it is read if it does.

Protocol: the benchmark is classification (top-1 accuracy); as retrieval, test pictures query the
train pictures, right are those of the same class. Recall@1 is the accuracy of the nearest
neighbour. There is no text at all: class and group are numbers.
"""

from __future__ import annotations

from pathlib import Path

from tigerfg.benchmark.datasets.source import EvalSet, Source, with_answers
from tigerfg.errors import InputError
from tigerfg.records import Item, Query

SPLITS = ("test",)
DOWNLOAD = (
    "get train.zip, test.zip, train.csv and test_kaggletest.csv from products-10k.github.io "
    "and unpack them here"
)


def read(directory: Path, split: str) -> EvalSet:
    """Train pictures as items, test pictures as queries."""
    source = Source(directory, ("train.csv",), ("",), DOWNLOAD)
    file = source.file("train.csv")
    items: list[Item] = []
    for line, row in source.csv(file, ("name", "class", "group")):
        with source.row(file, line, row["name"] or None):
            item = Item(
                f"train/{row['name']}",
                source.picture(row["name"], "train"),
                extra={"product_id": _class(row), "group": row["group"]},
            )
            source.check(item)
            items.append(item)
    file = source.file("test_kaggletest.csv", "test.csv")
    queries: list[Query] = []
    for line, row in source.csv(file, ("name", "class")):
        with source.row(file, line, row["name"] or None):
            query = Query(
                f"test/{row['name']}",
                source.picture(row["name"], "test"),
                extra={"product_id": _class(row), "usage": row.get("Usage", "")},
            )
            source.check(query)
            queries.append(query)
    source.notes += [
        "items have no text: what is measured is the picture alone",
        "a retrieval reading of a classification benchmark: Recall@1 is nearest-neighbour accuracy",
    ]
    return source.evaluation_set(
        "products10k",
        split,
        items,
        with_answers(queries, items),
        "train pictures of the test picture's class",
    )


def _class(row: dict[str, str]) -> str:
    if not row["class"]:
        raise InputError("class is empty: use train.csv and test_kaggletest.csv, which have it")
    return row["class"]
