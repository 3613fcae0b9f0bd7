"""One item picture or one shopper's crop of a group's product, as JPEG."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tigerfg.benchmark.render import compose_query, compose_scene

from .noise import Noise, draw_noise, noisy_box, noisy_listing
from .schema import Box
from .settings import Settings
from .sources import Group, Listing

Sprite = Callable[[int], Image.Image]  # product of the group -> its cut-out


@dataclass(frozen=True)
class ItemPicture:
    """An item picture with its listing, as noisy as asked; fields as in `schema.Pair`."""

    jpeg: bytes
    listing: Listing
    target_box: Box
    objects: list[tuple[str, Box]]
    noise: Noise


def item_picture(
    group: Group,
    i: int,
    layout: str,
    settings: Settings,
    part: str,
    sprite: Sprite,
    rng: np.random.Generator,
) -> ItemPicture:
    """A picture of product ``i``, with 2-5 others in the cluttered layout.

    Args:
        part: "train" or "eval", which noise applies to.
        sprite: gives the cut-outs, the target's first.
    """
    others = group.distractors.choose(i, rng) if layout == "cluttered" else []
    shown = [i, *others]
    image, boxes = compose_scene([sprite(j) for j in shown], rng, settings.item_size, layout)
    listing, noise = noisy_listing(group.listings, i, draw_noise(settings, part, rng), rng)
    target, noise = noisy_box(boxes, image.size, noise, rng)
    ids = [group.listings[j].product_id for j in shown]
    objects = list(zip(ids, boxes, strict=True))
    return ItemPicture(to_jpeg(image, settings.quality), listing, target, objects, noise)


def query_picture(sprite: Image.Image, settings: Settings, rng: np.random.Generator) -> bytes:
    """A shopper's crop of a cut-out."""
    return to_jpeg(compose_query(sprite, rng, settings.query_size), settings.quality)


def to_jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
