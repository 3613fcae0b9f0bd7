"""Item texts as training sees them: parts left out, and words that no model has seen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

import numpy as np

from tigerfg.benchmark.render.wording import COLOURS
from tigerfg.records import Item
from tigerfg.text import item_text

TEXT_VARIANTS = 4
UNKNOWN_WORDS = 0.15  # share of texts with invented words
_WHOLE = 1 / 3  # of these, in pictures of one product: every word is invented
_WORD = re.compile(r"[^\W\d_]+")
_ONSETS = (
    *("b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n"),
    *("p", "pl", "qu", "r", "s", "sk", "st", "t", "tr", "v", "w", "z"),
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ie", "oo", "ou")
_CODAS = ("", "", "", "l", "n", "nd", "r", "rk", "s", "sh", "t", "x")


def _stem(word: str) -> str:
    return word.lower().rstrip("s")  # "Umbrellas" of a category is "umbrella" in the title


_COLOUR_STEMS = frozenset(
    _stem(word) for _, names in COLOURS.values() for name in names for word in name.split()
)


def text_variants(item: Item, rng: np.random.Generator) -> list[str]:
    """The item's full text, then TEXT_VARIANTS with parts left out, as real listings have them."""
    texts = [item_text(item)]
    for _ in range(TEXT_VARIANTS):
        attributes = {k: v for k, v in item.attributes.items() if rng.random() < 0.6}
        shorter = dataclasses.replace(
            item,
            attributes=attributes,
            description=item.description if rng.random() < 0.4 else "",
            category=item.category if rng.random() < 0.7 else "",
        )
        texts.append(item_text(shorter))
    return texts


def anchor_words(item: Item) -> list[str]:
    """The words that say which of several products is meant: category and colour, as stems.

    The leaf of the category ("Bags > Backpacks": backpack), colour attributes, and the colour
    names of the renderer in the title. Sorted; empty for an item that names neither.
    """
    said = [re.split(r"[>/|]", item.category)[-1]]
    said += [str(v) for key, v in item.attributes.items() if "colo" in key.lower()]
    anchors = {_stem(word) for text in said for word in _WORD.findall(text)}
    anchors |= _COLOUR_STEMS & {_stem(word) for word in _WORD.findall(item.title)}
    return sorted(anchors - {""})


def with_unknown_words(
    text: str, anchors: Collection[str], cluttered: bool, rng: np.random.Generator
) -> str:
    """`text` with words replaced by invented ones; the same word always by the same one.

    Listings in the wild are full of words that the model never saw. The map's target does not
    change when they appear, so training on them teaches that unknown vocabulary must not steer
    the map away from the object. In a picture of one product any word may go, and for one text
    in three all of them do: there the picture itself says what the target is. In a cluttered
    picture the words that tell the target from its neighbours stay, else the target could not be
    known and the loss would teach noise; a text without any of them is returned as it is.

    Args:
        text: a line of `item_text`. anchors: stems of the item, from `anchor_words`.
        cluttered: whether the picture shows other products as well.
    """
    kept = frozenset(anchors) if cluttered else frozenset()
    if cluttered and not any(_stem(word) in kept for word in _WORD.findall(text)):
        return text
    share = 1.0 if not cluttered and rng.random() < _WHOLE else rng.uniform(0.3, 1.0)
    invented: dict[str, str] = {}

    def replaced(match: re.Match[str]) -> str:
        word = match.group()
        if _stem(word) in kept:
            return word
        if word.lower() not in invented:
            invented[word.lower()] = pseudo_word(rng) if rng.random() < share else word
        return invented[word.lower()]

    return _WORD.sub(replaced, text)


def pseudo_word(rng: np.random.Generator) -> str:
    """A pronounceable word of two or three syllables that means nothing."""
    count, *picks = rng.integers(0, 1 << 30, 10).tolist()
    syllables = [
        part[pick % len(part)]
        for part, pick in zip((_ONSETS, _VOWELS, _CODAS) * 3, picks, strict=True)
    ]
    return "".join(syllables[: 3 * (2 + count % 2)])
