"""What a training run is: its stages, data, losses and machinery, as one plain dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tigerfg.errors import InputError
from tigerfg.model.config import ModelConfig, preset
from tigerfg.settings import Checked, Count, Limit, Natural, NotNegative, Positive, Seed, Share

LayerDecay = Annotated[float, Limit("a number above 0, at most 1", lambda x: 0 < x <= 1)]
TeacherDecay = Annotated[float, Limit("a number from 0 to below 1", lambda x: 0 <= x < 1)]


@dataclass(frozen=True)
class Stage(Checked):
    """One stage: `kind` crops | regions | map | joint; `backbone_rate` scales the backbone's rates.

    `matrix_lr` is the rate of what Muon trains (see `optimizer`), `lr` of everything else.
    `batch` is the global batch: the ranks of a distributed run share it.
    """

    kind: Literal["crops", "regions", "map", "joint"]
    steps: Count
    batch: Count
    lr: NotNegative
    backbone_rate: NotNegative = 1.0
    matrix_lr: NotNegative = 0.07


RECIPE = (
    Stage("crops", 160, 256, 2e-3),
    Stage("regions", 320, 128, 1.5e-3, matrix_lr=0.06),
    Stage("map", 200, 256, 1e-3, matrix_lr=0.03),
    Stage("joint", 200, 128, 1e-3, backbone_rate=0.5, matrix_lr=0.04),
    Stage(
        "map", 200, 256, 1e-3, matrix_lr=0.03
    ),  # again, on the features that the joint stage left
    Stage("joint", 160, 128, 1e-3, backbone_rate=0.5, matrix_lr=0.04),
)


@dataclass(frozen=True)
class LossWeights(Checked):
    """L = L_nce + region·L_region + dense·L_dense + map·L_map + relation·L_rel + crop·L_crop.

    A weight of 0 leaves the loss out: it is not computed. `relation_tau` is the τ of L_rel,
    `map_tau` that of map targets made without a box. L_crop is L_nce once more, of items with their
    attention crop (see `second_look`): for models that have one.
    """

    region: NotNegative = 0.5
    dense: NotNegative = 0.2
    map: NotNegative = 0.5
    relation: NotNegative = 0.5
    relation_tau: Positive = 0.1
    map_tau: Positive = 0.1
    crop: NotNegative = 0.0

    def to_dict(self) -> dict[str, float]:
        """Plain values. Without L_crop they do not name it: runs and results from before it, which
        say nothing of it, are of the same weights."""
        values = dataclasses.asdict(self)
        if not self.crop:
            del values["crop"]
        return values


@dataclass(frozen=True)
class TrainConfig(Checked):
    """A training run.

    Attributes:
        out: run directory: pools, training state, log, and `checkpoint/` at the end of a stage;
            all ranks of a distributed run must see it.
        model: model configuration. stages: the recipe. weights: of the losses.
        photos: catalogue directories of real photos (see `photo_pool`); a pool is made of each.
        photos_split: the split of them that is trained on.
        products, product_seed: how many rendered products, and their seed.
        shards: a suite's directory of training shards, used in place of rendered products.
        photo_share: share of a batch that is real photos: one number, which `photos` share evenly,
            or one for each of them, at most 1 together; see `photo_shares`.
        photo_crops, photo_collages: random crops of every photo, and collages of the photos (see
            `photo_pool`).
        init: what to start from, with its tokenizer: a checkpoint, a bundle that holds its
            parameters, or the name of a shipped one; or None.
        pretrained: load the published weights of the encoders: of `lite`, or by `name` of Hugging
            Face's.
        seed: of weights, batches and augmentation. threads: CPU threads, None for all.
        workers: processes that make batches ahead; None: on a GPU as many as there are cores to
            spare, at most 12, on the CPU none. The batches are the same.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        precision: of both encoders, forward and backward: "fp32", "bf16" (autocast), or "auto":
            bf16 where the hardware multiplies it.
        micro_batch: rows that are encoded at once, None for all of a rank's; smaller ones need
            less memory and give the same gradient, but for the order of sums, for a second forward
            pass.
        teacher: of the joint stage: "frozen", or "ema": it follows the trained weights with
            `teacher_decay` a step.
        map_cache_gib: memory for the features that a map stage keeps, which says how many pictures
            it learns from: 6,000 of `tiny` (0.6) were learnt by heart in 200 steps.
        layer_decay: every block of an encoder learns this much slower than the one above it.
        save_seconds: how often the state is saved. validate_every: steps between validations.
        rank_timeout: seconds after which a distributed run gives a silent rank up.
    """

    out: Path
    model: ModelConfig = field(default_factory=lambda: preset("tiny"))
    stages: tuple[Stage, ...] = RECIPE
    photos: tuple[Path, ...] = ()
    photos_split: str = "train"
    products: Count = 10_000
    product_seed: Seed = 1
    shards: Path | None = None
    photo_share: Share | tuple[Share, ...] = 0.3
    photo_crops: Count = 5
    photo_collages: Natural = 3000
    init: Path | None = None
    pretrained: bool = False
    seed: Seed = 0
    threads: Count | None = None
    workers: Natural | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    micro_batch: Count | None = None
    teacher: Literal["frozen", "ema"] = "frozen"
    teacher_decay: TeacherDecay = 0.99
    map_cache_gib: Positive = 2.0
    layer_decay: LayerDecay = 1.0
    save_seconds: NotNegative = 120.0
    validate_every: Count = 100
    rank_timeout: Positive = 600.0
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise InputError("stages: there are none; give at least one")
        if self.stages[0].kind == "joint" and self.init is None:
            raise InputError("stages: a joint stage needs earlier stages or --init for its teacher")
        if self.model.vision.type == "lite" and not self.pretrained and self.init is None:
            raise InputError(
                "pretrained: the lite backbone keeps its first blocks as they are; start from its "
                "published weights ('pretrained': true) or from a checkpoint (init)"
            )
        if self.weights.crop > 0 and self.model.attention_crop is None:
            raise InputError(
                f"weights.crop: {self.weights.crop:g}, and the model has no attention_crop; give "
                "it one in its configuration, or leave the weight at 0"
            )
        self._check_photos()

    @property
    def photo_shares(self) -> tuple[float, ...]:
        """The share of a batch that each directory of `photos` has."""
        if isinstance(self.photo_share, tuple):
            return self.photo_share
        count = len(self.photos)
        return (self.photo_share / max(1, count),) * count

    def _check_photos(self) -> None:
        places = [path.resolve() for path in self.photos]
        for number, place in enumerate(places):
            if place in places[:number]:
                raise InputError(f"photos: {self.photos[number]} is given twice; leave one out")
        shares = self.photo_shares
        if len(shares) != len(places):
            raise InputError(
                f"photo_share: it lists {len(shares)}, photos {len(places)}; give one share a "
                "directory, or one number for all"
            )
        if sum(shares) > 1 + 1e-9:  # .7, .2 and .1, say, are a digit more or less than 1
            raise InputError(
                f"photo_share: {list(shares)} sum to {sum(shares):g}; give shares that sum to 1 at "
                "most"
            )
