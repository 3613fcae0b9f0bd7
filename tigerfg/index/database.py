"""The SQLite file of a catalogue: making it, opening it, its one writer, its errors in one line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from urllib.parse import quote

from tigerfg.errors import CatalogError
from tigerfg.files import fsync_directory
from tigerfg.index.plan import IndexSettings

FORMAT = 2
STORE_FILE = "catalog.sqlite"
LOCK_FILE = "writer.lock"

_CACHE_KIB = 1 << 16
_APPLICATION_ID = 0x54474647  # "TGFG" in the SQLite header
_SCHEMA = """
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY, item_id TEXT NOT NULL UNIQUE, content_hash BLOB NOT NULL,
    document TEXT NOT NULL);
CREATE TABLE encodings (
    id INTEGER PRIMARY KEY,
    vector BLOB NOT NULL CHECK (length(vector) = {vector_bytes}),
    grounding_map BLOB NOT NULL CHECK (length(grounding_map) = 2 * rows * columns),
    rows INTEGER NOT NULL, columns INTEGER NOT NULL);
CREATE TABLE fields (
    key TEXT NOT NULL, value NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (key, value, id)
) WITHOUT ROWID;
CREATE TABLE removals (number INTEGER PRIMARY KEY, id INTEGER NOT NULL);
CREATE TABLE counter (number INTEGER NOT NULL);
INSERT INTO counter VALUES (0);
PRAGMA application_id = {application_id};
PRAGMA user_version = {format};
"""
_HINTS = {  # words in SQLite's message -> what they mean to the user
    "disk is full": "the disk is full, free some space and repeat the call",
    "not a database": f"{STORE_FILE} is damaged or no SQLite file",
    "malformed": f"{STORE_FILE} is damaged",
    "readonly": "no permission to write there",
    "unable to open": "no permission, too many open files, or the file is gone",
    "locked": "another process keeps it locked",
    "I/O error": "the disk or its quota refuses",
    "closed database": "the catalogue is closed",
}


@dataclass(frozen=True)
class StoreMeta:
    """What a catalogue was made with.

    Attributes:
        catalog_id: random name of this catalogue, 32 hex digits; its index file carries it too.
        model: name or absolute path of the model bundle.
        fingerprint: the bundle's fingerprint.
        embedding_dim: length of a vector.
        created: ISO time in UTC.
        index, target_recall, memory_budget: see `IndexSettings`.
    """

    catalog_id: str
    model: str
    fingerprint: str
    embedding_dim: int
    created: str
    index: str
    target_recall: float
    memory_budget: int | None

    @classmethod
    def new(
        cls, model: str, fingerprint: str, embedding_dim: int, settings: IndexSettings
    ) -> StoreMeta:
        """That of a catalogue made now."""
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(
            uuid.uuid4().hex, model, fingerprint, int(embedding_dim), created, **asdict(settings)
        )

    @property
    def settings(self) -> IndexSettings:
        """How the catalogue is searched."""
        return IndexSettings(self.index, self.target_recall, self.memory_budget)


def is_catalog(path: str | os.PathLike) -> bool:
    """Whether a directory holds a catalogue's store."""
    return os.path.isfile(os.path.join(path, STORE_FILE))


def _require_empty(path: Path, fresh: Path) -> None:
    """CatalogError if the directory holds more than a lock and a store that was never finished."""
    if is_catalog(path):
        raise CatalogError(f"{path} holds a catalogue already: open it, or name a new directory")
    if others := sorted(set(os.listdir(path)) - {fresh.name, f"{fresh.name}-journal", LOCK_FILE}):
        raise CatalogError(
            f"{path} is neither empty nor a catalogue (it holds {others[0]!r}): "
            "name a new directory"
        )


def create_database(
    path: Path, model: str, fingerprint: str, embedding_dim: int, settings: IndexSettings
) -> FileIO:
    """Make an empty store in a new or empty directory; returns the writer's lock.

    The file appears complete or not at all.
    """
    fresh = path / f"{STORE_FILE}.new"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / LOCK_FILE).exists():  # else one who makes a catalogue just now is told
            _require_empty(path, fresh)  # before a lock file is left in a folder of somebody else
    except OSError as error:
        raise CatalogError(f"cannot create a catalogue in {path}: {error.strerror}") from error
    meta = StoreMeta.new(model, fingerprint, embedding_dim, settings)
    lock = lock_for_writing(path)
    try:
        _require_empty(path, fresh)
        for left in (fresh, Path(f"{fresh}-journal")):
            left.unlink(missing_ok=True)
        with (
            explained(path, "create a catalogue"),
            contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as db,
        ):
            db.executescript(
                _SCHEMA.format(
                    vector_bytes=2 * meta.embedding_dim,
                    application_id=_APPLICATION_ID,
                    format=FORMAT,
                )
            )
            rows = [(key, json.dumps(value)) for key, value in asdict(meta).items()]
            db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            db.execute("COMMIT")
        os.replace(fresh, path / STORE_FILE)
        fsync_directory(path)
    except OSError as error:
        lock.close()
        raise CatalogError(f"cannot create a catalogue in {path}: {error.strerror}") from error
    except BaseException:
        lock.close()
        raise
    return lock


def open_database(path: Path, read_only: bool) -> tuple[sqlite3.Connection, StoreMeta]:
    """Connect to a catalogue's store and read what it was made with."""
    if not is_catalog(path):
        problem = f"holds no {STORE_FILE}" if path.is_dir() else "is no directory"
        raise CatalogError(f"{path} is no catalogue: it {problem}; create one there first")
    file = path / STORE_FILE
    uri = f"file:{quote(os.fsencode(file))}?mode={'ro' if read_only else 'rw'}"
    if read_only and frozen_state(path) is not None:
        uri += "&immutable=1"
    with explained(path, "open the catalogue"):
        db = sqlite3.connect(
            uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            # The rows of a result lie all over the file: with more pages than SQLite's usual 2 MB
            # kept, they take a third less time.
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            meta = read_meta(path, db)
            if not read_only:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
        except BaseException:
            db.close()
            raise
    return db, meta


def file_of(path: Path) -> tuple[int, int] | None:
    """Which file the store is, by device and inode; None where it is gone."""
    try:
        status = os.stat(path / STORE_FILE)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def frozen_state(path: Path) -> tuple[int, ...] | None:
    """Tells one state of a store from another where it is read as unchanging, else None.

    A directory where this process can make no files has no place for those of WAL, and SQLite
    reads the store only if it is told that nobody writes: so it seems while no writer has made
    them.
    """
    if os.access(path, os.W_OK) or os.path.exists(path / f"{STORE_FILE}-wal"):
        return None
    try:
        status = os.stat(path / STORE_FILE)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def lock_for_writing(path: Path) -> FileIO:
    """Take the writer's lock of a directory; closing the returned file gives it back."""
    try:
        # not a descriptor, which an exception of a signal's handler would lose with its lock
        file = open(path / LOCK_FILE, "a+b", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise CatalogError(
            f"cannot write to {path}: {error.strerror}; to search only, open it read-only"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # for messages: a full disk keeps no one out
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
    except OSError as error:
        holder = os.pread(file.fileno(), 32, 0).decode(errors="replace").strip() or "unknown"
        file.close()
        raise CatalogError(
            f"{path} is open for writing already (process {holder}): close that one first, "
            "or open this one read-only"
        ) from error
    except BaseException:
        file.close()
        raise
    return file


def unlock(file: FileIO, process: int) -> None:
    """Give the writer's lock back; a forked child only closes its descriptor of it."""
    if os.getpid() == process:  # while children hold that too, closing it would not do
        fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


@contextlib.contextmanager
def explained(path: Path, action: str) -> Iterator[None]:
    """Turn what SQLite raises into a CatalogError of one line."""
    try:
        yield
    except sqlite3.Error as error:
        reason = str(error)
        hint = next((text for words, text in _HINTS.items() if words in reason), None)
        raise CatalogError(
            f"cannot {action} in {path}: {f'{hint} ({reason})' if hint else reason}"
        ) from error


def read_meta(path: Path, db: sqlite3.Connection) -> StoreMeta:
    """What a catalogue was made with; CatalogError if it is none, or of another version."""
    if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise CatalogError(f"{path} is no catalogue: its {STORE_FILE} was not made by tigerfg")
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found != FORMAT:
        fix = "update tigerfg" if found > FORMAT else "index its items again in a new directory"
        raise CatalogError(
            f"{path} has catalogue format {found}, this tigerfg knows {FORMAT}: {fix}"
        )
    try:
        rows = db.execute("SELECT key, value FROM meta").fetchall()
        return StoreMeta(**{key: json.loads(value) for key, value in rows})
    except (TypeError, ValueError) as error:
        raise CatalogError(f"{path} is damaged: its table meta cannot be read") from error
