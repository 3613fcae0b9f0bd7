"""The pairs of one training shard, composed from few cut-outs of few products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from tigerfg.benchmark.render.cutout import fit

from .pictures import Sprite, item_picture, query_picture
from .schema import Pair
from .settings import Settings
from .sources import Group, Source

_TWIN_BESIDE = 0.5  # probability that a product's near-twin is the next pair


def shard_pairs(settings: Settings, source: Source, shard: int) -> Iterator[Pair]:
    """The pairs of a shard in order; a function of the arguments, whatever was made before.

    Cut-outs cost more than composing, so each product has ``settings.views`` of them, kept until
    the shard is done; every picture then has its own light, background, place and noise. The crop
    and the item picture of a pair show different views.
    """
    rng = np.random.default_rng((settings.seed, shard, 0x5417))
    sprites = _Sprites(source.shard(settings, shard), settings, rng)
    group, rows = sprites.group, settings.rows(shard)
    for row, i in enumerate(_order(group, rows, rng)):
        listing = group.listings[i]
        layout = "cluttered" if rng.random() < settings.cluttered else "standard"
        shown, asked = rng.permutation(settings.views)[:2].tolist()
        sprite = sprites.around(i, shown, layout == "cluttered", rng)
        picture = item_picture(group, i, layout, settings, "train", sprite, rng)
        twins = group.distractors.twins(i)
        yield Pair(
            pair_id=f"p{shard:05d}-{row:05d}",
            product=listing.number,
            product_id=listing.product_id,
            twin_of=group.listings[twins[0]].product_id if twins else None,
            layout=layout,
            query_image=query_picture(sprites.get(i, asked, small=True), settings, rng),
            item_image=picture.jpeg,
            title=picture.listing.title,
            category=picture.listing.category,
            attributes=picture.listing.attributes,
            description=picture.listing.description,
            target_box=picture.target_box,
            objects=picture.objects,
            **vars(picture.noise),
        )


class _Sprites:
    """The cut-outs of a shard in two sizes, made when they are first used.

    Shrinking cut-outs is a third of the cost of a cluttered picture, so what appears small is
    shrunk from a small one.
    """

    def __init__(self, group: Group, settings: Settings, rng: np.random.Generator) -> None:
        self.group, self._views = group, settings.views
        self._size, self._small_size = settings.sprite_size, settings.small_sprite_size
        self._seeds = rng.integers(2**31, size=(len(group.listings), settings.views)).tolist()
        self._made: dict[tuple[int, int], tuple[Image.Image, Image.Image]] = {}

    def around(self, i: int, view: int, small: bool, rng: np.random.Generator) -> Sprite:
        """Gives product ``i`` in ``view``, and any other in a view that ``rng`` chooses."""
        return lambda j: self.get(j, view if j == i else int(rng.integers(self._views)), small)

    def get(self, i: int, view: int, small: bool) -> Image.Image:
        if (i, view) not in self._made:
            large = self.group.cutout(i, self._size, self._seeds[i][view])
            self._made[i, view] = large, fit(large, self._small_size)
        return self._made[i, view][small]


def _order(group: Group, rows: int, rng: np.random.Generator) -> list[int]:
    """Which product each pair shows: all of them in turn, now and then beside a near-twin.

    A run of as many pairs as there are products holds each of them once.
    """
    order: list[int] = []
    while len(order) < rows:
        turn: dict[int, None] = {}
        for i in rng.permutation(len(group.listings)).tolist():
            turn[i] = None
            twins = group.distractors.twins(i)
            if twins and rng.random() < _TWIN_BESIDE:
                turn[twins[int(rng.integers(len(twins)))]] = None
        order += turn
    return order[:rows]
