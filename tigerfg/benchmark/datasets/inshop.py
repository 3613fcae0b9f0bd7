"""DeepFashion In-shop Clothes Retrieval: 52,712 pictures of 7,982 garments on models.

Liu, Luo, Qiu, Wang, Tang: "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
Annotations", CVPR 2016. From the page of CUHK's Multimedia Lab (mmlab.ie.cuhk.edu.hk/projects/
DeepFashion.html), which gives the password of the archives after an agreement: non-commercial
research and education only.

Layout, from the README of the release::

    Eval/list_eval_partition.txt      number of rows; image_name item_id evaluation_status
                                      (train, query or gallery). Also directly in the directory.
    Anno/list_bbox_inshop.txt         number of rows;
                                      image_name clothes_type pose_type x_1 y_1 x_2 y_2
    Anno/list_description_inshop.json [{"item", "color", "description": [lines]}]
    img/WOMEN/Dresses/id_00000002/02_1_front.jpg ...   also below Img/; 256 x 256 pixels, padded

``Anno/list_item_inshop.txt`` only repeats the item ids and is not read. Boxes and descriptions are
optional. Boxes belong to the 256 x 256 pictures: with ``img_highres`` alone they are left out,
because how those were scaled could not be confirmed.

Protocol: pictures of the partition *query* (14,218) search *gallery* (12,612), right are those of
the same item id. Standard figures: Recall@1, 10, 20, 30, 40, 50. Published ones use whole pictures
mostly: queries here have no box, the box is in ``extra["product_box"]`` (and is ``target_box`` of
items), so that ``replace(query, box=query.extra["product_box"])`` makes the crop.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from tigerfg.benchmark.datasets.source import EvalSet, Source, with_answers
from tigerfg.boxes import check_box
from tigerfg.errors import InputError
from tigerfg.records import Item, Query

SPLITS = ("test",)
PARTITION = "list_eval_partition.txt"
SIZE = (256, 256)  # of every picture in img/
CORNERS = ("x_1", "y_1", "x_2", "y_2")
DOWNLOAD = (
    "get Eval/list_eval_partition.txt, the folder Anno and Img/img.zip (unpacked to img) of the "
    "In-shop Clothes Retrieval Benchmark from DeepFashion's page"
)

Box = tuple[float, float, float, float]


def read(directory: Path, split: str) -> EvalSet:
    """Gallery pictures as items with text, query pictures as queries."""
    source = Source(
        directory,
        (f"Eval/{PARTITION}", PARTITION),
        ("", "In-shop Clothes Retrieval Benchmark"),
        DOWNLOAD,
    )
    file = source.file(f"Eval/{PARTITION}", PARTITION)
    folders = [folder for folder in ("", "Img") if (source.directory / folder / "img").is_dir()]
    boxes = _boxes(source) if folders else {}
    texts = _descriptions(source)
    items: list[Item] = []
    queries: list[Query] = []
    columns = ("image_name", "item_id", "evaluation_status")
    for line, row in source.columns(file, columns):
        name, product, status = (row[column] for column in columns)
        if status == "train":
            continue
        record_id = name.removeprefix("img/").rpartition(".")[0]
        with source.row(file, line, record_id):
            if status not in ("query", "gallery"):
                raise InputError(f"evaluation_status {status!r} is not train, query or gallery")
            if folders:
                image = source.picture(name, *folders)
            else:
                highres = name.replace("img/", "img_highres/", 1)
                image = source.picture(highres, "", "Img")
            if status == "query":
                extra: dict[str, Any] = {"product_id": product}
                if name in boxes:
                    extra["product_box"] = list(boxes[name])
                query = Query(record_id, image, extra=extra)
                source.check(query)
                queries.append(query)
            else:
                item = Item(
                    record_id,
                    image,
                    category=" > ".join(PurePosixPath(name).parts[1:3]).replace("_", " "),
                    target_box=boxes.get(name),
                    extra={"product_id": product},
                    **texts.get(product, {}),
                )
                source.check(item)
                items.append(item)
    _notes(source, items, bool(folders))
    return source.evaluation_set(
        "inshop", split, items, with_answers(queries, items), "gallery pictures of the same item id"
    )


def _notes(source: Source, items: list[Item], boxed: bool) -> None:
    if not boxed:
        source.notes.append("pictures of img_highres, without boxes: those belong to img")
    described = sum(bool(item.description) for item in items)
    source.notes += [
        "queries are whole pictures, as in most published figures; extra['product_box'] crops them",
        f"{described} of {len(items)} items have a description, the same for all pictures and "
        "colours of a garment; the category comes from the folder names",
    ]


def _boxes(source: Source) -> dict[str, Box]:
    """Box of every picture in pixels of img/, by image name; bad boxes are rejected."""
    file = source.optional("Anno/list_bbox_inshop.txt", "list_bbox_inshop.txt")
    boxes: dict[str, Box] = {}
    if file is None:
        return boxes
    for line, row in source.columns(file, ("image_name", *CORNERS)):
        with source.row(file, line, row["image_name"]):
            try:
                corners = [float(row[corner]) for corner in CORNERS]
            except ValueError as error:
                raise InputError(f"box of {row['image_name']!r} is not four numbers") from error
            boxes[row["image_name"]] = check_box(corners, SIZE)
    return boxes


def _descriptions(source: Source) -> dict[str, dict[str, Any]]:
    """Attributes and description by item id, as keyword arguments of an item."""
    names = ("Anno/list_description_inshop.json", "list_description_inshop.json")
    file = source.optional(*names)
    if file is None:
        return {}
    texts: dict[str, dict[str, Any]] = {}
    with source.row(file, None):
        try:
            entries = json.loads(file.read_text("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"not valid JSON, get it again: {error}") from error
        if not isinstance(entries, list):
            raise InputError("not a JSON list of items, get it again")
        for entry in entries:
            with source.row(file, None):
                product, text = _description(entry)
                texts[product] = text
    return texts


def _description(entry: Any) -> tuple[str, dict[str, Any]]:
    product = entry.get("item") if isinstance(entry, dict) else None
    if not isinstance(product, str):
        raise InputError("an entry has no item id in its field item")
    color, lines = entry.get("color") or "", entry.get("description") or []
    lines = [lines] if isinstance(lines, str) else lines
    if not isinstance(color, str) or not all(isinstance(line, str) for line in lines):
        raise InputError(f"color or description of {product!r} is no text")
    attributes = {"color": color} if color else {}
    return product, {"attributes": attributes, "description": " ".join(" ".join(lines).split())}
