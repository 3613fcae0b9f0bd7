"""Stanford Online Products (SOP): 120,053 eBay pictures of 22,634 products in 12 categories.

Song, Xiang, Jegelka, Savarese: "Deep Metric Learning via Lifted Structured Feature Embedding",
CVPR 2016. ``Stanford_Online_Products.zip`` comes from cvgl.stanford.edu/projects/lifted_struct; it
holds a LICENSE file. The pictures are eBay sellers' own: research use.

Layout, confirmed by several public loaders::

    Ebay_train.txt  Ebay_test.txt     image_id class_id super_class_id path, one header line
    bicycle_final/111085122871_0.JPG ...

Protocol: every picture of the split queries all others of it, right are those of its class
(leave-one-out). Standard figures: Recall@1, 10, 100, 1000 on ``test`` (60,502 pictures of 11,316
classes, none of which is in ``train``). There is no text but the category, which 12 folder names
give.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from tigerfg.benchmark.datasets.source import EvalSet, Source, leave_one_out
from tigerfg.records import Item

SPLITS = ("test", "train")
FILES = {"test": "Ebay_test.txt", "train": "Ebay_train.txt"}
COLUMNS = ("image_id", "class_id", "super_class_id", "path")
DOWNLOAD = "unpack Stanford_Online_Products.zip (Stanford, lifted structured embedding) here"


def read(directory: Path, split: str) -> EvalSet:
    """The pictures of one split, each an item and a query."""
    source = Source(directory, (FILES[split],), ("", "Stanford_Online_Products"), DOWNLOAD)
    file = source.file(FILES[split])
    items: list[Item] = []
    for line, row in source.columns(file, COLUMNS):
        with source.row(file, line, row["image_id"]):
            folder = PurePosixPath(row["path"]).parent.name
            item = Item(
                row["image_id"],
                source.picture(row["path"]),
                category=folder.removesuffix("_final").replace("_", " "),
                extra={"product_id": row["class_id"]},
            )
            source.check(item)
            items.append(item)
    source.notes += [
        "items have no text but one of 12 category names: a test of pictures, hardly of grounding",
        "leave-one-out: the item of a query's own picture does not count",
    ]
    return source.evaluation_set(
        "sop", split, items, leave_one_out(items), "other pictures of the same class_id"
    )
