"""What a suite is made with: everything that its bytes depend on, beside the source."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from tigerfg.errors import InputError

from .schema import PAIRS_A_GROUP

Part = Literal["train", "eval", "both"]


@dataclass(frozen=True)
class Settings:
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

    pairs: int
    eval_products: int
    seed: int = 0
    query_size: int = 96
    item_size: int = 192
    quality: int = 85
    shard_pairs: int = 4096
    pairs_a_product: int = 8
    views: int = 4
    cluttered: float = 0.5
    items_per_product: int = 1
    queries_per_product: int = 1
    wrong_text: float = 0.0
    wrong_box: float = 0.0
    missing_attributes: float = 0.0
    noise_in: Part = "both"

    def __post_init__(self) -> None:
        least = {"pairs": 0, "eval_products": 0, "seed": 0, "query_size": 16, "item_size": 32}
        least |= {"views": 2}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                low = least.get(field.name, 1)
                if not isinstance(value, int) or isinstance(value, bool) or value < low:
                    raise InputError(
                        f"{field.name}: {value!r}: give a whole number of at least {low}"
                    )
            if field.type == "float" and not (math.isfinite(value) and 0 <= value <= 1):
                raise InputError(f"{field.name}: {value!r}: give a share between 0 and 1")
        if self.quality > 95:
            raise InputError(f"quality: {self.quality}: give at most 95")
        if self.seed >= 2**31:
            raise InputError(f"seed: {self.seed}: give a number below 2147483648")
        if self.shard_pairs % PAIRS_A_GROUP:
            raise InputError(
                f"shard_pairs: {self.shard_pairs}: give a multiple of {PAIRS_A_GROUP}, the pairs "
                "of a row group"
            )
        if self.noise_in not in get_args(Part):
            raise InputError(f"noise_in: {self.noise_in!r}: give {', '.join(get_args(Part))}")

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
