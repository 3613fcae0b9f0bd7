"""What the scripts that make catalogues of cut-outs for `lite` share: `objects_catalog.py`,
`garments_catalog.py`, `people.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def visible(picture: Image.Image, above: int = 0) -> Image.Image | None:
    """An RGBA picture cropped to what has an alpha above this; None where nothing has."""
    seen = picture.getchannel("A").point(lambda alpha: 255 * (alpha > above)).getbbox()
    return None if seen is None else picture.crop(seen)


def write_views(
    out: Path, product: str, views: Sequence[Image.Image], about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Write the pictures of a product below `out`/images; their records: ids, `about`, box."""
    records = []
    for number, picture in enumerate(views):
        file = f"images/{product}-{number}.webp"
        picture.save(out / file, quality=90)
        record = {"item_id": f"{product}-{number}", "product_id": product, "image": file, **about}
        record |= {"target_box": [0, 0, *picture.size], "layout": "standard"}
        records.append(record)
    return records


def write_items(out: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write items.jsonl, and say how much it is."""
    records = list(records)
    (out / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    print(len(records), "pictures of", len({record["product_id"] for record in records}))
