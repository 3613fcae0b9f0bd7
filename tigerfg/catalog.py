"""Items and queries, and their readers: jsonl, csv, parquet, folders of these or of images."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tigerfg.errors import InputError, MissingExtraError
from tigerfg.records import Item, Query, Rejected

__all__ = ["Item", "Query", "Rejected", "read_changes", "read_items", "read_queries"]

OnReject = Callable[[Rejected], None]
Record = TypeVar("Record", Item, Query)
Row = tuple[int | None, dict[str, Any] | str]  # line number, and the record or what is wrong

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
)
_STRUCTURED = ("attributes", "target_box", "box", "item_ids")  # JSON inside a csv or parquet cell

logger = logging.getLogger("tigerfg")


def read_items(path: str | os.PathLike, on_reject: OnReject | None = None) -> Iterator[Item]:
    """Read the items of a file or directory, one by one.

    Args:
        path: a .jsonl, .csv or .parquet file (parquet needs the extra ``scale``); a directory that
            has items.jsonl, items.parquet or items.csv; or a folder of images, where the id is the
            relative path without suffix and the title is made from the file name. Relative image
            paths belong to the nearest of the file's folder, its parent and its grandparent in
            which the image exists.
        on_reject: called for every record that cannot be used (broken line, missing or wrong
            field, duplicate id); the others are yielded. Without it the first one raises.

    Raises:
        InputError: the path cannot be read, or, without ``on_reject``, a record cannot be used.
    """
    path = Path(path)
    file = record_file(path, "items")
    if file is None:
        return _report_textless(_unique(_image_folder(path), Item, path, on_reject), path)
    return _report_textless(_unique(_rows(file), Item, file, on_reject), file)


def read_queries(path: str | os.PathLike, on_reject: OnReject | None = None) -> Iterator[Query]:
    """Read queries as `read_items` reads items; a directory must have queries.jsonl, .parquet or
    .csv."""
    path = Path(path)
    file = record_file(path, "queries")
    if file is None:
        inner = (folder for folder in sorted(path.iterdir()) if folder.is_dir())
        there = " or ".join(str(folder) for folder in inner if record_file(folder, "queries"))
        raise InputError(
            f"{path}: the directory has no queries.jsonl, .parquet or .csv"
            + (f": give {there}" if there else "")
        )
    return _unique(_rows(file), Query, file, on_reject)


def read_changes(path: str | os.PathLike) -> Iterator[dict[str, Any] | Rejected]:
    """Read changes of stored items, as `Searcher.update` takes them, from a .jsonl, .csv or
    .parquet file; what is no record comes as a `Rejected` among them.

    Empty cells of a table leave a field as it is; null in a .jsonl file takes it away. Paths of
    pictures are resolved as `read_items` does, so that a file of whole items can be given.

    Raises:
        InputError: the file cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file} is a directory: give a {', '.join(_READERS)} file of changes")
    record_file(file, "changes")
    for line, row in _rows(file):
        if isinstance(row, str):
            yield Rejected(None, row, line, str(file))
            continue
        if file.suffix.lower() == ".parquet":
            row = {key: value for key, value in row.items() if value is not None}
        yield _located(row, file.absolute().parent)


def record_file(path: Path, stem: str) -> Path | None:
    """The file that `read_items` (stem "items") or `read_queries` ("queries") reads; None for a
    directory without one."""
    if path.is_dir():
        candidates = (path / f"{stem}{suffix}" for suffix in _READERS)
        return next((file for file in candidates if file.is_file()), None)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if path.suffix.lower() not in _READERS:
        raise InputError(
            f"{path}: unknown kind of file {path.suffix!r}: give {', '.join(_READERS)} "
            "or a directory"
        )
    return path


def picture_files(path: Path, stem: str) -> Iterator[str]:
    """Paths of the pictures that the records name, in their order; not all need be there."""
    file = record_file(path, stem)
    folder = path if path.is_dir() else path.parent
    for _, row in _image_folder(path) if file is None else _rows(file):
        image = row.get("image") if isinstance(row, dict) else None
        if isinstance(image, str) and image:
            yield _resolve(image, folder.absolute())


def _rows(file: Path) -> Iterator[Row]:
    try:
        with open(file, "rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise InputError(f"{file}: the file cannot be read: {error.strerror}") from error
    suffix = file.suffix.lower()
    if suffix != ".parquet" and start in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{file}: the file is UTF-16: save it as UTF-8")
    return _READERS[suffix](file)


def _unique(
    rows: Iterator[Row], kind: type[Record], source: Path, on_reject: OnReject | None
) -> Iterator[Record]:
    """Build, check and yield the records; hand the unusable ones to on_reject."""
    id_field = "item_id" if kind is Item else "query_id"
    first_line: dict[str, int | None] = {}
    folder = source if source.is_dir() else source.absolute().parent
    for line, row in rows:
        record_id = None
        try:
            if isinstance(row, str):
                raise InputError(row)
            record = kind.from_dict(_located(row, folder))
            record_id = getattr(record, id_field)
            record.validate()
            if record_id in first_line:
                where = first_line[record_id]
                again = "" if where is None else f", first on line {where}"
                raise InputError(f"{id_field} {record_id!r} is a duplicate{again}")
        except InputError as error:
            name = record_id if isinstance(record_id, str) else None
            rejected = Rejected(name, str(error), line, str(source))
            if on_reject is None:
                raise InputError(str(rejected)) from error
            on_reject(rejected)
        else:
            first_line[record_id] = line
            yield record


def _located(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A record with the path of its picture absolute."""
    image = row.get("image")
    return {**row, "image": _resolve(image, folder)} if isinstance(image, str) and image else row


def _resolve(image: str, folder: Path) -> str:
    """Absolute path of an image, from the nearest folder upward that has it."""
    if "://" in image or os.path.isabs(image):
        return image
    for base in (folder, folder.parent, folder.parent.parent):
        candidate = os.path.join(base, image)
        if os.path.exists(candidate):
            return os.path.normpath(candidate)
    return os.path.normpath(os.path.join(folder, image))


def _report_textless(items: Iterator[Item], source: Path) -> Iterator[Item]:
    total, textless, first = 0, 0, ""
    for item in items:
        total += 1
        if not item.has_text:
            textless += 1
            first = first or item.item_id
        yield item
    if textless:
        logger.warning(
            "%s: %d of %d items have no text to ground on (title, category, attributes, "
            "description), first %r",
            source,
            textless,
            total,
            first,
        )


def _read_jsonl(file: Path) -> Iterator[Row]:
    with open(file, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            yield number, parse_object(raw)


def parse_object(raw: bytes | str) -> dict[str, Any] | str:
    """The JSON object of one line (strict: no NaN), or what is wrong with it."""
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        value = json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        return f"not valid JSON at column {error.colno}: {error.msg}"
    except _NoNumberError as error:
        return f"{_field_without_number(text)}not valid JSON: {error}"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"
    return value if isinstance(value, dict) else "not a JSON object {...}"


class _NoNumberError(ValueError):
    """NaN or an infinity, which Python's reader would take."""


def _refuse_constant(name: str) -> None:
    raise _NoNumberError(f"{name} is no JSON number")


def _field_without_number(text: str) -> str:
    """Which field of the record has NaN or an infinity, as "target_box is "; "" for all others."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    for key in _STRUCTURED if isinstance(record, dict) else ():
        try:
            json.dumps(record.get(key), allow_nan=False)
        except ValueError:
            return f"{key} is "
    return ""


def _read_csv(file: Path) -> Iterator[Row]:
    # Undecodable bytes become lone surrogates, which validation reports for their own row only.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        for line, row in csv_rows(stream):
            if not isinstance(row, str):
                row = _parse_cells({key: value for key, value in row.items() if value})
            yield line, row


def csv_rows(lines: Iterable[str]) -> Iterator[Row]:
    """Rows of a csv file with a header: the line where each ends, and its cells by column (None
    where a row is too short) or what is wrong with it."""
    rows = csv.DictReader(lines, strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            # The DictReader's own line_num still stands before the broken row.
            yield rows.reader.line_num, f"not valid csv: {error}"
            continue
        if row is None:
            return
        if None in row:
            yield rows.line_num, f"more cells than the {len(rows.fieldnames or ())} columns"
            continue
        yield rows.line_num, row


def _parse_cells(row: dict[str, Any]) -> dict[str, Any] | str:
    """Parse the structured columns where they are JSON text."""
    for key in _STRUCTURED:
        if isinstance(row.get(key), str):
            try:
                row[key] = json.loads(row[key], parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                return f"{key} must be JSON in its cell: {error}"
    return row


def _read_parquet(file: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("reading parquet", "pyarrow", "scale") from error
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, parquet_row(row)
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: not a readable parquet file: {reason}") from error


def parquet_row(row: dict[str, Any]) -> dict[str, Any] | str:
    """A record from a row of parquet, as pyarrow gives it, or what is wrong with it."""
    row = {key: _plain(value) for key, value in row.items()}
    attributes = row.get("attributes")
    if isinstance(attributes, list):  # a map column gives pairs
        attributes = dict(attributes)
    if isinstance(attributes, dict):  # a struct column has every key in every row
        row["attributes"] = {k: v for k, v in attributes.items() if v is not None}
    return _parse_cells(row)


def _plain(value: Any) -> Any:
    """Parquet's dates and decimals as text, NaN as null; an embedded image stays bytes."""
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(entry) for entry in value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if value is None or isinstance(value, (str, bytes, int, float)) else str(value)


def _image_folder(folder: Path) -> Iterator[Row]:
    files = _image_files(folder)
    first = next(files, None)
    if first is None:
        raise InputError(f"{folder}: the directory has no items.jsonl, .parquet, .csv or images")
    return ((None, _image_record(file, folder)) for file in itertools.chain([first], files))


def _image_record(file: Path, folder: Path) -> dict[str, Any]:
    name = file.relative_to(folder).with_suffix("")
    title = " ".join(name.name.replace("_", " ").replace("-", " ").split())
    return {"item_id": name.as_posix(), "image": str(file.absolute()), "title": title}


def _image_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(root, name)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
