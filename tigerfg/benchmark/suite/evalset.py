"""The two evaluation sets: the same unseen products, alone and among others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tigerfg.errors import InputError
from tigerfg.files import sha256_file, write_whole

from .pictures import item_picture, query_picture
from .schema import LAYOUTS
from .settings import Settings
from .sources import Source

CHUNK = 64  # products a task


def chunks(settings: Settings) -> int:
    """Number of tasks that make the evaluation sets."""
    return -(-settings.eval_products // CHUNK)


def chunk_products(settings: Settings, chunk: int) -> range:
    """Which products a task makes."""
    return range(chunk * CHUNK, min((chunk + 1) * CHUNK, settings.eval_products))


def chunk_path(out: Path, chunk: int) -> Path:
    """Where the records of a chunk wait until all are there."""
    return out / "eval-records" / f"{chunk:05d}.json"


def make_chunk(settings: Settings, source: Source, out: Path, chunk: int) -> None:
    """Write the pictures of some products, then their records.

    Item k of product i is the same bytes whatever else is made. Noise is drawn for each layout
    anew; pictures show the product in a view that no other picture has.
    """
    group = source.evaluation(settings)
    records: dict[str, Any] = {layout: [] for layout in LAYOUTS}
    records |= {"queries": [], "pictures": {}}

    def keep(name: str, jpeg: bytes) -> str:
        (out / name).write_bytes(jpeg)
        records["pictures"][name] = [len(jpeg), hashlib.sha256(jpeg).hexdigest()]
        return name

    for i in chunk_products(settings, chunk):
        listing = group.listings[i]
        item_ids = [
            listing.product_id if settings.items_per_product == 1 else f"{listing.product_id}-{k}"
            for k in range(settings.items_per_product)
        ]
        for number, layout in enumerate(LAYOUTS):
            size = settings.item_size if layout == "standard" else settings.sprite_size
            for k, item_id in enumerate(item_ids):
                rng = np.random.default_rng((settings.seed, i, k, number, 0xE7A))
                picture = item_picture(
                    group, i, layout, settings, "eval",
                    lambda j, size=size, rng=rng: group.cutout(j, size, int(rng.integers(2**31))),
                    rng,
                )  # fmt: skip
                records[layout].append(
                    {
                        "item_id": item_id,
                        "image": keep(f"images/{layout}/{i:06d}-{k}.jpg", picture.jpeg),
                        "title": picture.listing.title,
                        "category": picture.listing.category,
                        "attributes": dict(picture.listing.attributes),
                        "description": picture.listing.description,
                        "target_box": list(picture.target_box),
                        "product_id": listing.product_id,
                        "layout": layout,
                        "objects": [
                            {"product_id": p, "box": list(box)} for p, box in picture.objects
                        ],
                        **vars(picture.noise),
                    }
                )
        for k in range(settings.queries_per_product):
            rng = np.random.default_rng((settings.seed, i, k, 0x9E7))
            sprite = group.cutout(i, settings.query_size, int(rng.integers(2**31)))
            jpeg = query_picture(sprite, settings, rng)
            records["queries"].append(
                {
                    "query_id": f"q-{listing.product_id}-{k}",
                    "image": keep(f"images/queries/{i:06d}-{k}.jpg", jpeg),
                    "box": None,
                    "item_ids": item_ids,
                    "product_id": listing.product_id,
                    "query_kind": "other_view",
                }
            )
    write_whole(chunk_path(out, chunk), json.dumps(records, ensure_ascii=False))


def assemble(settings: Settings, out: Path) -> dict[str, Any]:
    """Write items.jsonl and queries.jsonl from all chunks; what the manifest says about them."""
    parts = [json.loads(chunk_path(out, c).read_text("utf-8")) for c in range(chunks(settings))]
    pictures: dict[str, list[Any]] = {}
    for part in parts:
        pictures |= part["pictures"]
    for layout in LAYOUTS:
        (out / layout).mkdir(exist_ok=True)
        for stem, key in (("items", layout), ("queries", "queries")):
            lines = (json.dumps(r, ensure_ascii=False) + "\n" for p in parts for r in p[key])
            write_whole(out / layout / f"{stem}.jsonl", "".join(lines))
    return {
        "files": {
            name: hashlib.sha256((out / name).read_bytes()).hexdigest()
            for layout in LAYOUTS
            for name in (f"{layout}/items.jsonl", f"{layout}/queries.jsonl")
        },
        "pictures": len(pictures),
        "bytes": sum(size for size, _ in pictures.values()),
        "pictures_sha256": pictures_digest({name: sha for name, (_, sha) in pictures.items()}),
    }


def still_there(evaluation: dict[str, Any], out: Path) -> bool:
    """Whether no file of finished evaluation sets is missing; pictures are counted, not read.

    Args:
        evaluation: what `assemble` said about them.

    Raises:
        InputError: an items.jsonl or queries.jsonl is not the one that was made.
    """
    files = {out / name: sha256 for name, sha256 in evaluation["files"].items()}
    there = [path for path in files if path.is_file()]
    for path in there:
        if sha256_file(path) != files[path]:
            raise InputError(
                f"{path}: not the file that was made: delete it, it will be made again"
            )
    pictures = sum(1 for _ in (out / "images").glob("*/*.jpg"))
    return len(there) == len(files) and pictures >= evaluation["pictures"]


def pictures_digest(hashes: dict[str, str]) -> str:
    """One sha256 for many files: of the sorted lines "sha256  name"."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
