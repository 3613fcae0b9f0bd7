"""Items and queries, and their readers: jsonl, csv, parquet, folders of these or of images."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tigerfg.errors import InputError
from tigerfg.records import FileRecord, Item, Query, Rejected
from tigerfg.rows import READERS, CsvText, Row

__all__ = [
    "Item",
    "Query",
    "Rejected",
    "read_changes",
    "read_entries",
    "read_items",
    "read_queries",
]

OnReject = Callable[[Rejected], None]
Record = TypeVar("Record", Item, Query)

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
)

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
        InputError: the path cannot be read, or, without ``on_reject``, a record cannot be used; a
            directory without items has folders that have some.
    """
    path = Path(path)
    file = record_file(path, "items")
    if file is None:
        if there := _folders_with(path, "items"):
            raise InputError(
                f"{path}: the directory has no items.jsonl, .parquet or .csv: give {there}"
            )
        return _report_textless(_unique(_image_folder(path), Item, path, on_reject), path)
    return _report_textless(_unique(_rows(file, ("item_id", "image")), Item, file, on_reject), file)


def read_entries(path: str | os.PathLike) -> Iterator[Item | Rejected]:
    """As `read_items`; what cannot be used comes as a `Rejected` where it stood, which
    `Searcher.add` notes like its own.

    Raises:
        InputError: the path cannot be read.
    """
    rejected: list[Rejected] = []
    for item in read_items(path, on_reject=rejected.append):
        yield from rejected
        rejected.clear()
        yield item
    yield from rejected


def read_queries(path: str | os.PathLike, on_reject: OnReject | None = None) -> Iterator[Query]:
    """Read queries as `read_items` reads items; a directory must have queries.jsonl, .parquet or
    .csv."""
    path = Path(path)
    file = record_file(path, "queries")
    if file is None:
        there = _folders_with(path, "queries")
        raise InputError(
            f"{path}: the directory has no queries.jsonl, .parquet or .csv"
            + (f": give {there}" if there else "")
        )
    return _unique(_rows(file, ("query_id", "image")), Query, file, on_reject)


def read_changes(path: str | os.PathLike) -> Iterator[dict[str, Any] | Rejected]:
    """Read changes of stored items, as `Searcher.update` takes them, from a .jsonl, .csv or
    .parquet file; what is no record comes as a `Rejected` among them.

    Empty cells of a table leave a field as it is; null in a .jsonl file takes it away. Cells of a
    .csv file become numbers, true or false, or lists where the stored field is one. Paths of
    pictures are resolved as `read_items` does, so that a file of whole items can be given.

    Raises:
        InputError: the file cannot be read; with the first record.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file} is a directory: give a {', '.join(READERS)} file of changes")
    record_file(file, "changes")
    for line, row in _rows(file, ("item_id",)):
        if isinstance(row, str):
            yield Rejected(None, row, line, str(file))
            continue
        if file.suffix.lower() == ".parquet":
            row = {key: value for key, value in row.items() if value is not None}
        elif file.suffix.lower() == ".csv":
            row = {key: CsvText(v) if isinstance(v, str) else v for key, v in row.items()}
        yield located(row, file.absolute().parent, (line, str(file)))


def record_file(path: Path, stem: str) -> Path | None:
    """The file that `read_items` (stem "items") or `read_queries` ("queries") reads; None for a
    directory without one."""
    if path.is_dir():
        candidates = (path / f"{stem}{suffix}" for suffix in READERS)
        return next((file for file in candidates if file.is_file()), None)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if path.suffix.lower() not in READERS:
        raise InputError(
            f"{path}: unknown kind of file {path.suffix!r}: give {', '.join(READERS)} "
            "or a directory"
        )
    return path


def _folders_with(path: Path, stem: str) -> str:
    """The folders right in a directory that have such records, as "one or other"; "" for none."""
    inner = (folder for folder in sorted(path.iterdir()) if folder.is_dir())
    return " or ".join(str(folder) for folder in inner if record_file(folder, stem))


def picture_files(path: Path, stem: str) -> Iterator[str]:
    """Paths of the pictures that the records name, in their order; not all need be there."""
    file = record_file(path, stem)
    folder = path if path.is_dir() else path.parent
    for _, row in _image_folder(path) if file is None else _rows(file):
        image = row.get("image") if isinstance(row, dict) else None
        if isinstance(image, str) and image:
            yield _resolve(image, folder.absolute())


def _rows(file: Path, needed: Sequence[str] = ()) -> Iterator[Row]:
    """The records; those of a table must have the columns ``needed``."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise InputError(f"{file}: the file cannot be read: {error.strerror}") from error
    suffix = file.suffix.lower()
    if suffix != ".parquet" and start in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{file}: the file is UTF-16: save it as UTF-8")
    return READERS[suffix](file, needed)


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
            origin = () if line is None else (line, str(source))
            record = kind.from_dict(located(row, folder, origin))
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


def located(row: dict[str, Any], folder: Path | None, origin: tuple = ()) -> FileRecord:
    """A record with its line and file, and the path of its picture absolute, see `read_items`.

    Args:
        folder: None leaves the path as it is.
    """
    record, image = FileRecord(row, origin), row.get("image")
    if folder is not None and isinstance(image, str) and image:
        record["image"] = _resolve(image, folder)
    return record


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
        for link in filter(os.path.islink, (os.path.join(root, name) for name in folders)):
            logger.warning("%s: a link to a folder, which is not followed", link)
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(root, name)
