"""What the readers of the public benchmarks share: `EvalSet`, and the files and pictures of a
directory, of which every bad row is rejected with its reason and none ends the reading."""

from __future__ import annotations

import gzip
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from tigerfg.catalog import Item, Query, Rejected
from tigerfg.errors import InputError
from tigerfg.rows import csv_rows

EXCLUDED = "exclude_item_id"  # field of a query: the item, or list of items, it does not search


@dataclass(frozen=True)
class EvalSet:
    """A benchmark ready to be evaluated.

    Attributes:
        name: key in `DATASETS`.
        split: which part of the benchmark this is.
        items: the gallery, ids unique. Pictures are absolute paths of files that exist; none has
            been opened.
        queries: each has at least one right answer among ``items`` (``item_ids``). Where queries
            and gallery are the same pictures (leave-one-out), ``query.extra["exclude_item_id"]``
            is the id of the item made of the query's own picture. That item is among ``items``
            because other queries look for it, and never in the query's ``item_ids``: whoever
            ranks must take it out of this query's ranking, so that it counts neither as right
            nor as wrong.
        relevance: how right answers are defined, one sentence.
        notes: the conditions that a figure from this set must be read with, one sentence each.
        rejected: rows, pictures and boxes that could not be used, with file, line and reason.
    """

    name: str
    split: str
    items: list[Item]
    queries: list[Query]
    relevance: str
    notes: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


class Source:
    """A dataset's directory; every reader goes through one.

    Args:
        directory: what the user gave.
        markers: relative paths of a file that the dataset cannot be without; one has to be there.
        folders: where under ``directory`` the dataset may lie; the first that has a marker counts.
        download: what to fetch from where, the end of every message about something missing.

    Raises:
        InputError: there is no such directory, or none of the folders has a marker.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        markers: Sequence[str],
        folders: Sequence[str],
        download: str,
    ) -> None:
        given = Path(directory).absolute()
        if not given.is_dir():
            raise InputError(f"{directory}: no such directory: {download}")
        roots = (
            given / folder
            for folder in folders
            if any((given / folder / marker).is_file() for marker in markers)
        )
        root = next(roots, None)
        if root is None:
            raise InputError(f"{directory}: no {' or '.join(markers)} there: {download}")
        self.directory = root
        self.download = download
        self.notes: list[str] = []
        self.rejected: list[Rejected] = []
        self._ids: set[tuple[type, str]] = set()

    # Files

    def file(self, *names: str) -> Path:
        """The first of the relative paths that is a file; InputError if none is."""
        path = self.optional(*names)
        if path is None:
            raise InputError(f"{self.directory}: no {' or '.join(names)} there: {self.download}")
        return path

    def optional(self, *names: str) -> Path | None:
        """As `file`, but None if none is there."""
        paths = (self.directory / name for name in names)
        return next((path for path in paths if path.is_file()), None)

    def lines(self, file: Path) -> Iterator[tuple[int, str]]:
        """Lines of a UTF-8 text file that are not blank, with their numbers from 1."""
        for number, line in enumerate(self._text(file), start=1):
            stripped = line.strip()
            if stripped:
                yield number, stripped

    def csv(self, file: Path, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
        """Rows of a csv file by column, a missing cell as ""; broken rows are rejected.

        Raises:
            InputError: the header lacks one of ``columns`` or cannot be used, so this is not the
                file it should be.
        """
        for line, row in csv_rows(self._text(file), str(file)):
            if isinstance(row, str):
                self.reject(row, file, line)
                continue
            self._require(columns, row, file)
            yield line, {key: (value or "").strip() for key, value in row.items()}

    def columns(self, file: Path, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
        """Rows of a text file with a header and columns parted by white space.

        Only the last column may hold spaces. Rows with too few columns are rejected. Where the
        number of rows stands before the header, a different number is noted.

        Raises:
            InputError: the header lacks one of ``columns``.
        """
        lines = self.lines(file)
        first = next(lines, (0, ""))[1]
        promised = first if first.isdecimal() else ""
        header = (next(lines, (0, ""))[1] if promised else first).split()
        self._require(columns, header, file)
        found = 0
        for line, text in lines:
            found += 1
            cells = text.split(maxsplit=len(header) - 1)
            if len(cells) < len(header):
                self.reject(f"{len(cells)} columns, not {len(header)}", file, line)
            else:
                yield line, dict(zip(header, cells, strict=True))
        if promised and promised != str(found):
            self.notes.append(f"{file.name} promises {promised[:20]} rows and has {found}")

    def _require(self, columns: Iterable[str], there: Iterable[str], file: Path) -> None:
        missing = [column for column in columns if column not in there]
        if missing:
            names = printable(", ".join(there))[:200] or "none"
            raise InputError(
                f"{file}: no column {', '.join(missing)}; there are {names}: {self.download}"
            )

    def _text(self, file: Path) -> Iterator[str]:
        """Lines of a text file, gzipped or not; what is readable of a damaged one."""
        open_text = gzip.open if file.suffix == ".gz" else open
        number = 0
        # Undecodable bytes become lone surrogates, which validation reports for their own row only.
        options = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
        try:
            with open_text(file, "rt", **options) as stream:
                for number, line in enumerate(stream, start=1):
                    if number == 1 and line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
                        raise InputError(f"{file}: the file is UTF-16: {self.download}")
                    yield line
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            self.reject(f"the file ends or breaks here, get it again: {reason}", file, number + 1)

    # Rows

    def reject(
        self, reason: str, file: Path, line: int | None = None, record_id: str | None = None
    ) -> None:
        """Note that a row was left out."""
        record_id = None if record_id is None else printable(record_id)
        self.rejected.append(Rejected(record_id, reason, line, str(file)))

    @contextmanager
    def row(self, file: Path, line: int | None, record_id: str | None = None) -> Iterator[None]:
        """Work on one row: an InputError inside rejects the row, and reading goes on."""
        try:
            yield
        except InputError as error:
            self.reject(str(error), file, line, record_id)

    def check(self, record: Item | Query) -> None:
        """InputError if a record is invalid or its id was seen before among its kind."""
        record.validate()
        record_id = record.item_id if isinstance(record, Item) else record.query_id
        key = (type(record), record_id)
        if key in self._ids:
            raise InputError(f"{record_id!r} is a duplicate: it is listed before")
        self._ids.add(key)

    def picture(self, name: str, *folders: str) -> str:
        """Absolute path of a picture that a row names; it is not opened.

        Args:
            name: relative path from the row.
            folders: where it may lie, relative to the dataset's directory, which is the default.

        Raises:
            InputError: the name is empty or leaves the dataset's directory, or no such file exists.
        """
        relative = self.inside(name)
        for folder in folders or ("",):
            path = os.path.join(self.directory, folder, relative)
            if os.path.isfile(path):
                return path
        where = " or ".join(folder for folder in folders if folder) or "the directory"
        raise InputError(f"image {name!r} is listed but not in {where}: {self.download}")

    def inside(self, name: str) -> str:
        """A relative path that a row names, or InputError if it leaves the dataset's directory."""
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts:
            raise InputError(
                f"{name!r} is no path inside the dataset's directory: a row may only name files "
                "below it"
            )
        return str(path)

    # The end

    def evaluation_set(
        self, name: str, split: str, items: list[Item], queries: list[Query], relevance: str
    ) -> EvalSet:
        """The result, without the queries that have no right item left in the gallery.

        Raises:
            InputError: no item or no query is left; names the first reason.
        """
        answerable = [query for query in queries if query.item_ids]
        if not items or not answerable:
            what = "item" if not items else "query with a right item"
            why = f": {self.download}"
            if self.rejected:
                why = f"; the first of {len(self.rejected)} rejected rows: {self.rejected[0]}"
            raise InputError(f"{self.directory}: split {split} has no {what}{why}")
        notes = list(self.notes)
        if len(answerable) < len(queries):
            notes.append(
                f"{len(queries) - len(answerable)} of {len(queries)} queries have no right item in "
                "the gallery and are left out"
            )
        return EvalSet(name, split, items, answerable, relevance, notes, self.rejected)


def printable(text: str) -> str:
    """The text with ? for every byte that was no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def ids_by_product(items: Iterable[Item]) -> dict[str, tuple[str, ...]]:
    """Ids of the items by ``extra["product_id"]``, in the gallery's order."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        groups[item.extra["product_id"]].append(item.item_id)
    return {product_id: tuple(ids) for product_id, ids in groups.items()}


def leave_one_out(items: Sequence[Item]) -> list[Query]:
    """One query for every item: its own picture, looking for the other items of its product."""
    groups = ids_by_product(items)
    return [
        Query(
            item.item_id,
            item.image,
            item_ids=tuple(
                other for other in groups[item.extra["product_id"]] if other != item.item_id
            ),
            extra={"product_id": item.extra["product_id"], EXCLUDED: item.item_id},
        )
        for item in items
    ]


def with_answers(queries: Iterable[Query], items: Iterable[Item]) -> list[Query]:
    """The queries with all items of their ``extra["product_id"]`` as right answers."""
    groups = ids_by_product(items)
    return [replace(query, item_ids=groups.get(query.extra["product_id"], ())) for query in queries]
