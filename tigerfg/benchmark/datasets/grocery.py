"""GroceryStoreDataset: 5,125 phone photos of 81 groceries in Swedish shops, and their packshots.

Klasson, Zhang, Kjellström: "A Hierarchical Grocery Store Image Dataset with Visual and Semantic
Labels", WACV 2019. ``github.com/marcusklasson/GroceryStoreDataset`` (clone it), MIT licence; the
packshots and descriptions were taken from a shop's site, and brands are third parties' marks.

Layout, confirmed in that repository (give it or its folder ``dataset``)::

    train.txt val.txt test.txt        picture, class id (of 81), coarse class id (of 42), such as
                                      test/Fruit/Banana/Banana_001.jpg, 6, 2
    classes.csv                       Class Name (str),Class ID (int),Coarse Class Name (str),
                                      Coarse Class ID (int),Iconic Image Path (str),
                                      Product Description Path (str); paths begin with /
    iconic-images-and-descriptions/Fruit/Apple/Golden-Delicious/Golden-Delicious_Iconic.jpg,
                                      ..._Description.txt, ..._Information.txt

Some description paths of classes.csv do not exist (a missing suffix, ``_Descriptions``): the
English description beside the packshot is taken then.

Protocol: photos of the split query the 81 packshots with name, category and description. Recall@1
is the accuracy of the paper's classification by its nearest packshot. This is the original layout;
the project's own ``grocery/standard`` and ``cluttered`` directories have items.jsonl.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from tigerfg.benchmark.datasets.source import EvalSet, Source, printable, with_answers
from tigerfg.errors import InputError
from tigerfg.records import Item, Query

SPLITS = ("test", "val", "train")
NAME, NUMBER, COARSE = "Class Name (str)", "Class ID (int)", "Coarse Class Name (str)"
ICONIC, DESCRIPTION = "Iconic Image Path (str)", "Product Description Path (str)"
DOWNLOAD = "clone github.com/marcusklasson/GroceryStoreDataset and give its folder dataset"


def read(directory: Path, split: str) -> EvalSet:
    """The packshots as items, the photos of one split as queries."""
    source = Source(directory, ("classes.csv",), ("", "dataset"), DOWNLOAD)
    items = _packshots(source)
    file = source.file(f"{split}.txt")
    names = {item.extra["product_id"] for item in items}
    queries: list[Query] = []
    for line, text in source.lines(file):
        cells = [cell.strip() for cell in text.rsplit(",", 2)]
        with source.row(file, line):
            if len(cells) < 3:
                raise InputError(f"{text!r} is not picture, class id, coarse class id")
            if cells[1] not in names:
                raise InputError(f"class id {cells[1]!r} has no packshot in classes.csv")
            query = Query(
                cells[0],
                source.picture(cells[0]),
                extra={"product_id": cells[1], "coarse_id": cells[2]},
            )
            source.check(query)
            queries.append(query)
    without = sum(not item.description for item in items)
    source.notes.append(f"{without} of {len(items)} packshots have no English description")
    return source.evaluation_set(
        "grocery", split, items, with_answers(queries, items), "the packshot of the photo's class"
    )


def _packshots(source: Source) -> list[Item]:
    file = source.file("classes.csv")
    items: list[Item] = []
    for line, row in source.csv(file, (NAME, NUMBER, COARSE, ICONIC, DESCRIPTION)):
        with source.row(file, line, row[NAME] or None):
            iconic = row[ICONIC].lstrip("/")
            image = source.picture(iconic)
            department = PurePosixPath(iconic).parts[1:2]  # Fruit, Packages, Vegetables
            item = Item(
                row[NAME],
                image,
                title=row[NAME].replace("-", " "),
                category=" > ".join((*department, row[COARSE].replace("-", " "))),
                description=_description(source, row[DESCRIPTION].lstrip("/"), Path(image).parent),
                extra={"product_id": row[NUMBER]},
            )
            source.check(item)
            items.append(item)
    return items


def _description(source: Source, name: str, beside: Path) -> str:
    """The English description on one line; "" where there is none."""
    path = source.optional(source.inside(name)) if name else None
    if path is None:
        found = sorted(beside.glob("*_Description*.txt"))
        path = next((file for file in found if "Swedish" not in file.name), None)
    text = "" if path is None else " ".join(line for _, line in source.lines(path))
    return printable(text)  # a byte of Latin-1 costs no packshot
