"""Index files: derived from the store, stamped with what they hold, never the truth.

A file is a faiss index, notes (JSON) and a trailer (catalogue, write number, lengths, CRC-32 of
everything before it). It is replaced as a whole; whatever is wrong with it, the index is rebuilt
from the store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tigerfg.errors import MissingExtraError
from tigerfg.files import fsync_directory
from tigerfg.index.store import Store

_TRAILER = struct.Struct("<8s16sQQQ")  # magic, catalogue, write number, two lengths
_CRC = struct.Struct("<I")
_MAGIC = b"tigerfg5"
_BLOCK = 1 << 20

logger = logging.getLogger("tigerfg")


class NewerError(ValueError):
    """A derived file holds writes that the store does not know."""


class Loaded(NamedTuple):
    """A faiss index, the number of the last write that it holds, and the notes beside it."""

    index: Any
    number: int
    notes: dict[str, Any]


class _Trailer(NamedTuple):
    number: int
    index_bytes: int
    notes_bytes: int


def import_faiss() -> Any:
    """The module faiss, or MissingExtraError."""
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("the vector index", "faiss-cpu", "cpu") from error
    return faiss


def _work_alone() -> None:
    """In a forked child: GNU's OpenMP would wait without end for the threads of a team that the
    thread which forked has used before. Other threads of the child get teams of their own."""
    set_threads = getattr(sys.modules.get("faiss"), "omp_set_num_threads", None)
    if set_threads is not None:  # it is imported, to its end
        set_threads(1)


os.register_at_fork(after_in_child=_work_alone)


def save_index(path: Path, store: Store, loaded: Loaded) -> bool:
    """Write an index file; a failure is logged, never raised. Returns whether it was written."""
    faiss = import_faiss()
    fresh = Path(f"{path}.new")
    try:
        with open(fresh, "wb") as file:
            crc = 0

            def write(block: bytes) -> int:
                nonlocal crc
                crc = zlib.crc32(block, crc)
                return file.write(block)

            faiss.write_index(loaded.index, faiss.PyCallbackIOWriter(write, _BLOCK))
            index_bytes = file.tell()
            notes = json.dumps(loaded.notes).encode()
            write(notes)
            catalog = bytes.fromhex(store.meta.catalog_id)
            write(_TRAILER.pack(_MAGIC, catalog, loaded.number, index_bytes, len(notes)))
            file.write(_CRC.pack(crc))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        fsync_directory(path.parent)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        logger.warning("%s not saved, the next start rebuilds it: %s", path, reason)
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        return False
    return True


def load_index(path: Path, store: Store) -> Loaded | None:
    """Read an index file; None where there is none, or, with a warning, no usable one."""
    faiss = import_faiss()
    try:
        with open(path, "rb") as file:
            trailer = _checked(file, store)
            file.seek(trailer.index_bytes)
            notes = json.loads(file.read(trailer.notes_bytes))
            file.seek(0)  # not by its name, which may be another file's by now
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read, _BLOCK))
        return Loaded(index, trailer.number, notes)
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError is what faiss raises
        reason = " ".join(str(error).split())
        logger.warning("%s is rebuilt from the store: %s", path, reason)
    return None


def saved_number(path: Path, store: Store) -> int:
    """The write number of an index file, 0 where there is no usable one; reads the trailer only."""
    try:
        return _trailer_of(path, store).number
    except (OSError, ValueError):
        return 0


def discard_newer_index(path: Path, store: Store) -> None:
    """See `discard_newer`."""
    discard_newer(path, lambda: _trailer_of(path, store))


def discard_newer(path: Path, read: Callable[[], object]) -> None:
    """Remove a derived file that is newer than the store: ``read`` raises NewerError then.

    Where a store was put back from a backup, its writes to come get numbers that the file holds
    others under.
    """
    try:
        read()
    except NewerError:
        with contextlib.suppress(OSError):
            path.unlink()
            logger.warning("%s was newer than the store: removed", path)
    except (OSError, ValueError):
        pass  # none, or what is wrong with it is said when it is used


def check_index(path: Path, store: Store) -> list[str]:
    """What is wrong with an index file: one line, or none; a missing file is not wrong."""
    try:
        with open(path, "rb") as file:
            _checked(file, store)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        return [f"{path.name}: {error}; the next start rebuilds it from the store"]
    return []


def _checked(file: BinaryIO, store: Store) -> _Trailer:
    """The trailer of a file whose content is what was written; else ValueError."""
    trailer = _trailer(file, store)
    crc, length = 0, trailer.index_bytes + trailer.notes_bytes + _TRAILER.size
    file.seek(0)
    while length > 0 and (block := file.read(min(_BLOCK, length))):
        crc = zlib.crc32(block, crc)
        length -= len(block)
    if _CRC.pack(crc) != file.read(_CRC.size):
        raise ValueError("its checksum is wrong")
    return trailer


def _trailer_of(path: Path, store: Store) -> _Trailer:
    with open(path, "rb") as file:
        return _trailer(file, store)


def _trailer(file: BinaryIO, store: Store) -> _Trailer:
    """The trailer of an index file; ValueError if it is not of this store."""
    if store.replaced:
        raise ValueError("its directory holds another catalogue by now")
    size = file.seek(0, os.SEEK_END) - _TRAILER.size - _CRC.size
    if size < 0:
        raise ValueError("it is truncated")
    file.seek(size)
    magic, catalog, *numbers = _TRAILER.unpack(file.read(_TRAILER.size))
    trailer = _Trailer(*numbers)
    if magic != _MAGIC and magic.startswith(_MAGIC[:-1]):
        raise ValueError("another version of tigerfg wrote it")
    if magic != _MAGIC or trailer.index_bytes + trailer.notes_bytes != size:
        raise ValueError("it is truncated or damaged")
    if catalog.hex() != store.meta.catalog_id:
        raise ValueError("it belongs to another catalogue")
    if trailer.number > store.number:
        raise NewerError("it is newer than the store")
    return trailer
