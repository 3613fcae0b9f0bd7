"""Text encoders: token ids in, one feature a token out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tigerfg.model.config import TextConfig
from tigerfg.model.huggingface import load_encoder


class TextBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, int(width * mlp_ratio))
        self.down = nn.Linear(int(width * mlp_ratio), width)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(
            batch, length, 3, self.heads, width // self.heads
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, L, d]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x)), approximate="tanh"))


class TextTransformer(nn.Module):
    """Small bidirectional transformer over the item's text tokens."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.width = config.width
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        nn.init.normal_(self.tokens.weight, std=0.5)
        nn.init.normal_(self.positions.weight, std=0.1)
        self.blocks = nn.ModuleList(
            TextBlock(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """token_ids (B, L) int64, token_mask (B, L) bool -> token features (B, L, width)."""
        places = torch.arange(token_ids.shape[1], device=token_ids.device)
        x = self.tokens(token_ids) + self.positions(places)
        attention_mask = token_mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, attention_mask)
        return self.norm(x)


class HuggingFaceTextEncoder(nn.Module):
    """Any Hugging Face text encoder: its last hidden states."""

    def __init__(self, config: TextConfig, pretrained: bool) -> None:
        super().__init__()
        self.model = load_encoder("text", config.name, config.hf_config, pretrained)
        self.width = self.model.config.hidden_size

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """token_ids (B, L) int64, token_mask (B, L) bool -> token features (B, L, width)."""
        return self.model(
            input_ids=token_ids, attention_mask=token_mask.to(token_ids.dtype)
        ).last_hidden_state


def build_text_encoder(config: TextConfig, pretrained: bool = False) -> nn.Module:
    """The text encoder that `config` names; `pretrained` loads Hugging Face weights."""
    if config.type == "transformer":
        return TextTransformer(config)
    return HuggingFaceTextEncoder(config, pretrained)
