"""Cut-outs of a user's catalogue: taken from the pictures once, kept in one SQLite file."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tigerfg.benchmark.pictures import stored_picture
from tigerfg.catalog import Item, Rejected, read_items
from tigerfg.decoding import describe_source
from tigerfg.errors import InputError
from tigerfg.files import sha256_file
from tigerfg.images import load_image

BATCH = 256  # rows between two commits
MIN_SIDE = 16  # px, of a cut-out's longer side
NEAR_WHITE = 244  # a pixel whose channels are all above this is background
_WHITE_BORDER = 0.6  # share of near-white border pixels that makes a picture a packshot
_KEPT = 1.5  # cut-outs are kept at this times the size that pictures need, for poses
_ALPHA_FORMATS = ("PNG", "WEBP", "GIF", "TIFF", "JPEG2000", "AVIF")  # the others have no alpha

_SCHEMA = """
    CREATE TABLE product (number INTEGER PRIMARY KEY, product_id TEXT UNIQUE, title TEXT,
        category TEXT, attributes TEXT, description TEXT, views INTEGER);
    CREATE TABLE cutout (number INTEGER, view INTEGER, webp BLOB, PRIMARY KEY (number, view));
    CREATE TABLE rejected (reason TEXT PRIMARY KEY, rows INTEGER, example TEXT);
    CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT);
"""

Run = Callable[[Callable[[Any], Any], list[Any]], Iterator[Any]]


def cut_out(item: Item, most: int | None = None) -> Image.Image:
    """The product of an item's picture as RGBA, cropped to what is visible.

    The picture's own transparency where it has some; else ``target_box``, near-white made
    transparent; else the whole of a picture on a white background.

    Args:
        most: px of the longer side, of a picture that is larger.

    Raises:
        InputError: the picture or the box cannot be used, or nothing visible is left.
    """
    box = item.target_box
    rgb = load_image(item.image, box, target_size=_shrunk(item.image, box, most))
    picture = _transparent(item.image, box)
    if picture is not None:
        picture.thumbnail(rgb.size, Image.Resampling.BOX)
    else:
        pixels = np.array(rgb.convert("RGBA"))
        white = pixels[..., :3].min(axis=-1) > NEAR_WHITE
        border = np.concatenate([white[0], white[-1], white[:, 0], white[:, -1]])
        if box is None and border.mean() < _WHITE_BORDER:
            raise InputError(
                "no target_box, no alpha channel and no white background: give one of them"
            )
        pixels[..., 3] = np.where(white, 0, 255)
        picture = Image.fromarray(pixels)
    seen = picture.getchannel("A").point([255 * (alpha > 64) for alpha in range(256)]).getbbox()
    if seen is None:
        raise InputError("nothing is visible: the picture is transparent or white all over")
    picture = picture.crop(seen)
    if max(picture.size) < MIN_SIDE:
        raise InputError(f"the product is smaller than {MIN_SIDE} px")
    return picture


def _shrunk(source: Any, box: Any, most: int | None) -> int | None:
    """``most`` where the picture, or the box in it, is larger."""
    stored = None if most is None else stored_picture(source)
    if stored is None:  # no limit, or it cannot be read, as decoding will tell
        return None
    x0, y0, x1, y1 = box or (0, 0, *stored.size)
    return most if max(x1 - x0, y1 - y0) > most else None


def _transparent(source: Any, box: Any) -> Image.Image | None:
    """The picture as upright RGBA, cropped to ``box``, if part of that is transparent."""
    if isinstance(source, (str, os.PathLike, bytes)):
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        try:
            with Image.open(stream, formats=_ALPHA_FORMATS) as opened:
                if not opened.has_transparency_data:
                    return None
                picture = ImageOps.exif_transpose(_cropped(opened.convert("RGBA"), box))
        except Image.UnidentifiedImageError:
            return None
    else:
        image = source if isinstance(source, Image.Image) else Image.fromarray(source)
        if not image.has_transparency_data:
            return None
        picture = _cropped(image.convert("RGBA"), box)
    return picture if picture.getextrema()[3][0] < 128 else None


def _cropped(picture: Image.Image, box: Any) -> Image.Image:
    if box is None:
        return picture
    x0, y0, x1, y1 = (int(value) for value in box)
    return picture.crop((max(0, x0), max(0, y0), min(picture.width, x1), min(picture.height, y1)))


def prepare(
    catalog: Path,
    store: Path,
    size: int,
    run: Run,
    progress: Callable[[int, int | None], None] | None = None,
) -> None:
    """Fill ``store`` with the cut-outs of a catalogue, going on where a stopped call was.

    Rows that cannot be used are left out and counted with their reasons (`rejected`). Rows with
    the same field ``product_id`` are views of one product, with the first one's text.

    Args:
        catalog: what `read_items` reads. size: px of the pictures' cut-outs.
        run: maps a function over a list, in order, perhaps in other processes.
        progress: called with (rows done, None).

    Raises:
        InputError: the catalogue cannot be read, or the store is of another catalogue or size.
    """
    digest = _catalog_digest(catalog)
    database = sqlite3.connect(store, isolation_level=None)
    try:
        state = _open_state(database, {"catalog": digest, "size": str(size)}, store)
        done = int(state.get("rows", 0))
        if "sha256" in state:
            return
        refused: list[Rejected] = []
        items = read_items(catalog, on_reject=refused.append)
        rows = itertools.islice(items, done, None)
        # Rows that the reader refuses are counted once, at the end: a resumed call sees all again.
        while batch := list(itertools.islice(rows, BATCH)):
            made = list(run(_cut_small, [(item, round(size * _KEPT)) for item in batch]))
            done += len(batch)
            database.execute("BEGIN")
            for item, result in zip(batch, made, strict=True):
                if isinstance(result, bytes):
                    _insert(database, item, result)
                else:
                    _reject(database, result, f"{item.item_id}: {result}")
            _set(database, "rows", str(done))
            database.execute("COMMIT")
            if progress is not None:
                progress(done, None)
        database.execute("BEGIN")
        for entry in refused:
            reason = re.sub(r"^(item_id|query_id) '[^']*':? ", "", entry.reason)
            _reject(database, reason, str(entry))
        _set(database, "sha256", _content_digest(database))
        database.execute("COMMIT")
    finally:
        database.close()


def rejected(store: Path) -> dict[str, tuple[int, str]]:
    """Reasons why rows were left out: how many, and the first one."""
    database = sqlite3.connect(store)
    try:
        rows = database.execute("SELECT reason, rows, example FROM rejected ORDER BY reason")
        return {reason: (count, example) for reason, count, example in rows}
    finally:
        database.close()


def _cut_small(task: tuple[Item, int]) -> bytes | str:
    """The cut-out as WebP, or why there is none."""
    item, size = task
    try:
        picture = cut_out(item)
        picture.thumbnail((size, size), Image.Resampling.BOX)
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=92, method=2)
    except (InputError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).removeprefix(f"{describe_source(item.image)}: ")
        # One reason a kind of fault, not one a row.
        return re.sub(r"'[^']*'|\[[^]]*\]|\([-\d., ]*\)|\d+", "…", reason)
    return buffer.getvalue()


def _insert(database: sqlite3.Connection, item: Item, webp: bytes) -> None:
    product_id = str(item.extra.get("product_id") or item.item_id)
    found = database.execute(
        "SELECT number, views FROM product WHERE product_id = ?", (product_id,)
    ).fetchone()
    if found is None:
        (number,) = database.execute("SELECT COUNT(*) FROM product").fetchone()
        attributes = json.dumps(dict(item.attributes), ensure_ascii=False)
        text = (item.title, item.category, attributes, item.description)
        database.execute(
            "INSERT INTO product VALUES (?, ?, ?, ?, ?, ?, 0)", (number, product_id, *text)
        )
        found = (number, 0)
    number, views = found
    database.execute("INSERT INTO cutout VALUES (?, ?, ?)", (number, views, webp))
    database.execute("UPDATE product SET views = ? WHERE number = ?", (views + 1, number))


def _reject(database: sqlite3.Connection, reason: str, example: str) -> None:
    database.execute(
        "INSERT INTO rejected VALUES (?, 1, ?) ON CONFLICT DO UPDATE SET rows = rows + 1",
        (reason, example),
    )


def _set(database: sqlite3.Connection, key: str, value: str) -> None:
    database.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))


def _open_state(database: sqlite3.Connection, wanted: dict[str, str], store: Path) -> dict:
    """The state of the store, made where it is new; refuses one made for something else."""
    tables = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if not tables[0]:
        database.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        for key, value in wanted.items():
            _set(database, key, value)
    state = dict(database.execute("SELECT key, value FROM state"))
    for key, value in wanted.items():
        if state.get(key, value) != value:
            raise InputError(f"{store}: made with another {key}: name a new directory")
        _set(database, key, value)
    return state


def _content_digest(database: sqlite3.Connection) -> str:
    """sha256 of all texts and cut-outs: what the suite's bytes depend on."""
    digest = hashlib.sha256()
    for table, key in (("product", "number"), ("cutout", "number, view")):
        for row in database.execute(f"SELECT * FROM {table} ORDER BY {key}"):
            digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _catalog_digest(catalog: Path) -> str:
    """Of the file's bytes; of a directory the names and sizes of its files, and items.* in full."""
    if not catalog.is_dir():
        if not catalog.exists():
            raise InputError(f"{catalog}: no such file or directory")
        return sha256_file(catalog)
    digest = hashlib.sha256()
    for root, folders, names in os.walk(catalog):
        folders.sort()
        for name in sorted(names):
            file = Path(root, name)
            digest.update(f"{file.relative_to(catalog)} {file.stat().st_size}\n".encode())
            if file.parent == catalog and file.stem == "items":
                digest.update(sha256_file(file).encode())
    return digest.hexdigest()
