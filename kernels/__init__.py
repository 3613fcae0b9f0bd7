"""Operators of the item and query towers, before and after the backbone; `tigerfg.kernels`.

Each has a plain PyTorch oracle that defines its result, Triton kernels, and a public function that
runs the kernels on CUDA where no gradient is wanted and the oracle elsewhere.
"""

from __future__ import annotations

from tigerfg.kernels.embedding import (
    grounded_embedding,
    grounded_embedding_reference,
    project_values_reference,
)
from tigerfg.kernels.grounding import grounding, grounding_reference
from tigerfg.kernels.pooling import (
    attention_pool_reference,
    embedding_head_reference,
    masked_mean_reference,
    pooled_embedding,
    pooled_embedding_reference,
)
from tigerfg.kernels.preprocess import pack, preprocess, preprocess_reference
from tigerfg.kernels.tail import TailWeights

__all__ = [
    "TailWeights",
    "attention_pool_reference",
    "embedding_head_reference",
    "grounded_embedding",
    "grounded_embedding_reference",
    "grounding",
    "grounding_reference",
    "masked_mean_reference",
    "pack",
    "pooled_embedding",
    "pooled_embedding_reference",
    "preprocess",
    "preprocess_reference",
    "project_values_reference",
]
