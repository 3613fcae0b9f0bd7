"""Text-guided grounding: the item's text decides which patches its embedding is made of.

Mathematics of TIGER-FG (arXiv 2605.18434) in the absorbed form; see README, "The model".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Guidance(NamedTuple):
    """What the text asks of the patches, and what is known of the text itself.

    queries (B, H·M, D): absorbed, head by head, softmax scale included; token_weights (B, L): mean
    over the M queries of a head, sum 1; text (B, D): the pooled text, their mean too.
    """

    queries: Tensor
    token_weights: Tensor
    text: Tensor


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
    """

    def __init__(self, width: int, text_width: int, heads: int, queries_per_head: int) -> None:
        super().__init__()
        self.width, self.heads, self.queries_per_head = width, heads, queries_per_head
        self.project_text = nn.Linear(text_width, width)
        self.norm_text = nn.LayerNorm(width, eps=1e-6)
        self.token_query = nn.Parameter(torch.zeros(queries_per_head, width))
        if queries_per_head > 1:
            nn.init.normal_(self.token_query, std=width**-0.5)
        self.w_q = nn.Linear(width, width)
        self.w_k = nn.Linear(width, width, bias=False)
        self.w_v = nn.Parameter(torch.eye(width))
        self.w_o = nn.Parameter(torch.eye(width))
        self.scale = (width // heads) ** -0.5

    def token_features(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, L, text width) -> token weights (B, M, L) and pooled texts (B, M, D)."""
        t = self.norm_text(self.project_text(tokens))
        logits = self.token_query @ t.transpose(1, 2)  # [B, M, L]
        lowest = torch.finfo(logits.dtype).min
        weights = logits.masked_fill(~token_mask[:, None, :], lowest).softmax(dim=-1)
        return weights, weights @ t

    def absorbed_queries(self, texts: Tensor) -> Tensor:
        """Pooled texts (B, M, D) -> x (B, H·M, D), head by head, softmax scale included."""
        batch, m, width = texts.shape
        q = self.w_q(texts).view(batch * m, self.heads, -1).transpose(0, 1)  # [H, B·M, d]
        w_k = self.w_k.weight.view(self.heads, -1, width)  # [H, d, D], not copied for every item
        x = (self.scale * (q @ w_k)).view(self.heads, batch, m, width).transpose(0, 1)
        return x.reshape(batch, self.heads * m, width)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Guidance:
        """tokens (B, L, text width), token_mask (B, L) bool -> Guidance."""
        weights, texts = self.token_features(tokens, token_mask)
        return Guidance(self.absorbed_queries(texts), weights.mean(dim=1), texts.mean(dim=1))
