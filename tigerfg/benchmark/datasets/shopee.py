"""Shopee product matching: 34,250 postings of some 11,000 products, pictures and sellers' titles.

Kaggle's competition "Shopee - Price Match Guarantee" (2021, kaggle.com/c/shopee-product-matching);
the data is under the competition's rules (an account that accepted them), no open licence.

Layout, confirmed by the competition's data page::

    train.csv                         posting_id,image,image_phash,title,label_group
    train_images/0000a68812bc7e98c42888dfb1c07da0.jpg ...

Protocol: postings with the same ``label_group`` (at most 51) match. The competition scored the mean
F1 of the predicted sets, in which every posting matches itself, on hidden test postings; only
``train`` has labels. Here, as retrieval papers do, each posting's picture queries all other
postings (leave-one-out). Titles are English, Indonesian and Malay.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tigerfg.benchmark.datasets.source import EvalSet, Source, leave_one_out
from tigerfg.errors import InputError
from tigerfg.records import Item

SPLITS = ("train",)
COLUMNS = ("posting_id", "image", "title", "label_group")
DOWNLOAD = "unpack the data of Kaggle's competition shopee-product-matching here"


def read(directory: Path, split: str) -> EvalSet:
    """The labelled postings, each an item with its title and a query without."""
    source = Source(directory, ("train.csv",), ("", "shopee-product-matching"), DOWNLOAD)
    file = source.file("train.csv")
    items: list[Item] = []
    for line, row in source.csv(file, COLUMNS):
        with source.row(file, line, row["posting_id"] or None):
            if not row["label_group"]:
                raise InputError("label_group is empty: use train.csv, test.csv has no labels")
            item = Item(
                row["posting_id"],
                source.picture(row["image"], "train_images"),
                title=row["title"],
                extra={"product_id": row["label_group"]},
            )
            source.check(item)
            items.append(item)
    pictures = Counter(item.image for item in items)
    shared = sum(count for count in pictures.values() if count > 1)
    source.notes += [
        "leave-one-out: the posting of a query's own picture does not count",
        f"{shared} of {len(items)} postings share their picture file with another posting, which "
        "stays in the gallery as in the competition",
        "the competition's metric is the mean F1 of thresholded sets, not a recall",
    ]
    return source.evaluation_set(
        "shopee", split, items, leave_one_out(items), "other postings of the same label_group"
    )
