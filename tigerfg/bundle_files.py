"""The files of a bundle, compared with what its manifest records of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tigerfg.errors import BundleError
from tigerfg.files import sha256_file

AGAIN = "copy or export the bundle again"

FileRecord = Mapping[str, Any]  # "file", "sha256", "bytes"


class BundleFiles:
    """The files in a bundle's directory. Every file is read and compared once, before its first
    use: a flipped bit in the weights would otherwise only make the vectors worse."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole: set[tuple[str, str, int]] = set()

    def whole(self, record: FileRecord) -> Path:
        """Path of a file whose bytes are those that were recorded.

        Raises:
            BundleError: it is missing, or they are not.
        """
        key = record["file"], record["sha256"], record["bytes"]
        if key not in self._whole:
            self.compare(record)
            self._whole.add(key)
        return self._folder / record["file"]

    def compare(self, record: FileRecord) -> None:
        """Read a file now; BundleError if its size or SHA-256 is not that of the record."""
        file = self.check_size(record)
        try:
            found = sha256_file(file)
        except OSError as error:
            raise BundleError(f"{file}: cannot be read: {error.strerror}") from error
        if found != record["sha256"]:
            raise BundleError(f"{file}: damaged, its SHA-256 is not the manifest's: {AGAIN}")

    def check_size(self, record: FileRecord) -> Path:
        """Path of a file; BundleError if it is missing or has another size."""
        file = self._folder / record["file"]
        try:
            size = file.stat().st_size
        except OSError as error:
            raise BundleError(f"{file}: missing from the bundle: {AGAIN}") from error
        if size != record["bytes"]:
            raise BundleError(f"{file}: {size} bytes, the manifest says {record['bytes']}: {AGAIN}")
        return file
