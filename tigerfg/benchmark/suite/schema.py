"""What a suite holds: the directory, a training pair, the fields of the evaluation sets.

    OUT/manifest.json          version, settings, every shard with rows, bytes and sha256
    OUT/train/00000.parquet    training pairs, PAIRS_A_GROUP a row group
    OUT/standard/              evaluation set: items.jsonl, queries.jsonl
    OUT/cluttered/             the same products and queries, 3-6 products in every item picture
    OUT/images/                the pictures of both evaluation sets

The evaluation sets are what `tigerfg.catalog.read_items` and `read_queries` read. Beyond the fields
of these, items have ``product_id``, ``layout``, ``objects`` and the three of `NOISE`; queries have
``product_id`` and ``query_kind``. No product is in both the training and the evaluation part.

Training shards are Parquet, uncompressed because nearly all of it is JPEG. A row group is a batch
of different products: now and then a near-twin stands beside its product, a hard negative.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tigerfg.errors import MissingExtraError
from tigerfg.records import Item

if TYPE_CHECKING:
    import pyarrow

SUITE_VERSION = 1
PAIRS_A_GROUP = 64
LAYOUTS = ("standard", "cluttered")
NOISE = ("wrong_text", "wrong_box", "missing_attributes")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Pair:
    """One training pair: a shopper's crop and an item picture of the same product, with text.

    Attributes:
        pair_id: unique in the suite, e.g. "p00003-0017": shard and row.
        product: number of the product in [0, products) of the manifest; equal for all its pairs.
        product_id, twin_of: ids; ``twin_of`` is a near-twin of the product in the same shard,
            None where there is none.
        layout: "standard" (the product alone) or "cluttered" (2-5 others beside it).
        query_image: JPEG of the crop. item_image: JPEG of the full picture, another view.
        title, category, attributes, description: the item's text; attributes hold JSON values.
        target_box: where the text says the product is, [x0, y0, x1, y1) in pixels of item_image:
            the true box, unless ``wrong_box``.
        objects: product_id and true box of everything in the picture, the target first.
        wrong_text: the text is another product's. wrong_box: target_box is another object's, or
            moved. missing_attributes: the listing's attributes were left out.
    """

    pair_id: str
    product: int
    product_id: str
    twin_of: str | None
    layout: str
    query_image: bytes
    item_image: bytes
    title: str
    category: str
    attributes: Mapping[str, Any]
    description: str
    target_box: Box
    objects: Sequence[tuple[str, Box]]
    wrong_text: bool = False
    wrong_box: bool = False
    missing_attributes: bool = False

    def to_row(self) -> dict[str, Any]:
        """The columns of `pair_schema`."""
        row = dict(vars(self))
        row["attributes"] = json.dumps(dict(self.attributes), ensure_ascii=False)
        row["objects"] = [{"product_id": p, "box": list(box)} for p, box in self.objects]
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Pair:
        """Inverse of `to_row`."""
        objects = [(entry["product_id"], tuple(entry["box"])) for entry in row["objects"]]
        return cls(
            **{
                **row,
                "attributes": json.loads(row["attributes"]),
                "target_box": tuple(row["target_box"]),
                "objects": objects,
            }
        )

    def item(self) -> Item:
        """The item side as the record that towers and readers know."""
        return Item(
            item_id=self.pair_id,
            image=self.item_image,
            title=self.title,
            category=self.category,
            attributes=self.attributes,
            description=self.description,
            target_box=self.target_box,
        )


def pair_schema() -> pyarrow.Schema:
    """The Parquet schema of a training shard, its version in the metadata.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("the suite's shards", "pyarrow", "scale") from error
    box = pa.list_(pa.int32(), 4)
    required = [
        ("pair_id", pa.string()),
        ("product", pa.int64()),
        ("product_id", pa.string()),
        ("layout", pa.string()),
        ("query_image", pa.binary()),
        ("item_image", pa.binary()),
        ("title", pa.string()),
        ("category", pa.string()),
        ("attributes", pa.string()),
        ("description", pa.string()),
        ("target_box", box),
        ("objects", pa.list_(pa.struct([("product_id", pa.string()), ("box", box)]))),
        *((name, pa.bool_()) for name in NOISE),
    ]
    fields = [pa.field(name, kind, nullable=False) for name, kind in required]
    fields.insert(3, pa.field("twin_of", pa.string()))
    return pa.schema(fields, metadata={"tigerfg_suite": str(SUITE_VERSION)})
