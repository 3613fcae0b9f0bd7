"""Which tuning table a kernel test launches with."""

from __future__ import annotations

from tigerfg.kernels.variant import INTERPRETED


def table(arch: int) -> int | None:
    """The architecture whose launch parameters the interpreter takes; a GPU takes its own."""
    return arch if INTERPRETED else None
