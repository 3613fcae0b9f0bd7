"""What a suite is made with: everything that its bytes depend on, beside the source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tigerfg.settings import Checked, Count, Limit, Natural, Share

from .schema import PAIRS_A_GROUP

Part = Literal["train", "eval", "both"]


def _at_least(low: int) -> Limit:
    return Limit(f"a whole number, {low} or more", lambda n: n >= low)


_SEEDS = Limit("a whole number from 0 to 2147483647", lambda n: 0 <= n < 2**31)
_GROUPS = Limit(
    f"a multiple of {PAIRS_A_GROUP}, the pairs of a row group",
    lambda n: n > 0 and n % PAIRS_A_GROUP == 0,
)


@dataclass(frozen=True)
class Settings(Checked):
    """Settings of a suite; the same settings, source and seed give the same bytes.

    Attributes:
        pairs: training pairs, 0 or more. eval_products: products of the evaluation sets.
        seed: of everything random.
        query_size, item_size: longest side of the pictures in px.
        quality: of the JPEGs, 1-95, chroma halved in both directions.
        shard_pairs: pairs a shard, a multiple of the 64 of a row group.
        pairs_a_product: how many pairs a rendered product has, all in one shard.
        views: cut-outs of a product in a shard; every pair takes two of them.
        cluttered: share of training pairs whose item picture is cluttered.
        items_per_product: item pictures of an evaluation product, all of them right answers.
        queries_per_product: queries of an evaluation product.
        wrong_text, wrong_box, missing_attributes: share of pairs and items with this noise.
        noise_in: "train", "eval" or "both": which part has the noise.
    """

    pairs: Natural
    eval_products: Natural
    seed: Annotated[int, _SEEDS] = 0
    query_size: Annotated[int, _at_least(16)] = 96
    item_size: Annotated[int, _at_least(32)] = 192
    quality: Annotated[int, Limit("a whole number from 1 to 95", lambda n: 1 <= n <= 95)] = 85
    shard_pairs: Annotated[int, _GROUPS] = 4096
    pairs_a_product: Count = 8
    views: Annotated[int, _at_least(2)] = 4
    cluttered: Share = 0.5
    items_per_product: Count = 1
    queries_per_product: Count = 1
    wrong_text: Share = 0.0
    wrong_box: Share = 0.0
    missing_attributes: Share = 0.0
    noise_in: Part = "both"

    @property
    def shards(self) -> int:
        """Number of training shards; the last one may be shorter."""
        return -(-self.pairs // self.shard_pairs)

    def rows(self, shard: int) -> int:
        """Pairs of a shard."""
        return min(self.shard_pairs, self.pairs - shard * self.shard_pairs)

    def products(self, shard: int) -> int:
        """How many products the shard is made from: rows / pairs_a_product, at least 2."""
        return max(2, -(-self.rows(shard) // self.pairs_a_product))

    @property
    def sprite_size(self) -> int:
        """Longest side of a cut-out in px: three quarters of an item picture, or a crop."""
        return max(self.query_size, self.item_size * 3 // 4)

    @property
    def small_sprite_size(self) -> int:
        """The same where half an item picture is enough: in clutter, and for crops."""
        return max(self.query_size, self.item_size // 2)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, what the manifest holds."""
        return dict(vars(self))
