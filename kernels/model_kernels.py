"""The kernels of one model's tails, for a bundle: only its own widths, heads and pooling."""

from __future__ import annotations

from dataclasses import dataclass

from tigerfg.kernels import pooling_kernel
from tigerfg.kernels.attend import grounding_variant
from tigerfg.kernels.pooling import MAX_EMBEDDING, MAX_WIDTH
from tigerfg.kernels.tail import tail_unserved, tail_variant
from tigerfg.kernels.variant import TRITON_TYPES, Variant

DTYPES = {name: dtype for dtype, name in TRITON_TYPES.items()}  # "fp16" -> torch.float16


@dataclass(frozen=True)
class ModelKernels:
    """What decides which kernels a model's tails are made of.

    Attributes:
        dtype: "fp16", "bf16" or "fp32", of the patch features.
        width, heads, queries_per_head, embedding_dim: D, H, M and E.
        pool: "mean" or "attention", of the query tower and of the item's whole picture.
        key_norm_eps, norm_eps: epsilons of the key LayerNorm and of the last LayerNorm.
    """

    dtype: str
    width: int
    heads: int
    queries_per_head: int
    embedding_dim: int
    pool: str
    key_norm_eps: float = 1e-6
    norm_eps: float = 1e-6

    def unserved(self, arch: int) -> str | None:
        """Why the kernels do not take the model on an architecture; None where they do."""
        head_width = self.width // self.heads
        reason = tail_unserved(DTYPES[self.dtype], self.width, head_width, self.embedding_dim, arch)
        if reason is None and (self.width > MAX_WIDTH or self.embedding_dim % 16):
            reason = (
                f"width {self.width} and {self.embedding_dim} dimensions; the pooling takes widths "
                f"up to {MAX_WIDTH} and multiples of 16 up to {MAX_EMBEDDING}"
            )
        return reason

    def variants(self, operator: str, arch: int) -> list[Variant]:
        """The forms of an operator ("grounding", "tail" or "pooling") that the tails launch.

        Grounding and tail come twice: a whole item in one program, and split over several.
        """
        dtype = DTYPES[self.dtype]
        if operator == "grounding":
            queries = self.heads * self.queries_per_head + 1  # the last pools the whole picture
            return [
                grounding_variant(dtype, self.width, queries, self.key_norm_eps, whole, arch)
                for whole in (True, False)
            ]
        if operator == "tail":
            head_width = self.width // self.heads
            shape = (dtype, self.width, head_width, self.embedding_dim, self.norm_eps)
            return [tail_variant(*shape, split, arch) for split in (False, True)]
        if operator == "pooling":
            return [
                pooling_kernel.variant(
                    self.pool, dtype, self.width, self.embedding_dim, True, arch,
                    key_norm_eps=self.key_norm_eps, norm_eps=self.norm_eps,
                )
            ]  # fmt: skip
        return []
