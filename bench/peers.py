"""What the kernel benchmarks compare: contenders on the same inputs, errors over a float64 oracle.

`torch.compile` runs with max-autotune but without its own CUDA graphs: those copy every input into
buffers of their own at each call, which costs more than the work here. Where launches would take
longer than the work, the contenders' replays of a plain CUDA graph are timed instead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from kernel_shapes import Shape
from torch import Tensor

from tigerfg.kernels.grounding import grounding, grounding_reference

MAX_AUTOTUNE = {"mode": "max-autotune-no-cudagraphs", "dynamic": False, "fullgraph": True}
CHUNK = 64  # items that the float64 oracle takes at a time

Outputs = dict[str, Tensor]
Function = Callable[..., Outputs]


class Case(ABC):
    """Inputs of one shape, the contenders on them and the oracle.

    Attributes:
        op, label, shape, dtype, device: what is measured, for people and for tables.
        allowed_error: relative error above which a contender's result is wrong.
        eager, compiled: names of the contenders.
    """

    op: str
    label: str
    shape: dict[str, int]
    dtype: torch.dtype
    device: str
    allowed_error: float = 0.05  # ten times what bfloat16 gives: not noise, a wrong result
    eager: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()

    @abstractmethod
    def function(self, contender: str) -> tuple[Function, tuple[Any, ...]]:
        """A contender before compilation: what is called, and with what."""

    @abstractmethod
    def computes(self, contender: str) -> str:
        """Inputs -> outputs of a contender."""

    @abstractmethod
    def bytes(self, contender: str) -> int:
        """Each input read once and each output written once."""

    @abstractmethod
    def yardstick(self, contender: str) -> str:
        """The contender whose error is what torch itself makes in this dtype."""

    @abstractmethod
    def reference(self) -> Outputs:
        """Every output in float64, from the rounded inputs."""

    def call(self, contender: str) -> Callable[[], Outputs]:
        """What is timed. Compiled contenders compile at their first call, and forget all others."""
        function, arguments = self.function(contender)
        if contender in self.compiled:
            torch._dynamo.reset()
            function = torch.compile(function, **MAX_AUTOTUNE)

        def run() -> Outputs:
            with torch.inference_mode():
                return function(*arguments)

        return run

    @cached_property
    def oracle(self) -> Outputs:
        with torch.inference_mode():
            return self.reference()

    def errors(self, contender: str, outputs: Outputs) -> dict[str, float]:
        """Relative error of each output, infinite where it is not finite."""
        return {name: relative_error(value, self.oracle[name]) for name, value in outputs.items()}

    def torch_errors(self, contender: str) -> dict[str, float]:
        """Errors of the plain PyTorch form in the same dtype."""
        name = self.yardstick(contender)
        if name not in self._torch_errors:
            self._torch_errors[name] = self.errors(name, self.call(name)())
        return self._torch_errors[name]

    @cached_property
    def _torch_errors(self) -> dict[str, dict[str, float]]:
        return {}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖ in float64; infinite where it is no number."""
    error = torch.linalg.vector_norm(found.to(torch.float64) - expected)
    error = float(error / torch.linalg.vector_norm(expected))
    return error if math.isfinite(error) else math.inf


def size(*tensors: Tensor | None) -> int:
    """Bytes of the elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def features(batch: int, patches: int, width: int, device: str, tower: bool) -> Tensor:
    """float32 patch features (B, N, D) with a mean and a scale of their own for each patch."""
    prefix = 5 if tower else 0
    v = torch.randn(batch, prefix + patches, width, device=device)
    v *= 0.5 + torch.rand(*v.shape[:2], 1, device=device)
    v += 0.3 * torch.randn(*v.shape[:2], 1, device=device)
    return v


def usual(
    q: Tensor, v: Tensor, mask: Tensor | None, w_k: Tensor, w_v: Tensor, w_o: Tensor
) -> Outputs:
    """Cross-attention pooling as usually written: keys and values of every patch are projected.

    q (B, H, M, d), v (B, N, D), mask (B, N), w_k, w_v, w_o (D, D) -> g (B, D), map (B, N).
    """
    k, values = projected(q, v, w_k, w_v)
    logits = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5  # [B, H, M, N]
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], torch.finfo(logits.dtype).min)
    maps = logits.softmax(dim=-1)
    g = (maps @ values).mean(dim=2).reshape(len(q), -1) @ w_o.T
    return {"g": g, "map": maps.mean(dim=(1, 2))}


def usual_sdpa(
    q: Tensor, v: Tensor, mask: Tensor | None, w_k: Tensor, w_v: Tensor, w_o: Tensor
) -> Outputs:
    """`usual` with torch's fused attention (FlashAttention without a mask), which has no map."""
    k, values = projected(q, v, w_k, w_v)
    attn_mask = None if mask is None else mask[:, None, None, :]
    pooled = F.scaled_dot_product_attention(q, k, values, attn_mask=attn_mask)
    return {"g": pooled.mean(dim=2).reshape(len(q), -1) @ w_o.T}


def projected(q: Tensor, v: Tensor, w_k: Tensor, w_v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (layer-normalised patches, as in the model) and values, (B, H, N, d) each."""
    batch, heads, _, depth = q.shape
    shape = (batch, v.shape[1], heads, depth)
    k = F.layer_norm(v, v.shape[-1:], eps=1e-6) @ w_k.T
    return k.view(shape).transpose(1, 2), (v @ w_v.T).view(shape).transpose(1, 2)


def absorbed(x: Tensor, v: Tensor, mask: Tensor | None) -> Outputs:
    """The absorbed form in plain PyTorch: x (B, Q, D), v (B, N, D) -> p (B, Q, D), map (B, N)."""
    p, maps = grounding_reference(x, v, mask)
    return {"p": p, "map": maps.mean(dim=1)}


def ours(x: Tensor, v: Tensor, mask: Tensor | None) -> Outputs:
    p, grounding_map = grounding(x, v, mask)
    return {"p": p, "map": grounding_map}


def ours_projected(
    q: Tensor, v: Tensor, mask: Tensor | None, w_k: Tensor, w_v: Tensor, w_o: Tensor
) -> Outputs:
    """From and to what `usual` has: queries absorbed before, values and output projected after."""
    p, grounding_map = grounding(absorb(q, w_k), v, mask)
    batch, heads, m, depth = q.shape
    p = p.view(batch, heads, m, -1).mean(dim=2)
    g = torch.einsum("bhd,hed->bhe", p, w_v.view(heads, depth, -1)).reshape(batch, -1) @ w_o.T
    return {"g": g, "map": grounding_map}


def absorb(q: Tensor, w_k: Tensor) -> Tensor:
    """x = scale · W_kᵀ q head by head: (B, H, M, d) -> (B, H·M, D)."""
    batch, heads, m, depth = q.shape
    x = torch.einsum("bhmd,hde->bhme", depth**-0.5 * q, w_k.view(heads, depth, -1))
    return x.reshape(batch, heads * m, -1)


class GroundingCase(Case):
    """Text-guided grounding: (x, v) -> (p, map), and (q, v) -> (g, map) with all projections."""

    op = "grounding"
    eager = ("absorbed eager", "tigerfg", "usual eager", "usual sdpa", "tigerfg + projections")
    compiled = ("usual compiled", "absorbed compiled")

    def __init__(self, shape: Shape, device: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.dtype, self.device = getattr(torch, shape.dtype), device
        self.label = str(shape)
        self.shape = {k: n for k, n in asdict(shape).items() if k != "dtype"}
        width, heads = shape.width, shape.heads
        depth, per_head = width // heads, shape.queries // heads
        v = features(shape.batch, shape.patches, width, device, shape.tower).to(self.dtype)
        self.v = v[:, -shape.patches :]
        self.mask = None
        if shape.tower:
            self.mask = torch.rand(shape.batch, shape.patches, device=device) < 0.8
            self.mask[:, 0] = True
        # logits of standard deviation 2: neither flat nor a single patch
        self.q = (2 * torch.randn(shape.batch, heads, per_head, depth, device=device)).to(v.dtype)
        self.weights = [
            (torch.randn(width, width, device=device) * width**-0.5).to(v.dtype) for _ in range(3)
        ]
        self.x = absorb(self.q.float(), self.weights[0].float()).to(v.dtype)

    def function(self, contender: str) -> tuple[Function, tuple[Any, ...]]:
        functions = {
            "usual eager": usual,
            "usual sdpa": usual_sdpa,
            "usual compiled": usual,
            "absorbed eager": absorbed,
            "absorbed compiled": absorbed,
            "tigerfg": ours,
            "tigerfg + projections": ours_projected,
        }
        if self._projects(contender):
            return functions[contender], (self.q, self.v, self.mask, *self.weights)
        return functions[contender], (self.x, self.v, self.mask)

    def computes(self, contender: str) -> str:
        if contender == "usual sdpa":
            return "q, v -> g"
        return "q, v -> g, map" if self._projects(contender) else "x, v -> p, map"

    def bytes(self, contender: str) -> int:
        grounding_map = 4 * self.v.shape[0] * self.v.shape[1]
        if not self._projects(contender):
            return size(self.x, self.v, self.mask, self.x) + grounding_map
        g = self.q.numel() // self.q.shape[2] * self.q.element_size()
        if contender == "usual sdpa":
            grounding_map = 0
        return size(self.q, self.v, self.mask, *self.weights) + g + grounding_map

    def yardstick(self, contender: str) -> str:
        return "usual eager" if self._projects(contender) else "absorbed eager"

    def errors(self, contender: str, outputs: Outputs) -> dict[str, float]:
        """`map` is over the oracle with the same inputs: absorbed queries are rounded once more."""
        expected = self.oracle
        if self._projects(contender):
            expected = {"g": expected["g"], "map": expected["usual map"]}
        return {name: relative_error(value, expected[name]) for name, value in outputs.items()}

    def reference(self) -> Outputs:
        weights = [weight.double() for weight in self.weights]
        parts: list[Outputs] = []
        for start in range(0, len(self.v), CHUNK):
            rows = slice(start, start + CHUNK)
            v = self.v[rows].double()
            mask = None if self.mask is None else self.mask[rows]
            unabsorbed = usual(self.q[rows].double(), v, mask, *weights)
            part = absorbed(self.x[rows].double(), v, mask)
            parts.append(part | {"g": unabsorbed["g"], "usual map": unabsorbed["map"]})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _projects(self, contender: str) -> bool:
        return contender.startswith("usual") or contender.endswith("projections")
