"""Text-guided grounding: the item's text decides which patches its embedding is made of.

Mathematics of TIGER-FG (arXiv 2605.18434) in the absorbed form; see README, "The model".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tigerfg.model.config import GroundingConfig


class Guidance(NamedTuple):
    """What the text asks of the patches, and what is known of the text itself.

    queries (B, Q, D): absorbed, head by head, softmax scale included; token_weights (B, L): mean
    over the M queries of a head, sum 1; text (B, D): the pooled text, their mean too. Q is H·M, or
    H·L where every token makes its own query; `query_weights` (B, L) then says what each of a
    head's queries counts, sum 1, and is None where they count alike.
    """

    queries: Tensor
    token_weights: Tensor
    text: Tensor
    query_weights: Tensor | None = None


class TextGuidedGrounding(nn.Module):
    """Turns an item's text into the queries with which its patches are pooled.

        w_lm  = softmax_l(u_m · t_l)              token weights of query m
        q_m^h = W_q^h Σ_l w_lm t_l
        x_m^h = scale · W_kᵀ^h q_m^h              absorbed: keys are never projected

    and holds the projections that `tigerfg.kernels.grounded_embedding` applies after the pooling:

        p_m^h = Σ_n softmax_n(x_m^h · LN(v_n)) v_n
        g     = W_o concat_h(W_v^h mean_m p_m^h)  W_v and W_o start as the identity

    so that before any training g is a convex combination of the patches, in the space of the query
    tower's pooled feature.

    Ablations (`GroundingConfig`). Learned guidance: the x_m^h are parameters. Token pooling after
    the softmax: x_l^h = scale · W_k^hᵀ W_q^h t_l for every token, and the map of a head is
    Σ_l mean_m w_lm softmax_n(x_l^h · LN(v_n)).
    """

    def __init__(self, width: int, text_width: int, config: GroundingConfig) -> None:
        super().__init__()
        self.width, self.heads, self.config = width, config.heads, config
        self.project_text = nn.Linear(text_width, width)
        self.norm_text = nn.LayerNorm(width, eps=1e-6)
        self.token_query = nn.Parameter(torch.zeros(config.queries_per_head, width))
        if config.queries_per_head > 1:
            nn.init.normal_(self.token_query, std=width**-0.5)
        if config.guidance == "learned":
            # the size that text-made queries have at their start
            queries = torch.randn(config.heads * config.queries_per_head, width)
            self.queries = nn.Parameter(queries / (3.0 * width**0.5))
        else:
            self.w_q = nn.Linear(width, width)
            self.w_k = nn.Linear(width, width, bias=False)
        self.w_v = nn.Parameter(torch.eye(width))
        self.w_o = nn.Parameter(torch.eye(width))
        self.scale = (width // config.heads) ** -0.5

    def token_features(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, L, text width) -> token weights (B, M, L), their features t (B, L, D), and
        pooled texts (B, M, D)."""
        t = self.norm_text(self.project_text(tokens))
        logits = self.token_query @ t.transpose(1, 2)  # [B, M, L]
        lowest = torch.finfo(logits.dtype).min
        weights = logits.masked_fill(~token_mask[:, None, :], lowest).softmax(dim=-1)
        return weights, t, weights @ t

    def absorbed_queries(self, texts: Tensor) -> Tensor:
        """Pooled texts (B, M, D) -> x (B, H·M, D), head by head, softmax scale included."""
        batch, m, width = texts.shape
        d = width // self.heads
        q = self.w_q(texts).view(batch * m, self.heads, d).transpose(0, 1)  # [H, B·M, d]
        w_k = self.w_k.weight.view(self.heads, d, width)  # [H, d, D], not copied for every item
        x = (self.scale * (q @ w_k)).view(self.heads, batch, m, width).transpose(0, 1)
        return x.reshape(batch, self.heads * m, width)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Guidance:
        """tokens (B, L, text width), token_mask (B, L) bool -> Guidance."""
        weights, t, texts = self.token_features(tokens, token_mask)
        token_weights, text = weights.mean(dim=1), texts.mean(dim=1)
        if self.config.guidance == "learned":
            queries = self.queries.expand(tokens.shape[0], -1, -1)
            return Guidance(queries, token_weights, text)
        if self.config.token_pooling == "after":
            return Guidance(self.absorbed_queries(t), token_weights, text, token_weights)
        return Guidance(self.absorbed_queries(texts), token_weights, text)


def average_token_maps(
    pooled: Tensor, maps: Tensor, token_weights: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Token pooling after the softmax: what the tokens' queries found, averaged head by head.

    Args:
        pooled: (B, H·L, D), the patches that every token's query pooled. maps: (B, H·L, N).
        token_weights: (B, L), sum 1, zero for padding.

    Returns:
        (B, H, D): Σ_n (Σ_l w_l a_ln) v_n of every head, the average map's pooled patches;
        (B, N): that map, averaged over the heads.
    """
    batch, length = token_weights.shape
    weights = token_weights[:, None, None, :]  # [B, 1, 1, L]
    pooled = weights.to(pooled.dtype) @ pooled.view(batch, heads, length, pooled.shape[-1])
    maps = weights.to(maps.dtype) @ maps.view(batch, heads, length, maps.shape[-1])
    return pooled[:, :, 0], maps[:, :, 0].mean(dim=1)
