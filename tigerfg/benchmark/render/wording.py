"""Vocabulary of the rendered products, and the words their listings use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .shapes import load_kinds

if TYPE_CHECKING:
    from .products import Product

# name: (sRGB, synonyms that sellers write)
COLOURS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "red": ((205, 32, 40), ("red", "bright red", "scarlet")),
    "burgundy": ((112, 22, 48), ("burgundy", "wine red", "maroon")),
    "orange": ((240, 120, 25), ("orange", "tangerine")),
    "yellow": ((246, 208, 40), ("yellow", "lemon yellow")),
    "beige": ((222, 200, 164), ("beige", "sand", "cream")),
    "brown": ((116, 74, 42), ("brown", "chocolate", "tan brown")),
    "olive": ((112, 116, 44), ("olive", "olive green", "khaki")),
    "green": ((38, 140, 62), ("green", "grass green")),
    "mint": ((150, 222, 190), ("mint", "pale green", "mint green")),
    "teal": ((14, 124, 128), ("teal", "petrol", "blue-green")),
    "sky blue": ((116, 184, 236), ("sky blue", "light blue", "pale blue")),
    "blue": ((32, 86, 200), ("blue", "royal blue", "cobalt")),
    "navy": ((22, 34, 84), ("navy", "dark blue", "navy blue")),
    "purple": ((112, 52, 156), ("purple", "violet")),
    "pink": ((242, 142, 178), ("pink", "rose", "light pink")),
    "magenta": ((208, 30, 128), ("magenta", "fuchsia", "hot pink")),
    "white": ((240, 240, 236), ("white", "off-white")),
    "grey": ((142, 144, 148), ("grey", "gray", "stone grey")),
    "black": ((32, 32, 36), ("black", "jet black")),
}

_PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "solid", "unpatterned"),
    "horizontal stripes": ("horizontally striped", "striped", "cross-striped"),
    "vertical stripes": ("vertically striped", "striped", "with vertical stripes"),
    "diagonal stripes": ("diagonally striped", "with slanted stripes"),
    "pinstripes": ("pinstriped", "with pinstripes"),
    "polka dots": ("dotted", "polka-dot", "with dots"),
    "checks": ("checked", "chequered", "with checks"),
    "plaid": ("plaid", "tartan"),
    "chevron": ("chevron", "with chevrons"),
    "waves": ("wavy", "with waves"),
    "zigzag band": ("with a zigzag band", "zigzag"),
    "argyle": ("argyle", "diamond-patterned"),
    "floral": ("floral", "flowered", "with flowers"),
    "camouflage": ("camouflage", "camo"),
    "marble": ("marbled", "marble-effect"),
    "speckled": ("speckled", "mottled"),
    "gradient": ("gradient", "ombre", "with colour gradient"),
    "colour block": ("colour-block", "two-tone"),
    "half and half": ("half-and-half", "split-colour", "two-tone"),
    "lettering": ("with lettering", "text print"),
}

FINISHES = ("matte", "glossy", "metallic", "woven")
BRANDS = (
    "Norvik",
    "Aldera",
    "Kestrel",
    "Pomona",
    "Velt & Co",
    "Tamarin",
    "Oslo Nine",
    "Brightwater",
    "Hallmoor",
    "Quill",
    "Zephyra",
    "Lumen",
    "Ostara",
    "Fenwick",
    "Marlo",
    "Juniper Lane",
)
STYLES = (
    "classic",
    "modern",
    "casual",
    "sporty",
    "vintage",
    "minimalist",
    "everyday",
    "premium",
    "retro",
    "outdoor",
    "kids",
    "travel",
)
_SIZES = ("S", "M", "L", "XL", "one size", "small", "medium", "large")
_OPENERS = (
    "{A} {style} {noun} in {colour}.",
    "This {colour} {noun} goes with everything.",
    "Our {style} {noun}, made of {material}.",
    "{Colour} {noun} for every day.",
    "A {noun} you will like, {pattern}, {colour}.",
    "{Material} {noun} with a {finish} look.",
    "Simple, useful, {style}: a {noun} by {brand}.",
)


def sizes() -> tuple[str, ...]:
    """Size labels of the non-visual attribute ``size``."""
    return _SIZES


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def describe(product: Product) -> tuple[str, dict[str, Any], str]:
    """Title, attributes and description of a product's listing; a function of the product only.

    Listings differ in how much they say: from "Red backpack" to every visible attribute.
    """
    rng = np.random.default_rng((product.text_seed, 0x7E87))
    kind = load_kinds()[product.kind]
    noun = _pick(rng, kind.nouns)
    colour = _pick(rng, COLOURS[product.primary][1]) if rng.random() < 0.45 else product.primary
    second = _pick(rng, COLOURS[product.secondary][1]) if rng.random() < 0.3 else product.secondary
    accent = product.accent
    pattern = _pick(rng, _PATTERN_WORDS[product.pattern])
    mark = "" if product.mark is None else product.mark
    detail = float(rng.choice([0.15, 0.5, 0.9], p=[0.25, 0.4, 0.35]))

    def says(weight: float = 1.0) -> bool:
        return bool(rng.random() < detail * weight)

    words = [product.brand] if says(0.7) else []
    words += [product.style] if says(0.6) else []
    in_title = rng.random() < 0.85
    words += [colour] if in_title else []
    leading = not pattern.startswith("with ")
    tell_pattern = says() and product.pattern != "plain"
    words += [pattern] if tell_pattern and leading else []
    words += [product.material] if says(0.5) else []
    words += [noun]
    words += [pattern] if tell_pattern and not leading else []
    if mark and says(0.8):
        words.append(_pick(rng, ("with {} logo", "with {} print", "with {}")).format(mark))
    if says(0.3):
        words.append(f"and {second} details")
    title = " ".join(words)
    title = title[0].upper() + title[1:]

    attributes: dict[str, Any] = {}
    if says(1.3) or not in_title:
        attributes["color"] = product.primary
    if says(0.8) and product.secondary_visible:
        attributes["secondary color"] = second
    if says(0.4):
        attributes["accent color"] = accent
    if says():
        attributes["pattern"] = product.pattern
    if says(0.9):
        attributes["material"] = product.material
    if says(0.4):
        attributes["finish"] = product.finish
    if mark and says():
        attributes["mark"] = mark
    if product.parts and says(0.8):
        attributes["details"] = ", ".join(product.parts)
    attributes["brand"] = product.brand
    if says(0.8):
        attributes["size"] = product.size
    attributes["price"] = product.price
    if says(0.5):
        attributes["style"] = product.style

    fill = {
        "A": "An" if product.style[0] in "aeiou" else "A",
        "style": product.style,
        "noun": noun,
        "colour": colour,
        "Colour": colour.capitalize(),
        "material": product.material,
        "Material": product.material.capitalize(),
        "finish": product.finish,
        "brand": product.brand,
        "pattern": pattern,
    }
    sentences = [_pick(rng, _OPENERS).format(**fill)]
    if product.parts and says():
        sentences.append(f"Comes with {' and '.join(product.parts)}.")
    elif mark and says():
        sentences.append(f"The {accent} {mark} makes it easy to spot.")
    elif says():
        sentences.append(f"Pattern: {product.pattern}; {colour} and {second}.")
    return title, attributes, " ".join(sentences)
