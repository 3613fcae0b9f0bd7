"""Write a rendered catalogue: pictures, items.jsonl and queries.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from tigerfg.benchmark.workers import Workers
from tigerfg.files import naming, write_whole

from .distractors import Distractors
from .products import Product, make_products
from .scenes import LAYOUTS, render_item, render_query

_JPEG = {"quality": 90, "subsampling": 0}


class _Renderer:
    """Everything one worker process needs to render product ``i``."""

    def __init__(
        self, directory: str, n: int, seed: int, layout: str, image_size: int, queries: int
    ) -> None:
        self.directory = Path(directory)
        self.seed, self.image_size, self.queries = seed, image_size, queries
        self.layouts = LAYOUTS if layout == "both" else (layout,)
        self.products = make_products(n, seed)
        self.distractors = Distractors.of(self.products)

    def render(self, i: int) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """Write the pictures of product ``i``; its item records by layout, and query records."""
        product = self.products[i]
        items: dict[str, dict[str, Any]] = {}
        for number, layout in enumerate(LAYOUTS):
            if layout not in self.layouts:
                continue
            rng = np.random.default_rng((self.seed, i, number, 0xCA7))
            others: list[Product] = []
            if layout == "cluttered":
                others = [self.products[j] for j in self.distractors.choose(i, rng)]
            scene = render_item(product, layout, others, int(rng.integers(2**31)), self.image_size)
            name = f"images/{layout}/{product.product_id}.jpg"
            scene.image.save(self.directory / name, "JPEG", **_JPEG)
            items[layout] = {
                "item_id": product.product_id,
                "image": name,
                "title": product.title,
                "category": product.category,
                "attributes": product.attributes,
                "description": product.description,
                "target_box": list(scene.target_box),
                "product_id": product.product_id,
                "twin_of": product.twin_of,
                "layout": layout,
                "objects": [{"product_id": p, "box": list(box)} for p, box in scene.objects],
            }
        queries = []
        for k in range(self.queries):
            seed = int(np.random.default_rng((self.seed, i, k, 0x9E)).integers(2**31))
            query_id = f"q-{product.product_id}-{k}"
            name = f"images/queries/{query_id}.jpg"
            image = render_query(product, seed, max(1, self.image_size * 2 // 3))
            image.save(self.directory / name, "JPEG", **_JPEG)
            queries.append(
                {
                    "query_id": query_id,
                    "image": name,
                    "item_ids": [product.product_id],
                    "query_kind": "rendered_view",
                    "product_id": product.product_id,
                    "twin_of": product.twin_of,
                }
            )
        return items, queries


_renderer = lru_cache(maxsize=1)(_Renderer)  # one a process: its products take seconds to make


def _render(
    i: int, args: tuple[Any, ...]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    return _renderer(*args).render(i)


def _write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(path, "".join(lines))


def write_catalog(
    directory: str | os.PathLike[str],
    n: int,
    seed: int,
    layout: str = "both",
    image_size: int = 384,
    queries_per_product: int = 1,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Render ``n`` products as a catalogue and return the folders that hold items.jsonl.

    layout: "standard", "cluttered" (files directly in ``directory``) or "both" (folders standard/
    and cluttered/ with the same item ids and queries, sharing images/). image_size: longest side of
    item pictures in px; queries have two thirds of it. workers: processes, None = one per CPU.
    progress(done, total) is called after every product. The files are the same bytes for any number
    of workers; the jsonl files appear last, once all pictures are there. Raises ValueError for an
    unknown layout or impossible numbers, TigerfgError if a worker is killed.
    """
    if layout not in (*LAYOUTS, "both"):
        raise ValueError(
            f"write_catalog: layout must be standard, cluttered or both, got {layout!r}"
        )
    if n < 0 or seed < 0 or image_size < 16 or queries_per_product < 0:
        raise ValueError(
            "write_catalog: n, seed and queries_per_product must be >= 0, image_size >= 16"
        )
    root = Path(directory)
    layouts = LAYOUTS if layout == "both" else (layout,)
    for name in (*layouts, "queries"):
        (root / "images" / name).mkdir(parents=True, exist_ok=True)
    wanted = (os.cpu_count() or 1) if workers is None else workers
    args = (str(root), n, seed, layout, image_size, queries_per_product)
    items: dict[str, list[dict[str, Any]]] = {name: [] for name in layouts}
    queries: list[dict[str, Any]] = []
    with naming(root), Workers(min(wanted, max(1, n // 16))) as processes:
        rendered = processes.map(partial(_render, args=args), range(n), chunk=8)
        for done, (records, asked) in enumerate(rendered, 1):
            for name, record in records.items():
                items[name].append(record)
            queries += asked
            if progress is not None:
                progress(done, n)
    folders = [root / name if layout == "both" else root for name in layouts]
    for folder, name in zip(folders, layouts, strict=True):
        _write_jsonl(folder / "items.jsonl", items[name])
        _write_jsonl(folder / "queries.jsonl", queries)
    return folders
