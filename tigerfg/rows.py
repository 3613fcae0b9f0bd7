"""Rows of jsonl, csv and parquet files: a record each, or what is wrong with it."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tigerfg.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

Row = tuple[int | None, dict[str, Any] | str]  # line number, and the record or what is wrong

MOST_CELL = 1 << 24  # characters in a cell of a csv file
MOST_SHOWN = 200  # characters of a table's columns in a message

logger = logging.getLogger("tigerfg")


class CsvText(str):
    """A cell of a csv file, which may stand for a number."""

    __slots__ = ()


_STRUCTURED = ("attributes", "target_box", "box", "item_ids")  # JSON inside a csv or parquet cell


def _read_jsonl(file: Path, needed: Sequence[str]) -> Iterator[Row]:
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
        text = (raw.decode("utf-8") if isinstance(raw, bytes) else raw).rstrip("\r\n")
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


def _read_csv(file: Path, needed: Sequence[str]) -> Iterator[Row]:
    # Undecodable bytes become lone surrogates, which validation reports for their own row only.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        for line, row in csv_rows(stream, str(file)):
            if not isinstance(row, str):
                _require(needed, row, file)
                row = _parse_cells({key: value for key, value in row.items() if value})
            yield line, row


def _require(needed: Sequence[str], columns: Iterable[str], file: Path) -> None:
    """InputError if a table lacks a column that every record needs."""
    if missing := [name for name in needed if name not in columns]:
        there = ", ".join(filter(None, columns))[:MOST_SHOWN]
        raise InputError(f"{file}: no column {', '.join(missing)}; there are: {there}")


class _Lines:
    """Lines that can be read again from the second one of the last row on."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self._again = iter(lines), deque[str]()
        self._row: list[str] = []
        self.number = 0  # of the last line read, from 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        self._row.append(line)
        return line

    def begin_row(self) -> None:
        self._row.clear()

    def back(self) -> None:
        """Behind the first line of the row."""
        self._again.extendleft(reversed(self._row[1:]))
        self.number -= len(self._row[1:])


def csv_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """Rows of a csv file with a header: the line where each ends, and its cells by column (None
    where a row is too short) or what is wrong with it.

    Of a broken row, which a stray quote can make as long as the file, only the first line is lost.

    Args:
        name: of the file.

    Raises:
        InputError: its header cannot be used.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MOST_CELL))
    source, columns = _Lines(lines), None
    rows = csv.reader(source, strict=True)
    while True:
        source.begin_row()
        try:
            cells = next(rows, None)
        except csv.Error as error:
            if columns is None:
                raise InputError(f"{name}: not valid csv: {error}") from error
            source.back()
            yield source.number, f"not valid csv: {error}"
            continue
        if cells is None:
            return
        if columns is None:
            columns = [cell.strip() for cell in cells]
            if wrong := _wrong_header(columns):
                raise InputError(f"{name}: not valid csv: {wrong}")
        elif len(cells) > len(columns):
            yield source.number, f"more cells than the {len(columns)} columns"
        elif cells:
            yield source.number, dict(itertools.zip_longest(columns, cells))


def _wrong_header(columns: list[str]) -> str | None:
    """Why rows cannot be read by these names; those of empty columns at the end may be empty."""
    if len(columns) == 1 and (";" in columns[0] or "\t" in columns[0]):
        return f"one column, {columns[0][:MOST_SHOWN]!r}: separate columns by commas"
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    return f"column {twice!r} is there twice" if twice else None


def _parse_cells(row: dict[str, Any]) -> dict[str, Any] | str:
    """Parse the structured columns where they are JSON text."""
    for key in _STRUCTURED:
        if isinstance(row.get(key), str):
            try:
                row[key] = json.loads(row[key], parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                return f"{key} must be JSON in its cell: {error}"
    return row


def _read_parquet(file: Path, needed: Sequence[str]) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("reading parquet", "pyarrow", "scale") from error
    number = 0
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as table:
            _require(needed, table.schema_arrow.names, file)
            for batch in table.iter_batches(batch_size=1024):
                for row in parquet_rows(batch):
                    number += 1
                    yield number, row
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: not a readable parquet file: {reason}") from error


def parquet_rows(batch: RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The records of a batch of pyarrow's, or what is wrong with them."""
    try:
        rows = batch.to_pylist()
    except Exception:  # of a single value: text that is no UTF-8, a date that Python has not
        rows = map(_parquet_row, itertools.repeat(batch), range(len(batch)))
    return map(_record, rows)


def _parquet_row(batch: RecordBatch, number: int) -> dict[str, Any] | str:
    row: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[number].as_py()
        except Exception as error:  # pyarrow's own, ValueError, OverflowError
            return f"{name} cannot be read: {' '.join(str(error).split())}"
    return row


def _record(row: dict[str, Any] | str) -> dict[str, Any] | str:
    """A record from a row as pyarrow gives it."""
    if isinstance(row, str):
        return row
    image = row.get("image")
    if isinstance(image, dict) and image.keys() <= {"bytes", "path"}:  # of Hugging Face's datasets
        row = {**row, "image": image.get("bytes") or image.get("path")}
    for key in [key for key, value in row.items() if isinstance(value, bytes) and key != "image"]:
        _tell_left_out(key)
        del row[key]
    row = {key: _plain(value) for key, value in row.items()}
    attributes = row.get("attributes")
    if isinstance(attributes, list) and all(isinstance(entry, tuple) for entry in attributes):
        attributes = dict(attributes)  # a map column gives pairs
    if isinstance(attributes, dict):  # a struct column has every key in every row
        row["attributes"] = {k: v for k, v in attributes.items() if v is not None}
    return _parse_cells(row)


@lru_cache(maxsize=1000)
def _tell_left_out(column: str) -> None:
    """Once a column: JSON has no bytes."""
    logger.warning("column %r holds bytes, which are kept of image only: left out", column)


def _plain(value: Any) -> Any:
    """Parquet's dates and decimals as text, NaN as null; an embedded image stays bytes."""
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(entry) for entry in value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if value is None or isinstance(value, (str, bytes, int, float)) else str(value)


# of a file, and the columns without which a table is refused whole
READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
