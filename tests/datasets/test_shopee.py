"""Shopee product matching."""

from __future__ import annotations

import pytest

from tigerfg.benchmark.datasets import load_dataset
from tigerfg.errors import InputError

HEADER = "posting_id,image,image_phash,title,label_group\n"
ROWS = '''train_1,aa.jpg,94974f937d4c2433,Paper Bag Victoria Secret,249114794
train_2,bb.jpg,af3f9460c2838f0f,"Double Tape 3M, 12 mm x 4,5 m ""ORIGINAL""",249114794
train_3,aa.jpg,94974f937d4c2433,Celana é wanita,249114794
train_4,cc.jpg,b94cb00ed3e50f78,Maling TTS,2395904891
train_5,dd.jpg,8514fc58eafea283,Daster,2395904891
'''
PICTURES = [f"train_images/{name}.jpg" for name in ("aa", "bb", "cc", "dd")]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_groups_and_titles(root, write, jpegs, bom, ends):
    write("train.csv", bom + (HEADER + ROWS).replace("\n", ends))
    jpegs(*PICTURES)
    found = load_dataset("shopee", root)
    assert (found.split, found.rejected) == ("train", [])
    assert [item.item_id for item in found.items] == [f"train_{n}" for n in range(1, 6)]
    assert [item.title for item in found.items] == [
        "Paper Bag Victoria Secret",
        'Double Tape 3M, 12 mm x 4,5 m "ORIGINAL"',
        "Celana é wanita",
        "Maling TTS",
        "Daster",
    ]
    assert found.items[2].image == str(root / "train_images/aa.jpg")
    assert {query.query_id: query.item_ids for query in found.queries} == {
        "train_1": ("train_2", "train_3"),
        "train_2": ("train_1", "train_3"),
        "train_3": ("train_1", "train_2"),
        "train_4": ("train_5",),
        "train_5": ("train_4",),
    }
    assert all(query.extra["exclude_item_id"] == query.query_id for query in found.queries)
    assert any("2 of 5 postings share their picture file" in note for note in found.notes)


def test_bad_rows(root, write, jpegs):
    rows = [
        "train_6,../../outside.jpg,,T,7",
        "train_7,/etc/hostname,,T,7",
        "train_8,gone.jpg,,T,7",
        "train_9,aa.jpg,,T,",
        ",aa.jpg,,T,7",
        "train_1,aa.jpg,,T,7",
        "train_10,aa.jpg,,T,7,too,many",
        "train_11,aa.jpg",
        'train_12,aa.jpg,,"T"x,7',
    ]
    write("train.csv", HEADER + ROWS + "\n".join(rows) + "\n")
    with open(root / "train.csv", "ab") as stream:
        stream.write(b"train_13,aa.jpg,,\xff\xfe,7\n")
    jpegs(*PICTURES)
    found = load_dataset("shopee", root)
    assert len(found.items) == 5
    assert [reject.line for reject in found.rejected] == list(range(7, 17))
    reasons = ["no path inside", "no path inside", "listed but not in train_images"]
    reasons += ["label_group is empty", "item_id is missing", "duplicate", "more cells than"]
    reasons += ["label_group is empty", "not valid csv", "title is no valid Unicode text"]
    for reject, reason in zip(found.rejected, reasons, strict=True):
        assert reason in reject.reason


def test_the_unlabelled_file_is_refused(root, write, jpegs):
    write("train.csv", "posting_id,image,image_phash,title\ntest_1,aa.jpg,,T\n")
    jpegs(*PICTURES)
    with pytest.raises(InputError, match=r"train\.csv: no column label_group; there are posting"):
        load_dataset("shopee", root)


def test_only_single_postings(root, write, jpegs):
    write("train.csv", HEADER + ROWS.splitlines()[0])
    jpegs(*PICTURES)
    with pytest.raises(InputError, match="split train has no query with a right item"):
        load_dataset("shopee", root)
