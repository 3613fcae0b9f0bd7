"""Where products and their cut-outs come from: the protocol, and the renderer as a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from PIL import Image

from tigerfg.benchmark.render import Distractors, Product, make_products, render_cutout

from .settings import Settings

# Seeds of the suite's products lie above those that people give to `tigerfg render`, so that no
# catalogue rendered for evaluation holds a product of a suite's training part.
_SEED_BASE = 1_000_000_000
_SHARDS = 1_000_000  # seeds that one suite may use: its shards and its evaluation part


@dataclass(frozen=True)
class Listing:
    """A product of a group: its number in the training part (-1 in evaluation), id and text."""

    number: int
    product_id: str
    title: str
    category: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""


class Group(Protocol):
    """Products that pictures are composed from: those of a shard, or of the evaluation part."""

    listings: list[Listing]
    distractors: Distractors

    def cutout(self, i: int, size: int, view_seed: int) -> Image.Image:
        """Product ``i`` as a tight RGBA cut-out, longest side ``size`` px, in some view.

        The same arguments always give the same bytes.
        """
        ...


class Source(Protocol):
    """Products with text, near-twins and cut-outs. Picklable: every worker process gets a copy."""

    def describe(self) -> dict[str, Any]:
        """JSON-able identity: equal for sources that give the same products and pictures."""
        ...

    def products(self, settings: Settings) -> int:
        """Number of products of the training part: the upper bound of `Listing.number`."""
        ...

    def shard(self, settings: Settings, shard: int) -> Group:
        """The products of a training shard, at least two; depends on the arguments alone."""
        ...

    def evaluation(self, settings: Settings) -> Group:
        """``settings.eval_products`` products that are in no training shard."""
        ...


class RenderedGroup:
    """Rendered products as a group."""

    def __init__(self, products: list[Product], first_number: int | None) -> None:
        self._products = products
        self.distractors = Distractors.of(products)
        self.listings = [
            Listing(
                -1 if first_number is None else first_number + i,
                product.product_id,
                product.title,
                product.category,
                product.attributes,
                product.description,
            )
            for i, product in enumerate(products)
        ]

    def cutout(self, i: int, size: int, view_seed: int) -> Image.Image:
        return render_cutout(self._products[i], size, view_seed)


@dataclass(frozen=True)
class RenderedSource:
    """The procedural renderer: every shard has products of its own, as many as there are shards."""

    def describe(self) -> dict[str, Any]:
        return {"kind": "rendered"}

    def products(self, settings: Settings) -> int:
        if not settings.shards:
            return 0
        last = settings.shards - 1
        return last * settings.products(0) + settings.products(last)

    def shard(self, settings: Settings, shard: int) -> Group:
        products = make_products(settings.products(shard), self._seed(settings, shard + 1))
        return RenderedGroup(products, shard * settings.products(0))

    def evaluation(self, settings: Settings) -> Group:
        return _evaluation_group(settings.eval_products, self._seed(settings, 0))

    @staticmethod
    def _seed(settings: Settings, number: int) -> int:
        return _SEED_BASE + settings.seed * _SHARDS + number


@lru_cache(maxsize=1)
def _evaluation_group(count: int, seed: int) -> RenderedGroup:
    """Kept between the chunks of a worker: making 5,000 products takes seconds."""
    return RenderedGroup(make_products(count, seed), None)
