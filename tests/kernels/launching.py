"""Where kernel tests launch, and with which tuning table."""

from __future__ import annotations

from tigerfg.kernels.variant import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"  # the interpreter's tensors, or the GPU


def table(arch: int) -> int | None:
    """The architecture whose launch parameters the interpreter takes; a GPU takes its own."""
    return arch if INTERPRETED else None
