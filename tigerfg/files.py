"""Files: their hashes, writing them whole, putting a finished folder where it belongs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An OSError that names no file, as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; renamed to ``path`` and on the disk when the block ends without an error,
    else what is at ``path`` stays. A pipe or a device is written to itself."""
    with naming(path):
        if path.exists() and not path.is_file():
            yield path
            return
        target = path.resolve()
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            yield part
            with open(part, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(part, target)
            with contextlib.suppress(OSError):  # it is there; some file systems have no such thing
                fsync_directory(target.parent)
        except OSError as error:
            if error.filename is None or os.fspath(error.filename) != os.fspath(part):
                raise
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        finally:
            part.unlink(missing_ok=True)


def fsync_directory(path: Path) -> None:
    """Make a rename inside a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write bytes, or text as UTF-8, whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def engines_cache() -> Path:
    """What engines keep between processes: a folder in the user's cache directory.

    A user whom the system does not know, as in a container that runs under any number, has / for a
    home, and nothing is kept there.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        root = "/.cache"
    return Path(root) / "tigerfg" / "engines"


def is_movable(folder: Path) -> bool:
    """Whether `publish` could replace a folder: not a mount point or the current directory."""
    return not (folder.is_mount() or folder.resolve() == Path.cwd())


def publish(staged: Path, out: Path, old: Path) -> None:
    """Move a folder into place: the new one is there, or still the old one, never half.

    A process that is killed between its two renames leaves nothing at `out`, and both folders where
    they were to be moved from and to.

    Args:
        staged: the finished folder, on the same file system as `out`.
        out: where it goes; what is there goes to `old`, and comes back if the move fails.
    """
    try:
        if out.exists():
            os.rename(out, old)
        os.rename(staged, out)
    except BaseException:  # Ctrl-C too: the temporary folder, and the old one in it, goes
        if os.path.lexists(old) and not os.path.lexists(out):
            os.rename(old, out)
        raise
