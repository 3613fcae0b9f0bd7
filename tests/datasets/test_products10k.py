"""Products-10K."""

from __future__ import annotations

import pytest

from tigerfg.benchmark.datasets import load_dataset
from tigerfg.errors import InputError

TRAIN = "name,class,group\n0.jpg,0,0\n1.jpg,0,0\n2.jpg,1,0\n3.jpg,7,2\n"
TEST = "name,class,Usage\n0.jpg,0,Public\n1.jpg,1,Private\n2.jpg,99,Private\n"


@pytest.fixture
def layout(write, jpegs):
    write("train.csv", TRAIN)
    write("test_kaggletest.csv", TEST)
    jpegs(*(f"train/{n}.jpg" for n in range(4)), *(f"test/{n}.jpg" for n in range(3)))


def test_test_pictures_ask_for_train_pictures_of_their_class(root, layout):
    found = load_dataset("products10k", root)
    assert found.rejected == []
    assert [item.item_id for item in found.items] == [f"train/{n}.jpg" for n in range(4)]
    assert found.items[3].image == str(root / "train/3.jpg")
    assert found.items[3].extra == {"product_id": "7", "group": "2"}
    assert not any(item.has_text for item in found.items)
    assert {query.query_id: query.item_ids for query in found.queries} == {
        "test/0.jpg": ("train/0.jpg", "train/1.jpg"),
        "test/1.jpg": ("train/2.jpg",),
    }
    assert [query.image for query in found.queries] == [
        str(root / "test/0.jpg"),
        str(root / "test/1.jpg"),
    ]
    assert [query.extra["usage"] for query in found.queries] == ["Public", "Private"]
    assert "1 of 3 queries have no right item in the gallery and are left out" in found.notes


def test_a_test_list_with_classes_under_its_other_name(root, layout):
    (root / "test_kaggletest.csv").rename(root / "test.csv")
    assert len(load_dataset("products10k", root).queries) == 2


def test_kaggles_test_list_without_classes_is_refused(root, layout, write):
    (root / "test_kaggletest.csv").unlink()
    with pytest.raises(InputError, match=r"no test_kaggletest\.csv or test\.csv there: get train"):
        load_dataset("products10k", root)
    write("test.csv", "name\n0.jpg\n")
    with pytest.raises(InputError, match=r"test\.csv: no column class; there are name: get train"):
        load_dataset("products10k", root)


def test_bad_rows(root, layout, write):
    write("train.csv", TRAIN + "../../outside.jpg,0,0\n4.jpg,0,0\n1.jpg,3,3\n0.jpg,,\n")
    write("test_kaggletest.csv", TEST + "/outside.jpg,0,Public\n")
    found = load_dataset("products10k", root)
    assert (len(found.items), len(found.queries)) == (4, 2)
    reasons = ["no path inside", "listed but not in train", "duplicate", "class is empty"]
    for reject, reason in zip(found.rejected, [*reasons, "no path inside"], strict=True):
        assert reason in reject.reason
    assert [reject.line for reject in found.rejected] == [6, 7, 8, 9, 5]
