"""Contenders for what stands around the grounding: both towers' ends, and the preprocessing."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from kernel_shapes import Photos, Shape
from peers import Case, Function, Outputs, features, size
from PIL import Image
from torch import Tensor

from tigerfg.images import Preprocessing
from tigerfg.images import preprocess as pillow_preprocess
from tigerfg.kernels.embedding import grounded_embedding, grounded_embedding_reference
from tigerfg.kernels.pooling import (
    attention_pool_reference,
    embedding_head_reference,
    masked_mean_reference,
    pooled_embedding,
)
from tigerfg.kernels.preprocess import pack, preprocess
from tigerfg.kernels.tail import TailWeights

EMBEDDING_DIM = 256


class TowerCase(Case):
    """A tower's end on patch features: the same plain PyTorch eager and compiled, and ours."""

    eager = ("eager", "tigerfg")
    compiled = ("compiled",)

    def __init__(self, shape: Shape, device: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.dtype, self.device = getattr(torch, shape.dtype), device
        self.label = str(shape)
        self.shape = {"batch": shape.batch, "patches": shape.patches, "width": shape.width}
        v = features(shape.batch, shape.patches, shape.width, device, tower=False)
        self.v = v.to(self.dtype)
        self.mask = torch.ones(shape.batch, shape.patches, dtype=torch.bool, device=device)

    def random(self, *sizes: int, around: float = 0.0, scale: float = 1.0) -> Tensor:
        return (around + scale * torch.randn(*sizes, device=self.v.device)).to(self.dtype)

    def yardstick(self, contender: str) -> str:
        return "eager"


class EmbeddingCase(TowerCase):
    """The item tower's end: grounding, projections, gates, norm, 256 dimensions.

    Args:
        attention: pool the whole picture by a learnt query, not by the mean.
    """

    op = "grounded_embedding"

    def __init__(self, shape: Shape, device: str, seed: int = 0, attention: bool = False) -> None:
        super().__init__(shape, device, seed)
        width, self.heads = shape.width, shape.heads
        self.shape["queries"] = shape.queries
        self.x = self.random(shape.batch, shape.queries, width, scale=2 * width**-0.5)
        self.text = self.random(shape.batch, width)
        self.weights = TailWeights(
            w_v=self.random(width, width, scale=width**-0.5),
            w_o=self.random(width, width, scale=width**-0.5),
            gate_pool=self.random(width, scale=0.3),
            gate_text=self.random(width, scale=0.3),
            norm_weight=self.random(width, around=1.0, scale=0.1),
            norm_bias=self.random(width, scale=0.1),
            projection=self.random(EMBEDDING_DIM, width, scale=width**-0.5),
        )
        self.pool_query = self.random(width, scale=2 * width**-0.5) if attention else None
        self.label += "-attention" if attention else ""

    def function(self, contender: str) -> tuple[Function, tuple[Any, ...]]:
        arguments = (
            self.x, self.v, self.mask, self.text, self.weights, self.heads, self.pool_query
        )  # fmt: skip
        if contender == "tigerfg":
            return _named(grounded_embedding), arguments
        return _named(grounded_embedding_reference), arguments

    def computes(self, contender: str) -> str:
        return "x, v, text -> embedding, map"

    def bytes(self, contender: str) -> int:
        outputs = 4 * self.shape["batch"] * (EMBEDDING_DIM + self.shape["patches"])
        inputs = (self.x, self.v, self.mask, self.text, *self.weights, self.pool_query)
        return size(*inputs) + outputs

    def reference(self) -> Outputs:
        tensors = [tensor.double() for tensor in (self.x, self.v)]
        weights = TailWeights(*(weight.double() for weight in self.weights))
        text, query = self.text.double(), self.pool_query
        return _named(grounded_embedding_reference)(
            *tensors,
            self.mask,
            text,
            weights,
            self.heads,
            None if query is None else query.double(),
        )


def _named(function: Any) -> Function:
    def call(*arguments: Any) -> Outputs:
        *others, pool_query = arguments
        embedding, grounding_map = function(*others, pool_query=pool_query)
        return {"embedding": embedding, "map": grounding_map}

    return call


class PoolingCase(TowerCase):
    """The query tower's end: pooled patches, norm, 256 dimensions.

    Args:
        kind: see `pooled_embedding`.
    """

    op = "pooled_embedding"

    def __init__(self, shape: Shape, device: str, seed: int = 0, kind: str = "mean") -> None:
        super().__init__(shape, device, seed)
        self.head = (
            self.random(shape.width, around=1.0, scale=0.1),
            self.random(shape.width, scale=0.1),
            self.random(EMBEDDING_DIM, shape.width, scale=shape.width**-0.5),
        )
        if kind == "attention":
            self.head += (self.random(shape.width, scale=2 * shape.width**-0.5),)
        self.kind = kind
        self.label += "" if kind == "mean" else f"-{kind}"

    def function(self, contender: str) -> tuple[Function, tuple[Any, ...]]:
        function = ours_pooled if contender == "tigerfg" else plain_pooled
        return function(self.kind), (self.v, self.mask, *self.head)

    def computes(self, contender: str) -> str:
        return "v -> embedding"

    def bytes(self, contender: str) -> int:
        return size(self.v, self.mask, *self.head) + 4 * self.shape["batch"] * EMBEDDING_DIM

    def reference(self) -> Outputs:
        head = (weight.double() for weight in self.head)
        return plain_pooled(self.kind)(self.v.double(), self.mask, *head)


def plain_pooled(kind: str) -> Function:
    """The references, in the dtype of the patches."""

    def call(v: Tensor, mask: Tensor, *head: Tensor) -> Outputs:
        if kind == "attention":
            *head, query = head
            pooled = attention_pool_reference(v, query, mask)
        else:
            pooled = v[:, 0] if kind == "cls" else masked_mean_reference(v, mask)
        return {"embedding": embedding_head_reference(pooled, *head)}

    return call


def ours_pooled(kind: str) -> Function:
    def call(v: Tensor, mask: Tensor, *head: Tensor) -> Outputs:
        return {"embedding": pooled_embedding(v, mask, *head, kind=kind)}

    return call


class PreprocessCase(Case):
    """Photos in memory to a model's pixels. Oracle: Pillow, whose resize the kernel follows."""

    op = "preprocess"
    eager = ("interpolate eager", "tigerfg", "pillow, 1 thread")

    def __init__(
        self, shape: Photos, device: str, seed: int = 0, interpolation: str = "bilinear"
    ) -> None:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.spec = Preprocessing(224, 448, 16, mean, std, interpolation)
        self.dtype, self.device = getattr(torch, shape.dtype), device
        other = "" if interpolation == "bilinear" else f"-{interpolation}"
        self.label, self.target = f"{shape}{other}", shape.side
        self.shape = {"batch": shape.batch}
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (shape.batch, 24, 32, 3), dtype=np.uint8)
        sides = (shape.width, shape.height)
        self.photos = [
            Image.fromarray(one).resize(sides, Image.Resampling.BICUBIC) for one in coarse
        ]
        self.images = [torch.from_numpy(np.array(photo)).to(device) for photo in self.photos]
        self.packed = pack(self.images)
        longest = max(sides)
        self.extent = [max(1, round(n * shape.side / longest)) for n in reversed(sides)]
        self.affine = torch.tensor([self.spec.mean, self.spec.std], device=device)[:, :, None, None]

    def function(self, contender: str) -> tuple[Function, tuple[Any, ...]]:
        if contender == "tigerfg":
            spec = self.spec
            ours = partial(
                preprocess, size=self.target, patch=spec.patch, mean=spec.mean, std=spec.std,
                interpolation=spec.interpolation, dtype=self.dtype,
            )  # fmt: skip
            return lambda *packed: {"pixels": ours(*packed)[0]}, self.packed
        return (self._pillow if contender.startswith("pillow") else self._interpolate), ()

    def _interpolate(self) -> Outputs:
        """What one writes with torch alone, picture by picture."""
        shape = (len(self.images), 3, self.target, self.target)
        pixels = torch.zeros(shape, dtype=self.dtype, device=self.device)
        mean, std = self.affine
        for index, image in enumerate(self.images):
            planes = image.permute(2, 0, 1)[None].float()
            resized = F.interpolate(
                planes, self.extent, mode=self.spec.interpolation, antialias=True
            )
            normal = (resized.round() / 255 - mean) / std
            pixels[index, :, : self.extent[0], : self.extent[1]] = normal[0]
        return {"pixels": pixels}

    def _pillow(self) -> Outputs:
        """What serving does without a GPU, and the upload."""
        pixels = pillow_preprocess(self.photos, self.target, self.spec)[0]
        return {"pixels": torch.from_numpy(pixels).to(self.device, self.dtype)}

    def computes(self, contender: str) -> str:
        return "uint8 photos -> pixels"

    def bytes(self, contender: str) -> int:
        pixels = 3 * self.target**2 * self.shape["batch"] * self.dtype.itemsize
        return size(*self.images) + pixels

    def yardstick(self, contender: str) -> str:
        return "interpolate eager"

    def reference(self) -> Outputs:
        pixels = pillow_preprocess(self.photos, self.target, self.spec)[0]
        return {"pixels": torch.from_numpy(pixels).to(self.device, torch.float64)}
