"""GroceryStoreDataset in its original layout."""

from __future__ import annotations

import pytest

from tigerfg.benchmark.datasets import load_dataset
from tigerfg.errors import InputError

HEADER = (
    "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
    "Iconic Image Path (str),Product Description Path (str)\n"
)
APPLE = "/iconic-images-and-descriptions/Fruit/Apple/Golden-Delicious/Golden-Delicious"
JUICE = "/iconic-images-and-descriptions/Packages/Juice/Bravo-Orange-Juice/Bravo-Orange-Juice"
LEEK = "/iconic-images-and-descriptions/Vegetables/Leek/Leek"
CLASSES = (
    HEADER
    + f"Golden-Delicious,0,Apple,0,{APPLE}_Iconic.jpg,{APPLE}_Description.txt\n"
    + f"Bravo-Orange-Juice,29,Juice,19,{JUICE}_Iconic.jpg,{JUICE}_Description\n"
    + f"Leek,66,Leek,35,{LEEK}_Iconic.jpg,{LEEK}_Descriptions.txt\n"
)
PHOTOS = [
    "test/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg",
    "test/Fruit/Apple/Golden-Delicious/Golden-Delicious_002.jpg",
    "test/Packages/Juice/Bravo-Orange-Juice/Bravo-Orange-Juice_001.jpg",
]
TEST = f"{PHOTOS[0]}, 0, 0\n{PHOTOS[1]}, 0, 0\n{PHOTOS[2]}, 29, 19\n"


@pytest.fixture
def layout(write, jpegs):
    write("dataset/classes.csv", CLASSES)
    write("dataset/test.txt", TEST)
    jpegs(*(f"dataset/{name}" for name in PHOTOS))
    jpegs(*(f"dataset{path}_Iconic.jpg" for path in (APPLE, JUICE, LEEK)))
    write(f"dataset{APPLE}_Description.txt", "A white,\r\njuicy pulp.\r\n")
    write(f"dataset{JUICE}_Description.txt", "Orange juice.")
    write(f"dataset{JUICE}_Description_Swedish.txt", "Apelsinjuice.")
    write(f"dataset{LEEK}_Description_Swedish.txt", "Purjolök.")


def test_photos_ask_for_their_packshot(root, layout):
    found = load_dataset("grocery", root)
    assert found.rejected == []
    apple, juice, leek = found.items
    assert (apple.item_id, apple.title, apple.category) == (
        "Golden-Delicious",
        "Golden Delicious",
        "Fruit > Apple",
    )
    assert juice.category == "Packages > Juice"
    assert [item.description for item in found.items] == [
        "A white, juicy pulp.",
        "Orange juice.",  # classes.csv forgets the suffix
        "",  # Swedish only
    ]
    assert apple.image == str(root / f"dataset{APPLE}_Iconic.jpg")
    assert leek.extra == {"product_id": "66"}
    assert [(query.query_id, query.item_ids) for query in found.queries] == [
        (PHOTOS[0], ("Golden-Delicious",)),
        (PHOTOS[1], ("Golden-Delicious",)),
        (PHOTOS[2], ("Bravo-Orange-Juice",)),
    ]
    assert "1 of 3 packshots have no English description" in found.notes


def test_the_inner_folder_and_other_splits(root, layout, write, jpegs):
    inner = root / "dataset"
    assert len(load_dataset("grocery", inner).queries) == 3
    with pytest.raises(InputError, match=r"no val\.txt there: clone github\.com/marcusklasson"):
        load_dataset("grocery", inner, "val")
    write("dataset/val.txt", "\ufeffval/Fruit/a, b.jpg, 0, 0\r\n")
    jpegs("dataset/val/Fruit/a, b.jpg")
    (query,) = load_dataset("grocery", inner, "val").queries
    assert query.image == str(inner / "val/Fruit/a, b.jpg")


def test_bad_rows(root, layout, write, jpegs):
    rows = ["../outside.jpg, 0, 0", "/outside.jpg, 0, 0", "test/gone.jpg, 0, 0"]
    rows += [f"{PHOTOS[0]}, 5, 0", PHOTOS[0], f"{PHOTOS[0]}, 0, 0"]
    write("dataset/test.txt", TEST + "\n".join(rows))
    found = load_dataset("grocery", root)
    assert len(found.queries) == 3
    reasons = ["no path inside", "no path inside", "listed but not in the directory"]
    reasons += ["class id '5' has no packshot", "is not picture, class id", "duplicate"]
    for reject, reason in zip(found.rejected, reasons, strict=True):
        assert reason in reject.reason
    assert [reject.line for reject in found.rejected] == [4, 5, 6, 7, 8, 9]


def test_bad_packshots(root, layout, write):
    gone = CLASSES.replace(f"{LEEK}_Iconic.jpg", "/../outside.jpg")
    write("dataset/classes.csv", gone + f"X,67,X,36,{LEEK}_Iconic.jpg,/../../secret.txt\n")
    found = load_dataset("grocery", root)
    assert [item.item_id for item in found.items] == ["Golden-Delicious", "Bravo-Orange-Juice"]
    assert [reject.item_id for reject in found.rejected] == ["Leek", "X"]
    assert all("no path inside" in reject.reason for reject in found.rejected)


def test_a_description_that_is_not_utf8_costs_no_packshot(root, layout):
    (root / f"dataset{APPLE}_Description.txt").write_bytes("Crème".encode("latin-1"))
    found = load_dataset("grocery", root)
    assert len(found.items) == 3
    assert found.items[0].description.startswith("Cr?me")


def test_no_photo(root, layout, write):
    write("dataset/test.txt", "\n\n")
    with pytest.raises(InputError, match="split test has no query with a right item: clone"):
        load_dataset("grocery", root)
