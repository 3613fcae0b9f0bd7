"""What every stage computes: pictures and teacher, then embeddings, then losses over the batch.

A step has these parts, so that one shape serves one process, many, and gradient caching:

- `make` and `prepare`: rows of the batch with all that has no gradient: pictures and texts, made on
  the CPU, perhaps by another process; then the teacher's features, on the device;
- `encode`: the trained towers on these rows: embeddings, and losses of single rows;
- `contrast`: losses between the embeddings of the whole batch, whoever encoded them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tigerfg.model.towers import TigerFG
from tigerfg.training.batches import BatchMaker, Crops, Scenes
from tigerfg.training.distillation import known_rows
from tigerfg.training.losses import info_nce

T = TypeVar("T")


class Trainee(nn.Module):
    """The model together with the loss's temperature, which is trained too."""

    def __init__(self, model: TigerFG) -> None:
        super().__init__()
        self.model = model
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    def logit_scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=100.0)


class RowLoss(NamedTuple):
    """A loss that is a mean over rows: its sum over these rows, and their number, scalars."""

    total: Tensor
    rows: Tensor


@dataclass
class Encoded:
    """Some rows of a batch, encoded.

    Attributes:
        embeddings: name -> (B, E), one line a row.
        present: name -> (B,) bool, which lines of it mean something.
        shown: name -> (B,) int64 product ids, where an embedding is not of the row's own product;
            -1 for an unknown one.
        row_losses: name -> sum of a weighted loss over the rows, and their number.
    """

    embeddings: dict[str, Tensor]
    present: dict[str, Tensor]
    shown: dict[str, Tensor] = field(default_factory=dict)
    row_losses: dict[str, RowLoss] = field(default_factory=dict)


@dataclass
class Gathered:
    """Embeddings of the whole batch: as in `Encoded`, and products (B,) int64."""

    embeddings: dict[str, Tensor]
    present: dict[str, Tensor]
    products: Tensor
    shown: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, *names: str) -> tuple[Tensor, ...]:
        """These embeddings and the products, of the rows in which all of them are present."""
        both = torch.stack([self.present[name] for name in names]).all(dim=0)
        return (*(self.embeddings[name][both] for name in names), self.products[both])

    def pairs_loss(
        self, scale: Tensor, queries: str, items: str, negatives: str | None = None
    ) -> Tensor:
        """`info_nce` of two embeddings, with a third one as negatives."""
        q, i, products = self.rows(queries, items)
        if negatives is None:
            return info_nce(q, i, products, scale)
        there = self.present[negatives]
        extra, shown = self.embeddings[negatives][there], self.shown[negatives][there]
        return info_nce(q, i, products, scale, extra, shown)


class TrainingStage(Protocol):
    """A stage's steps. `skipped` counts rows that could not be used, by reason."""

    maker: BatchMaker
    skipped: Counter[str]

    def make(self, step: int, rows: slice) -> Any:
        """These rows of a step's batch, a dataclass of tensors on the CPU; touches no device."""
        ...

    def prepare(self, made: Any) -> Any:
        """What `make` gave, on the device; has `products` (B,) int64."""
        ...

    def encode(self, trainee: Trainee, batch: Any) -> Encoded: ...

    def contrast(self, trainee: Trainee, batch: Gathered) -> dict[str, Tensor]:
        """Weighted losses; of the trainee it uses the temperature only."""
        ...


@dataclass
class CropBatch:
    """products and usable (B,), two crops of every product."""

    products: Tensor
    usable: Tensor
    first: Crops
    second: Crops


class CropStage:
    """Stage crops: two crops of one product are a pair."""

    def __init__(self, maker: BatchMaker, seed: int, size: int, device: torch.device) -> None:
        self.maker, self.seed, self.size, self.device = maker, seed, size, device
        self.skipped: Counter[str] = Counter()

    def make(self, step: int, rows: slice) -> CropBatch:
        draw = self.maker.start(self.seed, step, self.size, rows)
        first, second = draw.crops(), draw.crops()
        usable = usable_rows(self.skipped, first.pixels, second.pixels)
        return CropBatch(draw.products, usable, first, second)

    def prepare(self, made: CropBatch) -> CropBatch:
        return on_device(made, self.device)

    def encode(self, trainee: Trainee, batch: CropBatch) -> Encoded:
        both = Crops(
            torch.cat([batch.first.pixels, batch.second.pixels]),
            torch.cat([batch.first.mask, batch.second.mask]),
            batch.products,
        )
        first, second = encode_crops(trainee.model, both).chunk(2)
        present = {"first": batch.usable, "second": batch.usable}
        return Encoded({"first": first, "second": second}, present)

    def contrast(self, trainee: Trainee, batch: Gathered) -> dict[str, Tensor]:
        return {"nce": batch.pairs_loss(trainee.logit_scale(), "first", "second")}


def encode_crops(model: TigerFG, crops: Crops) -> Tensor:
    """Crops -> embeddings (B, E)."""
    return model.encode_query(crops.pixels, crops.mask)


def region_embeddings(model: TigerFG, patches: Tensor, scenes: Scenes, usable: Tensor) -> Encoded:
    """What L_region compares with the queries: items pooled with their true region, others.

    The other product of a picture is a hard negative of all queries but its own.

    Args:
        patches: (B, N, D) of the pictures. scenes: with regions, zeros where there is none.
        usable: (B,) bool.
    """
    region, other = scenes.region, scenes.other_region
    return Encoded(
        {
            "items": model.encode_region(patches, region),
            "others": model.encode_region(patches, other),
        },
        {
            "items": usable & known_rows(region),
            "others": usable & known_rows(other),
        },
        {"others": scenes.other_products},
    )


def usable_rows(skipped: Counter[str], *tensors: Tensor) -> Tensor:
    """(B,) bool: rows with finite numbers only. Others are set to zero, in place, and counted.

    Zeros, because a NaN times a gradient of 0 is still NaN in the gradient of every weight.
    """
    sums = torch.stack([t.flatten(1).sum(dim=1) for t in tensors], dim=1)
    usable = torch.isfinite(sums).all(dim=1)
    if not usable.all():
        skipped["numbers that are not finite"] += int((~usable).sum())
        for t in tensors:
            t[~usable] = 0.0
    return usable


def on_device(value: T, device: torch.device) -> T:
    """A (nested) dataclass of tensors with all of them on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    parts = {f.name: on_device(getattr(value, f.name), device) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **parts)
