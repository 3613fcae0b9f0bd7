"""Terminal output shared by the commands: tables, progress bars, small formats.

Nothing here writes control codes unless the stream is a terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from tigerfg.results import AddReport
    from tigerfg.searcher import Searcher

_SHOWN_REJECTS = 5
PIPE_WIDTH = 200  # columns of a table that goes into a file or a pipe

Advance = Callable[[int, "int | None"], None]


def say(line: str) -> None:
    """Print a message as one line to stderr."""
    print(_printable(line), file=sys.stderr, flush=True)


def console(stderr: bool = False) -> Console:
    """A console on the current stdout or stderr; wide where that is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        width=None if terminal else PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to stdout; cells are plain text, numbers are right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    numeric = [all(isinstance(row[c], (int, float)) for row in rows) for c in range(len(columns))]
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3f}"
    return _printable(str(value))


def _printable(text: str) -> str:
    """One line without control codes, whatever a catalogue's texts hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@contextlib.contextmanager
def progress(label: str) -> Iterator[Advance]:
    """A progress bar on stderr while the block runs; silent where stderr is no terminal.

    Yields ``report(done, total)`` with the absolute count so far; ``total`` None if unknown.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    screen = console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    with bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def ingest_progress(label: str, total: int | None = None) -> Iterator[Callable[[AddReport], None]]:
    """The same bar, fed with the reports of ``Searcher.add``."""
    with progress(label) as report:

        def update(so_far: AddReport) -> None:
            report(so_far.stored + len(so_far.rejected), total)

        yield update


def print_report(report: AddReport, searcher: Searcher) -> None:
    """What was stored, and what the catalogue holds now; the first of what was left out, and where
    all of it is."""
    place = shown_path(searcher.info.path)
    print(f"{report}; {place} holds {plural(len(searcher), 'item')}", flush=True)
    for reject in report.rejected[:_SHOWN_REJECTS]:
        say(f"rejected {reject}")
    if len(report.rejected) > _SHOWN_REJECTS:
        say(f"... and {len(report.rejected) - _SHOWN_REJECTS} more")
    if report.rejects_file is not None:
        say(f"all rejects: {shown_path(report.rejects_file)}")


def plural(count: int, noun: str) -> str:
    """``1 item``, ``2 items``, ``2 queries``."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """The path relative to the working directory where that is shorter; addresses as they are."""
    if isinstance(path, str) and "://" in path:
        return path
    full, relative = os.path.abspath(path), os.path.relpath(path)
    return min(full, relative, key=len)
