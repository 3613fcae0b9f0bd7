"""What `lite` is trained from: an ImageNet backbone with the text encoder of a trained `tiny`.

That is replaced by `lite_words.py` when the towers are trained.

python bench/lite_start.py TINY OUT     (make bundle-lite; TINY: a checkpoint, or the shipped one)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from tigerfg.model import TigerFG, load_checkpoint, save_checkpoint
from tigerfg.model.checkpoint import TOKENIZER, find_checkpoint
from tigerfg.model.config import preset


def main(tiny: Path, out: Path) -> None:
    torch.manual_seed(0)  # the head and the grounding
    trained = load_checkpoint(tiny)
    model = TigerFG(replace(preset("lite"), text=trained.config.text), pretrained=True)
    model.text.load_state_dict(trained.text.state_dict())
    save_checkpoint(model, find_checkpoint(tiny) / TOKENIZER, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
