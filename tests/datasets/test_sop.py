"""Stanford Online Products."""

from __future__ import annotations

import pytest

from tigerfg.benchmark.datasets import load_dataset
from tigerfg.errors import InputError

HEADER = "image_id class_id super_class_id path\n"
ROWS = (
    "59552 11319 1 bicycle_final/251952414262_0.JPG\n"
    "59553 11319 1 bicycle_final/251952414262_1.JPG\n"
    "59554 11319 1 bicycle_final/251952414262_2.JPG\n"
    "59555 11320 4 coffee_maker_final/1_0.JPG\n"
    "59556 11320 4 coffee_maker_final/1_1.JPG\n"
)
PICTURES = [row.split()[3] for row in ROWS.splitlines()]


def test_every_picture_asks_for_the_others_of_its_class(root, write, jpegs):
    write("Ebay_test.txt", HEADER + ROWS)
    jpegs(*PICTURES)
    found = load_dataset("sop", root)
    assert (found.name, found.split, found.rejected) == ("sop", "test", [])
    assert [item.item_id for item in found.items] == ["59552", "59553", "59554", "59555", "59556"]
    assert [item.image for item in found.items] == [str(root / name) for name in PICTURES]
    assert [item.category for item in found.items] == ["bicycle"] * 3 + ["coffee maker"] * 2
    assert all((item.title, item.description) == ("", "") for item in found.items)
    assert {query.query_id: query.item_ids for query in found.queries} == {
        "59552": ("59553", "59554"),
        "59553": ("59552", "59554"),
        "59554": ("59552", "59553"),
        "59555": ("59556",),
        "59556": ("59555",),
    }
    images = {item.item_id: item.image for item in found.items}
    for query in found.queries:
        excluded = query.extra["exclude_item_id"]
        assert excluded not in query.item_ids
        assert images[excluded] == query.image


def test_the_folder_above_and_the_train_split(root, write, jpegs):
    write("Stanford_Online_Products/Ebay_train.txt", HEADER + ROWS)
    jpegs(*(f"Stanford_Online_Products/{name}" for name in PICTURES))
    assert len(load_dataset("sop", root, "train").queries) == 5
    with pytest.raises(InputError, match=r"no Ebay_test\.txt there: unpack Stanford_Online_Prod"):
        load_dataset("sop", root)


def test_windows_line_ends_bom_and_a_path_with_a_space(root, write, jpegs):
    text = HEADER + ROWS + "7 11320 4 mug_final/a b.JPG\n"
    write("Ebay_test.txt", "\ufeff" + text.replace("\n", "\r\n") + "\r\n")
    jpegs(*PICTURES, "mug_final/a b.JPG")
    found = load_dataset("sop", root)
    assert [item.extra["product_id"] for item in found.items] == ["11319"] * 3 + ["11320"] * 3
    assert found.items[-1].image == str(root / "mug_final/a b.JPG")


def test_bad_rows_are_listed_and_the_others_kept(root, write, jpegs):
    rows = [
        "1 5 1 ../outside.jpg",
        f"2 5 1 {root.parent / 'outside.jpg'}",
        "3 5 1 bicycle_final/../../outside.jpg",
        "4 5 1",
        "59552 5 1 bicycle_final/251952414262_0.JPG",
        "6 5 1 bicycle_final/gone.JPG",
    ]
    write("Ebay_test.txt", HEADER + ROWS + "\n".join(rows))
    jpegs(*PICTURES)
    found = load_dataset("sop", root)
    assert len(found.items) == 5
    assert [reject.line for reject in found.rejected] == [7, 8, 9, 10, 11, 12]
    reasons = ["no path inside"] * 3 + ["3 columns, not 4", "duplicate", "listed but not in"]
    for reject, reason in zip(found.rejected, reasons, strict=True):
        assert reason in reject.reason
        assert reject.source == str(root / "Ebay_test.txt")
    assert "unpack Stanford_Online_Products.zip" in found.rejected[-1].reason


def test_a_class_of_one_picture_asks_nothing_but_stays_a_distractor(root, write, jpegs):
    write("Ebay_test.txt", HEADER + ROWS)
    jpegs(*PICTURES[:-1])  # its twin is listed but not there
    found = load_dataset("sop", root)
    assert [item.item_id for item in found.items] == ["59552", "59553", "59554", "59555"]
    assert [query.query_id for query in found.queries] == ["59552", "59553", "59554"]
    assert "1 of 4 queries have no right item in the gallery and are left out" in found.notes
    assert len(found.rejected) == 1


@pytest.mark.parametrize("text", [HEADER, ""], ids=["header only", "empty"])
def test_an_empty_split(root, write, text):
    write("Ebay_test.txt", text)
    with pytest.raises(InputError, match=r"no item: unpack|no column image_id"):
        load_dataset("sop", root)


def test_no_picture_at_all(root, write):
    write("Ebay_test.txt", HEADER + ROWS)
    with pytest.raises(InputError, match=r"no item; the first of 5 rejected rows: .*unpack Sta"):
        load_dataset("sop", root)


def test_a_file_in_utf16_or_another_file(root, write):
    (root / "Ebay_test.txt").write_bytes((HEADER + ROWS).encode("utf-16"))
    with pytest.raises(InputError, match=r"Ebay_test\.txt: the file is UTF-16"):
        load_dataset("sop", root)
    write("Ebay_test.txt", "image_id class_id\n1 2\n")
    with pytest.raises(InputError, match="no column super_class_id, path; there are image_id, "):
        load_dataset("sop", root)


def test_a_binary_file_and_a_number_of_5000_digits(root, write):
    (root / "Ebay_test.txt").write_bytes(bytes(range(1, 256)) * 2000)
    with pytest.raises(InputError, match="no column image_id, class_id") as caught:
        load_dataset("sop", root)
    assert len(str(caught.value).encode("utf-8")) < 1000  # short, and without lone surrogates
    write("Ebay_test.txt", "7" * 5000 + "\n" + HEADER)
    with pytest.raises(InputError, match="no item: unpack"):
        load_dataset("sop", root)


def test_an_id_that_is_not_utf8_can_be_printed(root, write, jpegs):
    jpegs(*PICTURES)
    row = b"\xff 1 1 bicycle_final/251952414262_0.JPG\n"
    (root / "Ebay_test.txt").write_bytes((HEADER + ROWS).encode() + row)
    (reject,) = load_dataset("sop", root).rejected
    assert reject.item_id == "?"
    str(reject).encode("utf-8")
