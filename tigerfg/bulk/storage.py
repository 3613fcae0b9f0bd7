"""Files by path or address (s3://, gs://, hdfs://), as the file systems of pyarrow know them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tigerfg.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

STAGED = ".part"  # ends the names of files that are being written


class Storage:
    """A directory or file somewhere, and what is under it.

    Args:
        place: a path of this machine (on a cluster: of a file system that all nodes mount), or an
            address.

    Raises:
        InputError: an address of a kind that pyarrow does not know.
    """

    def __init__(self, place: str | os.PathLike) -> None:
        try:
            from pyarrow import ArrowException, fs
        except ImportError as error:
            raise MissingExtraError("reading and writing parquet", "pyarrow", "scale") from error
        self.place = os.fspath(place)
        try:
            if "://" in self.place:
                self._files, self.path = fs.FileSystem.from_uri(self.place)
            else:
                self.place = self.path = os.path.abspath(self.place)
                self._files = fs.LocalFileSystem()
        except (ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self.place}: {' '.join(str(error).split())}") from error

    @property
    def files(self) -> FileSystem:
        """pyarrow's file system of `path`."""
        return self._files

    def same(self, other: Storage) -> bool:
        """Whether both are one place."""
        if not self._files.equals(other._files):
            return False
        if self._files.type_name == "local":
            return os.path.realpath(self.path) == os.path.realpath(other.path)
        return self.path.rstrip("/") == other.path.rstrip("/")

    def names(self) -> list[str]:
        """Names of the files right in the directory, sorted; of a file its own."""
        from pyarrow import fs

        info = self._files.get_file_info(self.path)
        if info.type == fs.FileType.File:
            return [info.base_name]
        if info.type == fs.FileType.NotFound:
            return []
        found = self._files.get_file_info(fs.FileSelector(self.path))
        return sorted(entry.base_name for entry in found if entry.type == fs.FileType.File)

    def child(self, name: str) -> str:
        """Path of a file in the directory."""
        return f"{self.path.rstrip('/')}/{name}"

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self._told(f"read ({name})"):
            return self._files.get_file_info(self.child(name)).is_file

    def remove(self, name: str) -> None:
        """Delete a file, if there is one."""
        if self.has(name):
            with self._told(f"changed ({name})"):
                self._files.delete_file(self.child(name))

    def make(self) -> None:
        """Make the directory where there is none."""
        with self._told("made"):
            self._files.create_dir(self.path, recursive=True)

    def read(self, name: str) -> bytes:
        """All of a file."""
        with self._told(f"read ({name})"), self._files.open_input_stream(self.child(name)) as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all, whoever else writes it meanwhile."""
        staged = self.child(f".{name}.{uuid.uuid4().hex}{STAGED}")
        with self._told(f"written ({name})"):
            try:
                with self._files.open_output_stream(staged) as file:
                    file.write(content)
                self._files.move(staged, self.child(name))
            except BaseException:
                if self._files.get_file_info(staged).is_file:
                    self._files.delete_file(staged)
                raise

    @contextmanager
    def _told(self, action: str) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.place} cannot be {action}: {reason}") from error
