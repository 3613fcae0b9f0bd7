"""Product1M: 1.18 million cosmetics offers of Alibaba's shops, picture and Chinese title.

Zhan, Wu, Dong, Wei, Lu, Zhang, Xu, Liang: "Product1M: Towards Weakly Supervised Instance-Level
Product Retrieval via Cross-Modal Pretraining", ICCV 2021. The lists come from the authors'
repository, github.com/zhanxlin/Product1M (test and dev lie there, gallery and train behind its
link). They hold addresses: users download the pictures themselves. No licence is stated.

Layout of the lists, confirmed in that repository, one offer a line, columns parted by ``#####``::

    product1m_gallery_ossurl_v2.txt   id, title, address, address of a copy, labels
    product1m_test_ossurl_v2.txt      (labels are product names, parted by #;#)
    product1m_dev_ossurl_v2.txt

The pictures have no documented place: ``<id>.jpg`` (png, webp) is looked for in ``images/``, in a
folder named like the list without ``.txt``, and beside the list. The published lists hold no
boxes: queries are whole pictures.

Protocol of the authors' evaluate_suit.py: queries are pictures of sets of several products (splits
``test`` and ``dev``), the gallery single products; right is every gallery offer whose first label
is among the query's labels. Their figures: mAP, precision and mean average recall at 10, 50, 100.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import NamedTuple

from tigerfg.benchmark.datasets.source import EvalSet, Source, ids_by_product
from tigerfg.errors import InputError
from tigerfg.records import Item, Query

SPLITS = ("test", "dev")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DOWNLOAD = (
    "get the lists product1m_*_ossurl_v2.txt from github.com/zhanxlin/Product1M (gallery: by the "
    "link in its README) and download the pictures of their addresses to images/<id>.jpg"
)


def read(directory: Path, split: str) -> EvalSet:
    """Offers of single products as items, pictures of sets as queries."""
    gallery, asked = "product1m_gallery_ossurl_v2", f"product1m_{split}_ossurl_v2"
    source = Source(directory, (f"{gallery}.txt",), ("", "Product1M"), DOWNLOAD)
    file = source.file(f"{gallery}.txt")
    items: list[Item] = []
    for line, text in source.lines(file):
        with source.row(file, line, text.partition("#####")[0]):
            offer = _offer(text)
            item = Item(
                offer.offer_id,
                _picture(source, offer.offer_id, gallery),
                title=offer.title,
                extra={"product_id": offer.labels[0]},
            )
            source.check(item)
            items.append(item)
    file = source.file(f"{asked}.txt")
    queries: list[Query] = []
    groups = ids_by_product(items)
    for line, text in source.lines(file):
        with source.row(file, line, text.partition("#####")[0]):
            offer = _offer(text)
            right = (item_id for label in offer.labels for item_id in groups.get(label, ()))
            query = Query(
                offer.offer_id,
                _picture(source, offer.offer_id, asked),
                item_ids=tuple(right),
                extra={"labels": list(offer.labels)},
            )
            source.check(query)
            queries.append(query)
    source.notes += [
        "queries are whole pictures of sets of several products: the lists hold no boxes",
        "items have their Chinese title; labels are the ground truth and no text",
        "published figures are mAP, precision and recall at 10, 50 and 100",
    ]
    return source.evaluation_set(
        "product1m", split, items, queries, "gallery offers whose label is among the query's labels"
    )


class _Offer(NamedTuple):
    offer_id: str
    title: str
    labels: tuple[str, ...]  # at least one, no repeats


def _offer(line: str) -> _Offer:
    cells = [cell.strip() for cell in line.split("#####")]
    if len(cells) != 5:
        raise InputError(f"{len(cells)} columns parted by #####, not 5")
    labels = dict.fromkeys(label.strip() for label in cells[4].split("#;#") if label.strip())
    if not labels:
        raise InputError(f"offer {cells[0]!r} has no label")
    return _Offer(cells[0], " ".join(html.unescape(cells[1]).split()), tuple(labels))


def _picture(source: Source, offer_id: str, name: str) -> str:
    relative = source.inside(offer_id)
    for folder in ("images", name, "."):
        path = source.optional(*(f"{folder}/{relative}{suffix}" for suffix in SUFFIXES))
        if path is not None:
            return str(path)
    raise InputError(f"no picture of offer {offer_id!r} in images, {name} or the directory")
