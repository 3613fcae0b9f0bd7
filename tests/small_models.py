"""Small random models, checkpoints and inputs for the tests of model, export and engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tigerfg.model import ModelConfig, TigerFG
from tigerfg.model.config import (
    DINOV3_VITB16,
    GroundingConfig,
    TextConfig,
    VisionConfig,
)

CONV = ModelConfig(
    name="small",
    vision=VisionConfig(width=40, depth=2),
    text=TextConfig(vocab_size=120, width=32, depth=1, heads=2, max_length=24),
    grounding=GroundingConfig(heads=5, queries_per_head=2),
    embedding_dim=32,
    query_size=32,
    item_size=64,
)
LEVELS = replace(CONV, name="small-levels", item_levels=2)
# DINOv3 with its rotary embedding and registers, and a BERT: the architectures of real models.
DINOV3_SMALL = {
    **DINOV3_VITB16,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
}
BERT_SMALL = {
    "model_type": "bert",
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
HF = ModelConfig(
    name="small-hf",
    vision=VisionConfig(type="hf", width=48, patch=16, hf_config=DINOV3_SMALL),
    text=TextConfig(type="hf", vocab_size=120, width=32, max_length=24, hf_config=BERT_SMALL),
    grounding=GroundingConfig(heads=4),
    embedding_dim=32,
    query_size=32,
    item_size=64,
)


def build(config: ModelConfig, seed: int = 0, **changes: object) -> TigerFG:
    """A random model in evaluation mode with nothing left at a neutral start value."""
    torch.manual_seed(seed)
    model = TigerFG(replace(config, **changes)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith(("gate_", "grounding.", "pool.", "head.norm")):
            parameter.add_(0.3 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def inputs(
    config: ModelConfig, tower: str, batch: int = 3, length: int = 9, seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs of a tower by name, with pictures and texts of different extents."""
    rng = np.random.default_rng(seed)
    side = config.query_size if tower == "query" else config.item_size
    cells = side // config.vision.patch
    pixels = rng.normal(size=(batch, 3, side, side)).astype(np.float32)
    mask = np.zeros((batch, cells, cells), np.bool_)
    for row in mask:
        row[: rng.integers(1, cells + 1), : rng.integers(1, cells + 1)] = True
    feeds = {"pixels": pixels, "patch_mask": mask.reshape(batch, -1)}
    if tower == "item":
        feeds["token_ids"] = rng.integers(0, config.text.vocab_size, (batch, length))
        lengths = rng.integers(1, length + 1, batch)
        lengths[0] = length
        feeds["token_mask"] = np.arange(length) < lengths[:, None]
    return feeds


def tensors(feeds: dict[str, np.ndarray]) -> list[torch.Tensor]:
    """The same inputs as tensors, in the order that the model takes them."""
    return [torch.from_numpy(value) for value in feeds.values()]


def expected(model: TigerFG, tower: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the float32 model gives."""
    with torch.inference_mode():
        if tower == "query":
            return {"embedding": model.encode_query(*tensors(feeds)).numpy()}
        outputs = model.encode_item(*tensors(feeds))
        return {name: value.numpy() for name, value in outputs._asdict().items()}


def tokenizer_file(path: Path, size: int = 120) -> Path:
    """A small WordPiece tokenizer.json of at most `size` tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    lines = ["red mug with dots . kitchen . colour: red", "blue shirt . clothing . size: large"]
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(path))
    return path
