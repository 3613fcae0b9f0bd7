"""The mean of models: between a fine-tuned one and what it started from, or of several.

Wortsman et al., "Model soups" and "Robust fine-tuning of zero-shot models" (2022): models that were
trained on from the same weights can be averaged, and the mean often keeps what each is good at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tigerfg.errors import InputError
from tigerfg.files import is_movable, sha256_file
from tigerfg.model.checkpoint import (
    CARD,
    TOKENIZER,
    find_checkpoint,
    fingerprint,
    load_checkpoint,
    load_config,
    save_checkpoint,
)
from tigerfg.model.config import ModelConfig

TEMPLATE = """# Model card: {name}

The mean of several models' parameters (`tigerfg average`); it was not evaluated when it was made.
Attention crop: {attention_crop}.

| share | model | fingerprint |
|---|---|---|
{rows}

What follows are their own cards: what they were trained on, under which licences, and what they
can't do.
"""


def average_checkpoints(
    sources: Sequence[str | Path], out: str | Path, weights: Sequence[float] | None = None
) -> Path:
    """Write the checkpoint whose parameters are the weighted mean of others'; summed in float64.

    Args:
        sources: two and more checkpoint directories, bundles' or names of shipped bundles, of one
            architecture and one tokenizer. Names, picture sizes and attention crops may differ: the
            last one's stay.
        out: a new or empty directory.
        weights: one positive number a source, divided by their sum; all alike if None.

    Returns:
        ``out``; MODEL_CARD.md in it names the sources and holds their cards.

    Raises:
        InputError: fewer than two sources, one that is no checkpoint or holds numbers that are not
            finite, sources that differ, wrong weights, or a directory that cannot be taken.
        BundleError: a damaged bundle.
    """
    out = Path(out)
    shares = _shares(len(sources), weights)
    _check_place(out)
    for source in sources[:-1]:
        _check_alike(source, sources[-1])
    mean: dict[str, Tensor] = {}
    for source, share in zip(sources, shares, strict=True):
        model = load_checkpoint(source)
        _check_tokenizer(sources[0], source)
        for name, value in model.state_dict().items():
            if not value.isfinite().all():
                raise InputError(f"sources: {name} of {source} is not finite; leave that model out")
            part = share * value.double()
            mean[name] = mean[name] + part if name in mean else part
    model.load_state_dict(mean)
    tokenizer = find_checkpoint(sources[-1]) / TOKENIZER
    return save_checkpoint(model, tokenizer, out, _card(model.config, sources, shares))


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    """One share a source, of sum 1."""
    if count < 2:
        raise InputError(f"sources: {count} given; name two models or more")
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count:
        raise InputError(f"weights: {len(weights)} of them for {count} models; give one for each")
    if wrong := [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]:
        raise InputError(f"weights: {wrong[0]} is no positive number; leave that model out")
    largest = max(weights)
    parts = [weight / largest for weight in weights]
    return [part / math.fsum(parts) for part in parts]


def _check_place(out: Path) -> None:
    if out.is_symlink():
        raise InputError(f"out: {out} is a link; name a new directory")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out: {out} is neither new nor empty; name another directory")
    if out.exists() and not is_movable(out):
        raise InputError(
            f"out: {out} cannot be replaced (a mount point or the current directory); name a "
            "directory in it"
        )


def _check_alike(source: str | Path, last: str | Path) -> None:
    """Raise unless parameters of the same name mean the same in both."""
    ours, theirs = (_flat(_shape(load_config(one)).to_dict()) for one in (source, last))
    for field in ours | theirs:
        value, other = ours.get(field), theirs.get(field)
        if value != other:
            raise InputError(
                f"sources: {field} is {value} in {source} and {other} in {last}; only models "
                "trained on from one start can be averaged"
            )


def _check_tokenizer(first: str | Path, source: str | Path) -> None:
    files = [find_checkpoint(one) / TOKENIZER for one in (first, source)]
    if sha256_file(files[0]) != sha256_file(files[1]):
        raise InputError(
            f"sources: {first} and {source} have other tokenizers; only models trained on from one "
            "start can be averaged"
        )


def _flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by their full names, such as vision.width."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        inside = isinstance(value, dict)
        flat |= _flat(value, f"{above}{name}.") if inside else {above + name: value}
    return flat


def _card(config: ModelConfig, sources: Sequence[str | Path], shares: Sequence[float]) -> str:
    """The model card of the mean, with those of its sources below."""
    rows, cards = [], {}
    for source, share in zip(sources, shares, strict=True):
        folder = find_checkpoint(source)
        shown = _in_one_line("/".join(folder.parts[-2:]) if Path(source).is_dir() else source)
        rows.append(f"| {share:.4g} | {shown} | {fingerprint(source)[:12]} |")
        if (folder / CARD).is_file():
            text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
            cards[re.sub(r"^(?=#)", "#", text, flags=re.MULTILINE)] = None  # a level deeper
    heading = TEMPLATE.format(
        name=_in_one_line(config.name),
        attention_crop=config.attention_crop or "none",
        rows="\n".join(rows),
    )
    return "\n".join([heading, *cards])


def _in_one_line(text: object) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _shape(config: ModelConfig) -> ModelConfig:
    """The configuration without what parameters do not depend on."""
    side = config.vision.patch << (config.item_levels - 1)
    return replace(config, name="", query_size=side, item_size=side, attention_crop=None)
