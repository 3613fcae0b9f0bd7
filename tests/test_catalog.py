"""Readers of items and queries: good lines, bad lines and every kind of source."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from tigerfg.catalog import Rejected, read_changes, read_entries, read_items, read_queries
from tigerfg.errors import InputError


def write(path, *lines) -> None:
    encoded = (
        line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()
        for line in lines
    )
    path.write_bytes(b"\n".join(encoded) + b"\n")


def record(item_id, **fields) -> dict:
    return {"item_id": item_id, "image": f"{item_id}.jpg", "title": "T", **fields}


# jsonl


BAD_LINES = [
    (b'{"item_id": "x", "image": "x.jpg"', "not valid JSON at column 34: "),
    (b"item_id,image", "not valid JSON at column 1"),
    (b'["x", "x.jpg"]', "not a JSON object"),
    (b'"x"', "not a JSON object"),
    (b"null", "not a JSON object"),
    (
        b'{"item_id": "x", "image": "x.jpg", "attributes": {"w": NaN}}',
        "attributes is not valid JSON: NaN is no JSON number",
    ),
    (
        b'{"item_id": "x", "image": "x.jpg", "target_box": [0, 0, Infinity, 1]}',
        "target_box is not valid JSON: Infinity is no JSON number",
    ),
    (b'{"item_id": "x", "price": NaN}', "not valid JSON: NaN is no JSON number"),
    (b'{"item_id": NaN, "image": }', "not valid JSON: NaN is no JSON number"),
    (b"[NaN]", "not valid JSON: NaN is no JSON number"),
    (b'{"item_id": "x\xff", "image": "x.jpg"}', "not valid UTF-8 at byte 15 of the line"),
    (b'{"item_id": "x", "image": "x.jpg", "title": "\\ud800"}', "title is no valid Unicode"),
    (b"[" * 200_000, "not valid JSON"),
    (b"\x00\x01\x02", "not valid JSON"),
    (b'{"image": "x.jpg"}', "item_id is missing"),
    (b'{"item_id": "x"}', "item_id 'x': image is missing"),
    (b'{"item_id": "x", "image": "x.jpg", "title": 7}', "title is a number"),
    (b'{"item_id": "x", "image": "x.jpg", "target_box": [9, 9, 1, 1]}', "inverted or empty"),
    (b'{"item_id": "a", "image": "x.jpg"}', "item_id 'a' is a duplicate, first on line 1"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_bad_line_is_listed_and_the_others_are_kept(tmp_path, line, reason):
    file = tmp_path / "items.jsonl"
    write(file, record("a"), line, record("b"))
    rejects: list[Rejected] = []
    assert [item.item_id for item in read_items(file, rejects.append)] == ["a", "b"]
    (reject,) = rejects
    assert reason in reject.reason
    assert "\n" not in reject.reason
    assert (reject.line, reject.source) == (2, str(file))

    items = read_items(file)
    assert next(items).item_id == "a"
    with pytest.raises(InputError) as caught:
        next(items)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert reason in str(caught.value)


def test_rejects_name_the_item_where_its_id_is_readable(tmp_path):
    write(tmp_path / "items.jsonl", record("a"), record("a"), record("b", title=1), b"{", {})
    rejects: list[Rejected] = []
    assert len(list(read_items(tmp_path, rejects.append))) == 1
    assert [reject.item_id for reject in rejects] == ["a", "b", None, None]
    assert [reject.line for reject in rejects] == [2, 3, 4, 5]


def test_id_of_a_rejected_line_is_free_for_a_good_one(tmp_path):
    write(tmp_path / "items.jsonl", record("a", title=1), record("a"))
    rejects: list[Rejected] = []
    assert [item.title for item in read_items(tmp_path, rejects.append)] == ["T"]
    assert len(rejects) == 1


def test_bom_blank_lines_and_line_ends(tmp_path):
    lines = [b"\xef\xbb\xbf" + json.dumps(record("a")).encode(), b"", b"  \t", b""]
    lines += [json.dumps(record("b")).encode() + b"\r", json.dumps(record("ö")).encode()]
    (tmp_path / "items.jsonl").write_bytes(b"\n".join(lines))  # no line end after the last
    assert [item.item_id for item in read_items(tmp_path)] == ["a", "b", "ö"]
    (tmp_path / "items.jsonl").write_bytes(b"")
    assert list(read_items(tmp_path)) == []


def test_utf16_is_named(tmp_path):
    (tmp_path / "items.jsonl").write_bytes(json.dumps(record("a")).encode("utf-16"))
    with pytest.raises(InputError, match="the file is UTF-16: save it as UTF-8"):
        read_items(tmp_path)


def test_items_without_text_are_kept_and_counted(tmp_path, caplog):
    write(
        tmp_path / "items.jsonl", record("a"), record("b", title=""), {"item_id": 3, "image": "c"}
    )
    with caplog.at_level(logging.WARNING, "tigerfg"):
        assert len(list(read_items(tmp_path))) == 3
    (message,) = caplog.messages
    assert "2 of 3 items have no text" in message
    assert "first 'b'" in message


def test_queries(tmp_path):
    good = {"query_id": "q1", "image": "q.jpg", "item_ids": ["a"]}
    write(tmp_path / "queries.jsonl", good, good, {**good, "query_id": "q2", "item_ids": "a"})
    rejects: list[Rejected] = []
    (query,) = read_queries(tmp_path, rejects.append)
    assert (query.query_id, query.item_ids) == ("q1", ("a",))
    assert ["duplicate" in rejects[0].reason, "not a list" in rejects[1].reason] == [True, True]
    with pytest.raises(InputError, match=r":2: query_id 'q1' is a duplicate"):
        list(read_queries(tmp_path / "queries.jsonl"))


# Image paths


def test_images_belong_to_the_nearest_folder_that_has_them(tmp_path):
    folder = tmp_path / "grocery" / "standard"
    (folder / "images").mkdir(parents=True)
    near, parent, grandparent = folder, folder.parent, folder.parent.parent
    for base, names in ((near, "a"), (parent, "ab"), (grandparent, "abc")):
        (base / "images").mkdir(exist_ok=True)
        for name in names:
            (base / "images" / f"{name}.jpg").touch()
    paths = ["images/a.jpg", "images/b.jpg", "images/c.jpg", "images/gone.jpg"]
    paths += ["/abs/x.jpg", "https://shop.example/x.jpg", "../images/b.jpg"]
    write(folder / "items.jsonl", *(record(str(i), image=path) for i, path in enumerate(paths)))
    assert [item.image for item in read_items(folder)] == [
        str(near / "images/a.jpg"),
        str(parent / "images/b.jpg"),
        str(grandparent / "images/c.jpg"),
        str(near / "images/gone.jpg"),
        "/abs/x.jpg",
        "https://shop.example/x.jpg",
        str(parent / "images/b.jpg"),
    ]


def test_image_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").touch()
    write(tmp_path / "items.jsonl", record("a"), record("b"))
    monkeypatch.chdir(tmp_path)
    images = [item.image for item in read_items("items.jsonl")]
    assert images == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]


# Other sources


def test_folder_of_images(tmp_path, caplog):
    for name in ("red_shoe-42.JPG", "sub/b.png", "sub/b.webp", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    rejects: list[Rejected] = []
    items = list(read_items(tmp_path, rejects.append))
    assert f"{tmp_path / 'linked'}: a link to a folder, which is not followed" in caplog.text
    assert [(item.item_id, item.title) for item in items] == [
        ("red_shoe-42", "red shoe 42"),
        ("sub/b", "b"),
    ]
    assert items[1].image == str(tmp_path / "sub" / "b.png")
    assert [reject.reason for reject in rejects] == ["item_id 'sub/b' is a duplicate"]


def test_a_folder_of_catalogues_is_no_folder_of_images(tmp_path):
    for name in ("cluttered", "standard"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "items.jsonl", record("a"))
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError) as caught:
        read_items(tmp_path)
    assert f"give {tmp_path / 'cluttered'} or {tmp_path / 'standard'}" in str(caught.value)


def test_csv(tmp_path):
    (tmp_path / "items.csv").write_bytes(
        b"\xef\xbb\xbfitem_id,image,title,attributes,target_box,brand\r\n"
        b'a,a.jpg,"Shoe, red","{""colour"": ""red""}","[0, 0, 5, 5]",X\r\n'
        b"b,b.jpg,,,,\r\n"
        b"c,c.jpg,T,red,,\r\n"
        b"d,d.jpg,T,,,X,too,many\r\n"
        b"e\xff,e.jpg,T,,,\r\n"
        b"f,f.jpg\r\n"
        b"g,,T,,,\r\n"
    )
    rejects: list[Rejected] = []
    items = list(read_items(tmp_path, rejects.append))
    assert [item.item_id for item in items] == ["a", "b", "f"]
    assert items[0].title == "Shoe, red"
    assert items[0].attributes == {"colour": "red"}
    assert items[0].target_box == (0, 0, 5, 5)
    assert items[0].extra == {"brand": "X"}
    assert [reject.line for reject in rejects] == [4, 5, 6, 8]
    reasons = ["attributes must be JSON", "more cells than the 6 columns", "no valid Unicode"]
    for reject, reason in zip(rejects, [*reasons, "image is missing"], strict=True):
        assert reason in reject.reason


def test_a_stray_quote_in_a_csv_costs_its_own_line(tmp_path):
    titles = [f"t{n}" for n in range(20)]
    titles[3] = '"27 inch'  # open to the end of the file, or to the next such quote
    titles[7] = '"two\nlines, and ""quotes"""'
    titles[16] = '"32 inch'
    rows = "".join(f"g{n},g{n}.jpg,{title}\n" for n, title in enumerate(titles))
    (tmp_path / "items.csv").write_text(f"item_id,image,title\n\n{rows}")
    rejects: list[Rejected] = []
    items = {item.item_id: item.title for item in read_items(tmp_path, rejects.append)}
    assert items.keys() == {f"g{n}" for n in range(20)} - {"g3", "g16"}
    assert items["g7"] == 'two\nlines, and "quotes"'
    assert [reject.line for reject in rejects] == [6, 20]
    assert all("not valid csv" in reject.reason for reject in rejects)


def unreadable_columns():
    pyarrow = pytest.importorskip("pyarrow")
    data = pyarrow.py_buffer(b"ok\xff\xfe")
    offsets = pyarrow.py_buffer(np.array([0, 2, 4], np.int32).tobytes())
    yield "brand", pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, data])
    yield "day", pyarrow.array([0, 2**30], pyarrow.date32())
    yield "attributes", pyarrow.array([[], ["XL", "XS"]])
    yield "attributes", pyarrow.array([[], [{"name": "color", "value": "red"}]])
    yield "attributes", pyarrow.array([[("a", 1)], [("b", 2)]], pyarrow.map_("string", "int64"))


@pytest.mark.parametrize("number", range(5))
def test_a_value_of_parquet_that_cannot_be_read_costs_its_row(tmp_path, number):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    name, column = list(unreadable_columns())[number]
    table = pyarrow.Table.from_pylist([record("a"), record("b")]).append_column(name, column)
    parquet.write_table(table, tmp_path / "items.parquet")
    rejects: list[Rejected] = []
    items = list(read_items(tmp_path, rejects.append))
    if "map" in str(column.type):
        assert [dict(item.attributes) for item in items] == [{"a": 1}, {"b": 2}]
        return
    assert [item.item_id for item in items] == ["a"]
    assert [(reject.line, name in reject.reason) for reject in rejects] == [(2, True)]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {**record("a"), "attributes": {"colour": "red", "size": None}, "target_box": [0, 0, 5, 5]},
        {**record("b"), "attributes": {"colour": None, "size": 3}, "price": 1.5},
        {**record("a"), "attributes": None},
        {**record("c"), "target_box": [0.0, 0.0, float("nan"), 5.0]},
    ]
    keys = {key: None for row in rows for key in row}
    table = pyarrow.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows])
    days = pyarrow.array([0, 1, 2, 3], pyarrow.date32())
    parquet.write_table(table.append_column("day", days), tmp_path / "items.parquet")
    rejects: list[Rejected] = []
    items = list(read_items(tmp_path, rejects.append))
    assert [dict(item.attributes) for item in items] == [{"colour": "red"}, {"size": 3}]
    assert items[0].target_box == (0, 0, 5, 5)
    assert items[1].extra == {"price": 1.5, "day": "1970-01-02"}
    assert [(reject.item_id, reject.line) for reject in rejects] == [("a", 3), ("c", 4)]
    (tmp_path / "items.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(InputError, match="not a readable parquet file"):
        list(read_items(tmp_path))


def test_what_is_no_source_is_said_at_once(tmp_path):
    with pytest.raises(InputError, match="gone: no such file or directory"):
        read_items(tmp_path / "gone")
    (tmp_path / "items.xml").touch()
    with pytest.raises(InputError, match=r"unknown kind of file '\.xml': give \.jsonl"):
        read_items(tmp_path / "items.xml")
    with pytest.raises(InputError, match=r"no items\.jsonl, \.parquet, \.csv or images"):
        read_items(tmp_path)
    with pytest.raises(InputError, match=r"no queries\.jsonl"):
        read_queries(tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("layout", ["standard", "cluttered"])
@pytest.mark.parametrize(("name", "items", "queries"), [("grocery", 648, 2527), ("luma", 185, 219)])
def test_real_catalogues(shared_data, name, items, queries, layout):
    folder = shared_data / name / layout
    read = list(read_items(folder))
    assert len(read) == items
    assert all(item.has_text for item in read)
    ids = {item.item_id for item in read}
    asked = list(read_queries(folder))
    assert len(asked) == queries
    assert all(ids.intersection(query.item_ids) for query in asked)


def test_entries_are_items_and_rejects_in_their_order(tmp_path):
    file = tmp_path / "items.jsonl"
    file.write_text('{"item_id": "a", "image": "a.png"}\n{\n{"item_id": "b", "image": "b.png"}\n')
    first, bad, last = read_entries(file)
    assert (first.item_id, bad.line, last.item_id) == ("a", 2, "b")
    assert isinstance(bad, Rejected)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("item_id;image;title", "separate columns by commas"),
        ("item_id\timage\ttitle", "separate columns by commas"),
        ("item_id,image,price,price", "column 'price' is there twice"),
        ("id,picture,title,", "no column item_id, image; there are: id, picture, title"),
        ('item_id,"image', "not valid csv: unexpected end of data"),
    ],
)
def test_a_header_that_cannot_be_used_is_the_error(tmp_path, header, reason):
    file = tmp_path / "items.csv"
    file.write_text(f"{header}\na,b,c,d\ne,f,g,h\n")
    with pytest.raises(InputError) as caught:
        list(read_entries(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_needs_the_columns_of_its_kind(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="parquet needs the extra scale")
    from pyarrow import parquet

    parquet.write_table(pa.table({"item_id": ["a"], "picture": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("item_id,picture\na,a\n")
    for name in ("a.parquet", "a.csv"):
        with pytest.raises(InputError, match="no column image; there are: item_id, picture"):
            list(read_items(tmp_path / name))
        with pytest.raises(InputError, match="no column query_id, image"):
            list(read_queries(tmp_path / name))
        assert [dict(change)["item_id"] for change in read_changes(tmp_path / name)] == ["a"]


def test_headers_with_spaces_and_long_cells_are_read(tmp_path):
    text = "<p>" + 'a ""long"" text, with a comma\n' * 10_000
    file = tmp_path / "items.csv"
    file.write_text(f'item_id , image, description,,\na,a.png,"{text}",,\nb,b.png,,,\n')
    first, second = read_entries(file)
    assert (first.item_id, second.item_id) == ("a", "b")
    assert first.description == text.replace('""', '"')


def test_parquet_with_other_bytes_and_pictures_of_datasets(tmp_path, caplog):
    pa = pytest.importorskip("pyarrow", reason="parquet needs the extra scale")
    from pyarrow import parquet

    rows = [
        {"item_id": "a", "image": {"bytes": b"picture", "path": None}, "phash": b"\x01"},
        {"item_id": "b", "image": {"bytes": None, "path": "b.png"}, "phash": b"\x02"},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    first, second = read_entries(tmp_path / "items.parquet")
    assert (first.image, first.extra) == (b"picture", {})
    assert second.image == str(tmp_path / "b.png")
    assert caplog.text.count("column 'phash' holds bytes") == 1
