"""The one place that decides between the fused kernels and the reference."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

logger = logging.getLogger("tigerfg")


def fused(*tensors: Tensor | None) -> bool:
    """Whether the Triton kernels are wanted: inputs on CUDA of which nobody wants a gradient.

    Args:
        tensors: all inputs, features first; None for absent ones.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if not present[0].is_cuda:
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in present))


def served(operator: str, reason: str | None) -> bool:
    """Whether the kernels take these shapes and dtypes; if not, the log says once why.

    Args:
        reason: why they do not, None where they do.
    """
    if reason is not None:
        _say_once(operator, reason)
    return reason is None


@functools.cache
def _say_once(operator: str, reason: str) -> None:
    logger.warning("%s: the reference runs instead of the fused kernels: %s", operator, reason)
