"""PyTorch reference model: towers, grounding, backbones, checkpoints. Needs the `train` extra."""

from __future__ import annotations

from tigerfg.model.checkpoint import load_checkpoint, save_checkpoint
from tigerfg.model.config import ModelConfig, preset
from tigerfg.model.towers import ItemOutput, TigerFG, count_parameters

__all__ = [
    "ItemOutput",
    "ModelConfig",
    "TigerFG",
    "count_parameters",
    "load_checkpoint",
    "preset",
    "save_checkpoint",
]
