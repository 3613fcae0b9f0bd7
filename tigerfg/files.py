"""Files: their hashes, and putting a finished folder where it belongs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def publish(staged: Path, out: Path, old: Path) -> None:
    """Move a folder into place: the new one is there, or still the old one, never half.

    Args:
        staged: the finished folder, on the same file system as `out`.
        out: where it goes; what is there goes to `old`, and comes back if the move fails.
    """
    replaced = out.exists()
    if replaced:
        os.rename(out, old)
    try:
        os.rename(staged, out)
    except BaseException:  # Ctrl-C too: the temporary folder, and the old one in it, goes
        if replaced:
            os.rename(old, out)
        raise
