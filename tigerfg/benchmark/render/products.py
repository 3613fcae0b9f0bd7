"""Distinct rendered products, deterministic by seed, a third of them near-twins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .marks import MARKS
from .patterns import PATTERNS
from .shapes import load_kinds
from .wording import BRANDS, COLOURS, FINISHES, STYLES, describe, sizes

TWIN_RATE = 0.35
TWIN_WINDOW = 48
MARK_POSITIONS = ("centre", "upper left", "upper right", "lower left", "lower right")
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Product:
    """One product: everything its pictures and its listing are made from.

    shape: parameters in [0, 1] of the kind's silhouette. texture_seed places random pattern
    elements. twin_of: id of the product that this one copies but for ``twin_change`` ("color",
    "secondary color", "pattern", "mark" or "shape"); both None otherwise.
    """

    product_id: str
    seed: int
    kind: str
    primary: str
    secondary: str
    accent: str
    primary_rgb: RGB
    secondary_rgb: RGB
    accent_rgb: RGB
    pattern: str
    pattern_scale: float
    texture_seed: int
    mark: str | None
    mark_position: str
    finish: str
    material: str
    shape: tuple[float, ...]
    parts: tuple[str, ...]
    style: str
    brand: str
    size: str
    price: float
    text_seed: int
    twin_of: str | None = None
    twin_change: str | None = None

    @property
    def category(self) -> str:
        """Category path, e.g. "Bags > Backpacks"."""
        return load_kinds()[self.kind].category

    @property
    def secondary_visible(self) -> bool:
        """Whether a picture of the product shows the secondary colour."""
        return self.pattern != "plain" or load_kinds()[self.kind].uses_secondary

    @property
    def visual_key(self) -> tuple[Any, ...]:
        """What a picture shows, by name and rounded: equal keys would look the same."""
        return (
            self.kind,
            self.primary,
            self.secondary,
            self.accent,
            self.pattern,
            self.mark,
            self.mark_position,
            self.finish,
            self.parts,
            tuple(round(10 * value) for value in self.shape),
        )

    @cached_property
    def _listing(self) -> tuple[str, dict[str, Any], str]:
        return describe(self)

    @property
    def title(self) -> str:
        """Listing title; may be as short as "Red backpack"."""
        return self._listing[0]

    @property
    def attributes(self) -> dict[str, Any]:
        """Structured attributes the listing gives; not always all of them."""
        return dict(self._listing[1])

    @property
    def description(self) -> str:
        """One or two sentences."""
        return self._listing[2]


def _distance(a: str, b: str) -> float:
    return float(np.linalg.norm(np.subtract(COLOURS[a][0], COLOURS[b][0])))


def _colour(rng: np.random.Generator, unlike: tuple[str, ...] = (), far: float = 110) -> str:
    names = [n for n in COLOURS if all(_distance(n, u) > far for u in unlike)]
    return names[int(rng.integers(len(names)))]


def _jitter(rng: np.random.Generator, name: str) -> RGB:
    value = np.array(COLOURS[name][0]) + rng.normal(0, 5, 3) + rng.normal(0, 4)
    r, g, b = (int(v) for v in np.clip(np.rint(value), 8, 247))
    return r, g, b


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _fresh(rng: np.random.Generator, product_id: str, seed: int) -> Product:
    kinds = load_kinds()
    kind = kinds[_choice(rng, tuple(kinds))]
    primary = _colour(rng)
    secondary = _colour(rng, (primary,))
    accent = _colour(rng, (primary, secondary), 90)
    parts = tuple(part for part in kind.parts if rng.random() < 0.5)
    pattern = "plain" if rng.random() < 0.25 else _choice(rng, tuple(PATTERNS))
    return Product(
        product_id=product_id,
        seed=seed,
        kind=kind.name,
        primary=primary,
        secondary=secondary,
        accent=accent,
        primary_rgb=_jitter(rng, primary),
        secondary_rgb=_jitter(rng, secondary),
        accent_rgb=_jitter(rng, accent),
        pattern=pattern,
        pattern_scale=round(float(rng.random()), 3),
        texture_seed=int(rng.integers(2**31)),
        mark=_choice(rng, MARKS) if rng.random() < 0.55 else None,
        mark_position="centre" if rng.random() < 0.5 else _choice(rng, MARK_POSITIONS[1:]),
        finish=_choice(rng, FINISHES),
        material=_choice(rng, kind.materials),
        shape=tuple(round(float(v), 3) for v in rng.random(len(kind.shape_names))),
        parts=parts,
        style=_choice(rng, STYLES),
        brand=_choice(rng, BRANDS),
        size=_choice(rng, sizes()),
        price=round(float(np.exp(rng.uniform(1.5, 5.5))), 2),
        text_seed=int(rng.integers(2**31)),
    )


def _changed(rng: np.random.Generator, base: Product) -> Product:
    """``base`` with exactly one visible attribute changed."""
    options = ["color", "pattern", "mark", "shape"]
    if base.secondary_visible:
        options.append("secondary color")
    change = options[int(rng.integers(len(options)))]
    if change == "color":
        name = _colour(rng, (base.primary, base.secondary, base.accent), 85)
        new = replace(base, primary=name, primary_rgb=_jitter(rng, name))
    elif change == "secondary color":
        name = _colour(rng, (base.secondary, base.primary, base.accent), 85)
        new = replace(base, secondary=name, secondary_rgb=_jitter(rng, name))
    elif change == "pattern":
        # A plain twin of a kind without secondary parts is fine: the pattern itself is gone.
        new = replace(base, pattern=_choice(rng, tuple(p for p in PATTERNS if p != base.pattern)))
    elif change == "mark":
        others = tuple(m for m in (None, *MARKS) if m != base.mark)
        new = replace(base, mark=others[int(rng.integers(len(others)))])
    else:
        shape = list(base.shape)
        i = int(rng.integers(len(shape)))
        # Half the range and more, towards the farther end: visible at a glance.
        shape[i] = round(float(rng.uniform(0, 0.15) if shape[i] > 0.5 else rng.uniform(0.85, 1)), 3)
        if abs(shape[i] - base.shape[i]) < 0.5:
            shape[i] = 0.0 if base.shape[i] > 0.5 else 1.0
        new = replace(base, shape=tuple(shape))
    return replace(new, twin_change=change)


def make_products(n: int, seed: int) -> list[Product]:
    """``n`` >= 0 distinct products. Product i depends on ``seed`` and i only, so a longer list
    starts with the shorter one. About 35 % are near-twins of one of the 48 products before them.
    """
    if n < 0 or seed < 0:
        raise ValueError(f"make_products: n and seed must be >= 0, got n={n}, seed={seed}")
    products: list[Product] = []
    seen: set[tuple[Any, ...]] = set()
    for i in range(n):
        product_id = f"r{seed}-{i:06d}"
        for attempt in range(100):
            rng = np.random.default_rng((seed, i, attempt, 0x90D))
            product = _fresh(rng, product_id, seed)
            if i and rng.random() < TWIN_RATE:
                base = products[int(rng.integers(max(0, i - TWIN_WINDOW), i))]
                product = replace(
                    _changed(rng, base),
                    product_id=product_id,
                    twin_of=base.product_id,
                    text_seed=product.text_seed,
                )
            if product.visual_key not in seen:
                break
        else:
            raise ValueError(f"make_products: no distinct product found for index {i}")
        seen.add(product.visual_key)
        products.append(product)
    return products
