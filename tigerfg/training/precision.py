"""Precision of the encoders: autocast around them, everything after them in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tigerfg.model.towers import TigerFG


def resolve(precision: str, device: torch.device) -> str:
    """ "auto" as what this machine is fast in: "bf16" where its hardware multiplies bfloat16."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def cast_encoders(model: TigerFG, precision: str, device: torch.device) -> TigerFG:
    """Let both encoders of `model` run in `precision`; their features come back in float32.

    Pooling, grounding, the embedding head and its normalisation, and all losses are outside, in
    float32: they cost little, and their results are compared to three digits and more.
    """
    if precision == "bf16":
        for encoder in (model.vision, model.text):
            encoder.forward = partial(_autocast, type(encoder).forward, device.type, encoder)
    return model


def _autocast(
    forward: Callable[..., Tensor], device: str, encoder: nn.Module, *args: Tensor
) -> Tensor:
    with torch.autocast(device, torch.bfloat16):
        features = forward(encoder, *args)
    return features.float()
