"""Patch backbones: pixels in, patch features out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tigerfg.errors import InputError
from tigerfg.model.config import VisionConfig
from tigerfg.model.huggingface import load_encoder
from tigerfg.model.lite import LiteBackbone


class ConvBlock(nn.Module):
    """Depthwise convolution (the only position code) and an MLP, both residual; channels last."""

    def __init__(self, width: int, kernel: int, mlp_ratio: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, int(width * mlp_ratio))
        self.down = nn.Linear(int(width * mlp_ratio), width)

    def forward(self, x: Tensor) -> Tensor:  # [B, h, w, D]
        x = x + self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))


class ConvBackbone(nn.Module):
    """Convolutional patch tower with stride 8: stem of three 3x3 convolutions, then ConvBlocks.

    No attention on purpose: patches keep a bounded receptive field, so that pooling a region of a
    full picture gives nearly what the crop of that region gives. Works at any picture size.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.patch != 8:
            raise InputError(f"vision.patch: the conv backbone has stride 8, not {config.patch}")
        width = config.width
        self.width = width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList(
            ConvBlock(width, config.kernel, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, S, S) -> patch features (B, (S/8)², D), row by row."""
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).flatten(1, 2)


class HuggingFaceBackbone(nn.Module):
    """Any Hugging Face vision transformer: its last hidden states without CLS and registers."""

    def __init__(self, config: VisionConfig, pretrained: bool) -> None:
        super().__init__()
        self.model = load_encoder("vision", config.name, config.hf_config, pretrained)
        settings = self.model.config
        self.width = settings.hidden_size
        if settings.hidden_size != config.width or settings.patch_size != config.patch:
            raise InputError(
                f"vision: the backbone has width {settings.hidden_size} and patch "
                f"{settings.patch_size}; set vision.width and vision.patch to these"
            )

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, S, S) -> patch features (B, (S/patch)², D)."""
        patch = self.model.config.patch_size
        patches = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
        return self.model(pixel_values=pixels).last_hidden_state[:, -patches:]


def build_backbone(config: VisionConfig, pretrained: bool = False) -> nn.Module:
    """The backbone that `config` names; `pretrained` loads its published weights."""
    if config.type == "conv":
        return ConvBackbone(config)
    if config.type == "lite":
        return LiteBackbone(config, pretrained)
    return HuggingFaceBackbone(config, pretrained)
