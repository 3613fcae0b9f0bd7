"""The query tower and the item tower of TIGER-FG (arXiv 2605.18434)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tigerfg.errors import InputError
from tigerfg.kernels import (
    TailWeights,
    attention_pool_reference,
    embedding_head_reference,
    grounded_embedding,
    grounding,
    masked_mean_reference,
    pooled_embedding,
    project_values_reference,
)
from tigerfg.model.backbones import build_backbone
from tigerfg.model.config import ModelConfig
from tigerfg.model.grounding import Guidance, TextGuidedGrounding, average_token_maps
from tigerfg.model.huggingface import configuration
from tigerfg.model.levels import fold_map, level_masks, level_patches
from tigerfg.model.text_encoder import build_text_encoder


class ItemOutput(NamedTuple):
    """embedding (B, E) with norm 1; grounding_map (B, N), sum 1; token_weights (B, L), sum 1.

    N patches of the full-size picture, or those of all item levels where it is said.
    """

    embedding: Tensor
    grounding_map: Tensor
    token_weights: Tensor


class TailInputs(NamedTuple):
    """What the fused tail of the item tower reads: patches (B, N, D), absorbed queries (B, Q, D)
    (with attention pooling the pool's own query comes last), text (B, D); and token_weights (B, L).
    """

    patches: Tensor
    queries: Tensor
    text: Tensor
    token_weights: Tensor


class PatchPool(nn.Module):
    """Pools patches to one feature: their mean, or attention by one learnt query (starts flat)."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width)) if kind == "attention" else None

    def forward(self, patches: Tensor, weights: Tensor) -> Tensor:
        """patches (B, N, D), weights (B, N) >= 0 (a mask or a soft region) -> (B, D)."""
        if self.query is not None:
            return attention_pool_reference(patches, self.query, weights)
        if weights.dtype == torch.bool:
            return masked_mean_reference(patches, weights)
        total = weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        return ((weights / total)[:, None, :] @ patches)[:, 0]


class EmbeddingHead(nn.Module):
    """l2norm(W_e · LN(x)): (B, D) -> (B, E). One head for both towers."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.projection = nn.Linear(width, embedding_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return embedding_head_reference(x, *self.weights, norm_eps=self.norm.eps)

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Norm weight and bias (D,), projection (E, D)."""
        return self.norm.weight, self.norm.bias, self.projection.weight


class TigerFG(nn.Module):
    """Both towers over one shared patch backbone, pool and embedding head.

    Query and item patches live in one space: attending to the target alone already gives the
    right item embedding, before the grounding has learnt anything.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = False) -> None:
        super().__init__()
        width = config.vision.width
        self.vision = build_backbone(config.vision, pretrained)
        self.pool = PatchPool(width, config.pool)
        self.head = EmbeddingHead(width, config.embedding_dim)
        self.text = build_text_encoder(config.text, pretrained)
        self.grounding = TextGuidedGrounding(width, self.text.width, config.grounding)
        self.gate_pool = nn.Parameter(torch.zeros(width))
        self.gate_text = nn.Parameter(torch.zeros(width))
        self.config = self._self_contained(config) if pretrained else config

    def _self_contained(self, config: ModelConfig) -> ModelConfig:
        """The configuration with those of its Hugging Face encoders: a checkpoint needs no hub."""
        parts = {
            name: replace(getattr(config, name), hf_config=configuration(encoder.model))
            for name, encoder in (("vision", self.vision), ("text", self.text))
            if getattr(config, name).type == "hf"
        }
        return replace(config, **parts)

    @property
    def vocab_size(self) -> int:
        """How many token ids the text encoder knows."""
        text = self.config.text
        return self.text.model.config.vocab_size if text.type == "hf" else text.vocab_size

    def start_from(self, other: TigerFG) -> list[str]:
        """Take another model's weights, so that an ablation begins with the method's towers.

        Only the grounding may differ: what has no counterpart of the same shape stays as it is.

        Returns:
            The names of this model's parameters that stayed, sorted.

        Raises:
            InputError: something else than the grounding differs.
        """
        own, weights = self.state_dict(), other.state_dict()
        differing = {
            name
            for name in own.keys() | weights.keys()
            if name not in own or name not in weights or own[name].shape != weights[name].shape
        }
        if wrong := sorted(name for name in differing if not name.startswith("grounding.")):
            raise InputError(
                f"init: {wrong[0]} differs between the two models; only grounding may: take the "
                "other sizes from the checkpoint's config.json"
            )
        same = {name: value for name, value in weights.items() if name not in differing}
        self.load_state_dict(same, strict=False)
        return sorted(differing & own.keys())

    def encode_query(self, pixels: Tensor, patch_mask: Tensor) -> Tensor:
        """pixels (B, 3, S, S) float, patch_mask (B, N) bool -> embeddings (B, E), norm 1."""
        return pooled_embedding(
            self.vision(pixels),
            patch_mask,
            *self.head.weights,
            self.pool.query,
            kind=self.config.pool,
            norm_eps=self.head.norm.eps,
        )

    def encode_region(self, patches: Tensor, weights: Tensor) -> Tensor:
        """Item patches (B, N, D) pooled with a given region (B, N) -> embeddings (B, E).

        The embedding that a perfect grounding map would give.
        """
        return self.head(self.pool(patches, weights))

    def encode_item(
        self, pixels: Tensor, patch_mask: Tensor, token_ids: Tensor, token_mask: Tensor
    ) -> ItemOutput:
        """pixels (B, 3, S, S), patch_mask (B, N), token_ids (B, L) int64, token_mask (B, L)."""
        item = self.ground(self.item_patches(pixels), patch_mask, token_ids, token_mask)
        return item._replace(grounding_map=self.fold_map(item.grounding_map))

    def item_patches(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, S, S) -> patch features of all item levels (B, N', D), finest first."""
        return level_patches(self.vision, pixels, self.config.item_levels)

    def item_mask(self, patch_mask: Tensor) -> Tensor:
        """patch_mask (B, N) of the full-size picture -> the mask of all item levels (B, N')."""
        return torch.cat(self._level_masks(patch_mask), dim=1)

    def fold_map(self, grounding_map: Tensor) -> Tensor:
        """A map over all item levels (B, N') -> over the full-size picture's patches (B, N)."""
        return fold_map(grounding_map, self.config.item_side, self.config.item_levels)

    def _level_masks(self, patch_mask: Tensor) -> list[Tensor]:
        return level_masks(patch_mask, self.config.item_side, self.config.item_levels)

    def tail_inputs(self, pixels: Tensor, token_ids: Tensor, token_mask: Tensor) -> TailInputs:
        """The item tower up to its fused tail; arguments as for `encode_item`.

        Raises:
            InputError: a model whose item tower the fused tail does not compute.
        """
        if not self.config.fused_tail:
            raise InputError(
                "export: this ablation (item_tower, grounding.token_pooling) has no fused tail; "
                "export the whole tower"
            )
        guidance = self.grounding(self.text(token_ids, token_mask), token_mask)
        queries = guidance.queries
        if self.pool.query is not None:
            # not len(queries): an exporter would take that for a constant
            pool = self.pool.query.expand(queries.shape[0], 1, -1)
            queries = torch.cat([queries, pool], dim=1)
        return TailInputs(self.item_patches(pixels), queries, guidance.text, guidance.token_weights)

    def grounding_map(
        self, patches: Tensor, patch_mask: Tensor, token_ids: Tensor, token_mask: Tensor
    ) -> Tensor:
        """The map alone, (B, N'): patches (B, N', D) and text as for `ground`."""
        patch_mask = self.item_mask(patch_mask)
        guidance = self.grounding(self.text(token_ids, token_mask), token_mask)
        if guidance.query_weights is not None:
            return self._attend_per_token(guidance, patches, patch_mask)[1]
        return grounding(guidance.queries.to(patches.dtype), patches, patch_mask)[1]

    def _attend_per_token(
        self, guidance: Guidance, patches: Tensor, patch_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pooled patches of every head (B, H, D) and the map (B, N) of token pooling "after"."""
        queries = guidance.queries.to(patches.dtype)
        pooled, maps = grounding(queries, patches, patch_mask, per_query=True)
        return average_token_maps(pooled, maps, guidance.query_weights, self.grounding.heads)

    def _flat_map(self, patch_mask: Tensor) -> Tensor:
        """The map of a tower without grounding: every level alike, flat over its valid patches."""
        masks = [mask.float() for mask in self._level_masks(patch_mask)]
        flat = [mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0) for mask in masks]
        return torch.cat(flat, dim=1) / len(masks)

    def ground(
        self, patches: Tensor, patch_mask: Tensor, token_ids: Tensor, token_mask: Tensor
    ) -> ItemOutput:
        """The item tower after its backbone.

        Args:
            patches: (B, N', D) of all item levels, as `item_patches` gives them.
            patch_mask: (B, N) of the full-size picture.

        Returns:
            ItemOutput whose grounding_map is over all levels, (B, N').
        """
        guidance = self.grounding(self.text(token_ids, token_mask), token_mask)
        if self.config.item_tower == "global":
            flat = self._flat_map(patch_mask).to(patches.dtype)
            fused = self.pool(patches, flat) + self.gate_text * guidance.text
            return ItemOutput(self.head(fused), flat, guidance.token_weights)
        patch_mask = self.item_mask(patch_mask)
        if guidance.query_weights is not None:
            heads, grounding_map = self._attend_per_token(guidance, patches, patch_mask)
            w_v, w_o = self.grounding.w_v, self.grounding.w_o
            fused = project_values_reference(heads, w_v, w_o, self.grounding.heads)
            fused = fused + self.gate_pool * self.pool(patches, patch_mask)
            fused = fused + self.gate_text * guidance.text
            return ItemOutput(self.head(fused), grounding_map, guidance.token_weights)
        dtype = patches.dtype  # under autocast parameters and activations differ
        parameters = (self.grounding.w_v, self.grounding.w_o, self.gate_pool, self.gate_text)
        weights = TailWeights(*(p.to(dtype) for p in (*parameters, *self.head.weights)))
        embedding, grounding_map = grounded_embedding(
            guidance.queries.to(dtype),
            patches,
            patch_mask,
            guidance.text.to(dtype),
            weights,
            self.grounding.heads,
            pool_query=None if self.pool.query is None else self.pool.query.to(dtype),
            norm_eps=self.head.norm.eps,
        )
        return ItemOutput(embedding, grounding_map, guidance.token_weights)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
