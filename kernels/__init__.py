"""Operators of the item and query towers after the backbone; imported as `tigerfg.kernels`.

One operator per file; each has a plain PyTorch oracle that defines its result.
"""

from __future__ import annotations

from tigerfg.kernels.grounding import grounding_reference
from tigerfg.kernels.pooling import masked_mean_reference

__all__ = ["grounding_reference", "masked_mean_reference"]
