"""The custom operators as plain PyTorch, for exporters that know only standard operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tigerfg.kernels.embedding import grounded_embedding_plain
from tigerfg.kernels.grounding import grounding_plain
from tigerfg.kernels.pooling import pooled_embedding_cpu


def decompositions() -> dict[Any, Callable[..., Any]]:
    """For `torch.export.ExportedProgram.run_decompositions`, before `torch.onnx.export`.

    A model exported on CUDA without gradients holds tigerfg's operators; on a CPU it never does.
    """
    return {
        torch.ops.tigerfg.grounding.default: grounding_plain,
        torch.ops.tigerfg.grounded_embedding.default: grounded_embedding_plain,
        torch.ops.tigerfg.pooled_embedding.default: pooled_embedding_cpu,
    }
