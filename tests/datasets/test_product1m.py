"""Product1M."""

from __future__ import annotations

import pytest

from tigerfg.benchmark.datasets import load_dataset
from tigerfg.errors import InputError

URL = "https://img.example/imgextra/i1/x.jpg#####http://copy.example/images/x.jpg"
GALLERY = (
    f"100#####韩国&nbsp;AHC 面霜#####{URL}#####AHC 黄金面霜\n"
    f"101#####面霜 50ml#####{URL}#####AHC 黄金面霜#;#AHC 黄金水\n"
    f"102#####眼霜#####{URL}#####AHC 黄金眼霜\n"
    f"103#####口红#####{URL}#####口红\n"
)
TEST = (
    f"200#####三件套装#####{URL}#####AHC 黄金眼霜#;#AHC 黄金面霜#;#AHC 黄金眼霜\n"
    f"201#####礼盒#####{URL}#####没有\n"
)
PICTURES = [f"images/{n}.jpg" for n in (100, 101, 102, 103, 200, 201)]


@pytest.fixture
def layout(write):
    write("product1m_gallery_ossurl_v2.txt", GALLERY)
    write("product1m_test_ossurl_v2.txt", TEST)


def test_sets_ask_for_all_offers_of_their_products(root, layout, jpegs):
    jpegs(*PICTURES)
    found = load_dataset("product1m", root)
    assert found.rejected == []
    assert [item.item_id for item in found.items] == ["100", "101", "102", "103"]
    assert found.items[0].title == "韩国 AHC 面霜"
    assert found.items[0].image == str(root / "images/100.jpg")
    # the first label alone counts in the gallery; labels are no text
    assert found.items[1].extra == {"product_id": "AHC 黄金面霜"}
    assert not any(item.category or item.attributes for item in found.items)
    (query,) = found.queries
    assert (query.query_id, query.item_ids, query.box) == ("200", ("102", "100", "101"), None)
    assert query.extra == {"labels": ["AHC 黄金眼霜", "AHC 黄金面霜"]}
    assert "1 of 2 queries have no right item in the gallery and are left out" in found.notes


def test_where_pictures_may_lie(root, layout, jpegs):
    jpegs("product1m_gallery_ossurl_v2/100.png", "101.webp", "images/102.jpeg", "images/103.jpg")
    jpegs("product1m_test_ossurl_v2/200.jpg", "201.jpg")
    found = load_dataset("product1m", root)
    assert [item.image.removeprefix(f"{root}/") for item in found.items] == [
        "product1m_gallery_ossurl_v2/100.png",
        "101.webp",
        "images/102.jpeg",
        "images/103.jpg",
    ]
    assert found.queries[0].image == str(root / "product1m_test_ossurl_v2/200.jpg")


def test_the_dev_split_windows_line_ends_and_bom(root, layout, write, jpegs):
    write("product1m_dev_ossurl_v2.txt", "\ufeff" + TEST.replace("\n", "\r\n"))
    jpegs(*PICTURES)
    (query,) = load_dataset("product1m", root, "dev").queries
    assert query.query_id == "200"
    (root / "product1m_test_ossurl_v2.txt").unlink()
    with pytest.raises(InputError, match=r"no product1m_test_ossurl_v2\.txt there: get the lists"):
        load_dataset("product1m", root)


def test_bad_rows(root, layout, write, jpegs):
    rows = ["104#####T#####u#####L", f"105#####T#####{URL}##### ", f"../outside#####T#####{URL}"]
    rows[2] += "#####L"
    rows += [f"{root.parent}/outside#####T#####{URL}#####L", f"999#####T#####{URL}#####L"]
    rows += [f"100#####T#####{URL}#####L", f"#####T#####{URL}#####L"]
    write("product1m_gallery_ossurl_v2.txt", GALLERY + "\n".join(rows))
    jpegs(*PICTURES)
    found = load_dataset("product1m", root)
    assert len(found.items) == 4
    reasons = ["4 columns parted by #####", "'105' has no label", "no path inside"]
    reasons += ["no path inside", "no picture of offer '999'", "duplicate", "'' is no path inside"]
    for reject, reason in zip(found.rejected, reasons, strict=True):
        assert reason in reject.reason
    assert [reject.line for reject in found.rejected] == [5, 6, 7, 8, 9, 10, 11]


def test_an_empty_gallery(root, layout, write):
    write("product1m_gallery_ossurl_v2.txt", "")
    with pytest.raises(InputError, match="split test has no item; the first of 2 rejected rows"):
        load_dataset("product1m", root)
