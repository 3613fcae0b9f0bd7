"""The mean of models: between a fine-tuned one and what it started from, or of several.

Wortsman et al., "Model soups" and "Robust fine-tuning of zero-shot models" (2022): models that were
trained on from the same weights can be averaged, and the mean often keeps what each is good at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tigerfg.errors import InputError
from tigerfg.files import sha256_file, write_whole
from tigerfg.model.checkpoint import (
    TOKENIZER,
    find_checkpoint,
    fingerprint,
    load_checkpoint,
    load_config,
    save_checkpoint,
)
from tigerfg.model.config import ModelConfig

CARD = """# Model card: {name}

The mean of several models' parameters (`tigerfg average`). Their own cards tell what they were
trained on; the mean was not evaluated when it was made.

| share | model | fingerprint |
|---|---|---|
{rows}
"""


def average_checkpoints(
    sources: Sequence[str | Path], out: str | Path, weights: Sequence[float] | None = None
) -> Path:
    """Write the checkpoint whose parameters are the weighted mean of others'; summed in float64.

    Args:
        sources: two and more checkpoint directories, bundles' or names of shipped bundles, of one
            architecture and one tokenizer. Names and picture sizes may differ: the last one's stay.
        out: a new or empty directory.
        weights: one positive number a source, divided by their sum; all alike if None.

    Returns:
        ``out``; MODEL_CARD.md in it names the sources.

    Raises:
        InputError: fewer than two sources, one that is no checkpoint, sources that differ, wrong
            weights, or a directory that is not empty.
        BundleError: a damaged bundle.
    """
    out = Path(out)
    shares = _shares(len(sources), weights)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"out: {out} is neither new nor empty; name another directory")
    for source in sources[:-1]:
        _check_alike(source, sources[-1])
    model = load_checkpoint(sources[-1])
    mean = {name: shares[-1] * value.double() for name, value in model.state_dict().items()}
    for source, share in zip(sources[:-1], shares[:-1], strict=True):
        for name, value in load_checkpoint(source).state_dict().items():
            mean[name] += share * value.double()
    model.load_state_dict(mean)
    rows = [
        f"| {share:.4g} | {find_checkpoint(source).name} | {fingerprint(source)[:12]} |"
        for source, share in zip(sources, shares, strict=True)
    ]
    save_checkpoint(model, find_checkpoint(sources[-1]) / TOKENIZER, out)
    write_whole(out / "MODEL_CARD.md", CARD.format(name=model.config.name, rows="\n".join(rows)))
    return out


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    """One share a source, of sum 1."""
    if count < 2:
        raise InputError(f"sources: {count} given; name two models or more")
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count:
        raise InputError(f"weights: {len(weights)} of them for {count} models; give one for each")
    if wrong := [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]:
        raise InputError(f"weights: {wrong[0]} is no positive number; leave that model out")
    return [weight / math.fsum(weights) for weight in weights]


def _check_alike(source: str | Path, last: str | Path) -> None:
    """Raise unless parameters of the same name mean the same in both."""
    ours, theirs = (_shape(load_config(one)) for one in (source, last))
    for field, value in ours.to_dict().items():
        if value != (other := theirs.to_dict()[field]):
            raise InputError(
                f"sources: {field} is {value} in {source} and {other} in {last}; only models "
                "trained on from one start can be averaged"
            )
    files = [find_checkpoint(one) / TOKENIZER for one in (source, last)]
    if sha256_file(files[0]) != sha256_file(files[1]):
        raise InputError(
            f"sources: {source} and {last} have other tokenizers; only models trained on from one "
            "start can be averaged"
        )


def _shape(config: ModelConfig) -> ModelConfig:
    """The configuration without what parameters do not depend on."""
    side = config.vision.patch << (config.item_levels - 1)
    return replace(config, name="", query_size=side, item_size=side)
