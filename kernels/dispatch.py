"""The one place that decides between the fused kernels and the reference."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

logger = logging.getLogger("tigerfg")


def fused(operator: str, reason: str | None, *tensors: Tensor | None) -> bool:
    """Whether the Triton kernels serve: tensors on CUDA of which nobody wants a gradient.

    Args:
        operator: for the log.
        reason: why the kernels cannot take these shapes and dtypes, None where they can; the
            reference then runs on the GPU too, and the log says so once.
        tensors: all inputs, features first; None for absent ones.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if not present[0].is_cuda:
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in present):
        return False
    if reason is not None:
        _say_once(operator, reason)
    return reason is None


@functools.cache
def _say_once(operator: str, reason: str) -> None:
    logger.warning("%s: the reference runs instead of the fused kernels: %s", operator, reason)
