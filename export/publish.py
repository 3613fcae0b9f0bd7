"""Putting a finished folder where it belongs: the new one, or still the old one, never half."""

from __future__ import annotations

import os
from pathlib import Path


def publish(staged: Path, out: Path, old: Path) -> None:
    """Move a folder into place.

    Args:
        staged: the finished folder, on the same file system as `out`.
        out: where it goes; what is there goes to `old`, and comes back if the move fails.
    """
    os.chmod(staged, 0o777 & ~_umask())  # a temporary folder is its owner's alone
    replaced = out.exists()
    if replaced:
        os.rename(out, old)
    try:
        os.rename(staged, out)
    except BaseException:  # Ctrl-C too: the temporary folder, and the old one in it, goes
        if replaced:
            os.rename(old, out)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
