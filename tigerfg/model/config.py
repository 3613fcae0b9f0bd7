"""Configuration of a TIGER-FG model: plain dataclasses, stored as the checkpoint's config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tigerfg.attention_crop import AttentionCrop
from tigerfg.errors import InputError
from tigerfg.images import Preprocessing
from tigerfg.levels import level_sides
from tigerfg.settings import Checked, Count, Limit, Positive, Share, build

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3

Side = Annotated[int, Limit("a whole number from 1 to 4096", lambda n: 1 <= n <= 4096)]
Spread = Annotated[float, Limit("a number from 0.001 to 1000", lambda x: 1e-3 <= x <= 1e3)]


@dataclass(frozen=True)
class VisionConfig(Checked):
    """Patch backbone. `conv`: our small convolutional tower. `lite`: EfficientNet-Lite0, whose
    ImageNet weights are loaded with `pretrained=True`. `hf`: a Hugging Face vision model.

    For `hf`, `name` is a local directory or hub id whose weights are loaded when a model is made
    with `pretrained=True`; `hf_config` is that model's configuration (with `model_type`), so
    that a checkpoint can be rebuilt without the source.
    """

    type: Literal["conv", "lite", "hf"] = "conv"
    width: Count = 160
    depth: Count = 6
    kernel: Count = 5
    mlp_ratio: Positive = 3.0
    patch: Count = 8
    name: str | None = None
    hf_config: dict[str, Any] | None = None


@dataclass(frozen=True)
class TextConfig(Checked):
    """Text encoder. `transformer`: ours, small. `hf`: a Hugging Face text model."""

    type: Literal["transformer", "hf"] = "transformer"
    vocab_size: Count = 3072
    width: Count = 128
    depth: Count = 2
    heads: Count = 4
    mlp_ratio: Positive = 2.0
    max_length: Count = 64
    name: str | None = None
    hf_config: dict[str, Any] | None = None


@dataclass(frozen=True)
class GroundingConfig(Checked):
    """Text-guided grounding: H heads, M text queries a head; keys are layer-normalised patches.

    The defaults are the method; the other values are its ablations.

    Attributes:
        heads, queries_per_head: H and M.
        guidance: "text": the item's text makes the queries; "learned": they are parameters, and
            the text enters through `gate_text` only.
        token_pooling: "before": the text is pooled into the queries before the softmax over the
            patches; "after": every token makes a query of each head, and their maps are averaged
            with the token weights.
    """

    heads: Count = 5
    queries_per_head: Count = 1
    guidance: Literal["text", "learned"] = "text"
    token_pooling: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance == "learned" and self.token_pooling == "after":
            raise InputError(
                "token_pooling: tokens make no maps where guidance is learned; choose before"
            )


@dataclass(frozen=True)
class ModelConfig(Checked):
    """A whole model. `item_tower` "global" is the `clip` baseline (no grounding).

    `item_levels`: at how many scales the item tower sees its picture, each half the one before;
    attention chooses between them (see `tigerfg.levels`). `attention_crop`: how the search looks at
    an item again, with both towers; None for not at all.
    """

    name: str = "tiny"
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    embedding_dim: Count = 256
    pool: Literal["mean", "attention"] = "mean"
    item_tower: Literal["grounded", "global"] = "grounded"
    query_size: Side = 64
    item_size: Side = 128
    item_levels: Count = 1
    attention_crop: AttentionCrop | None = None
    mean: tuple[Share, Share, Share] = IMAGENET_MEAN
    std: tuple[Spread, Spread, Spread] = IMAGENET_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vision.width % self.grounding.heads:
            raise InputError(
                f"grounding.heads: {self.grounding.heads} does not divide the model width "
                f"{self.vision.width}; choose a divisor"
            )
        for name in ("query_size", "item_size"):
            if getattr(self, name) % self.vision.patch:
                raise InputError(
                    f"{name}: {getattr(self, name)} is not a multiple of the patch size "
                    f"{self.vision.patch}"
                )
        if self.attention_crop and self.item_tower == "global":
            raise InputError("attention_crop: a global item tower has no map; choose null")
        if self.item_size % (self.vision.patch << (self.item_levels - 1)):
            raise InputError(
                f"item_levels: {self.item_levels}; at every level item_size {self.item_size} must "
                f"be a multiple of the patch size {self.vision.patch}"
            )

    @property
    def query_side(self) -> int:
        """Patches a side of the query picture."""
        return self.query_size // self.vision.patch

    @property
    def item_side(self) -> int:
        """Patches a side of the item picture at its full size."""
        return self.item_size // self.vision.patch

    @property
    def item_patches(self) -> int:
        """Patches of the item picture at all its levels."""
        return sum(side**2 for side in level_sides(self.item_side, self.item_levels))

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(
            query_size=self.query_size,
            item_size=self.item_size,
            patch=self.vision.patch,
            mean=self.mean,
            std=self.std,
            interpolation="bilinear",
        )

    @property
    def fused_tail(self) -> bool:
        """Whether `tigerfg.kernels.grounded_embedding` computes this item tower."""
        return self.item_tower == "grounded" and self.grounding.token_pooling == "before"

    def to_dict(self) -> dict[str, Any]:
        """Plain values. Without an attention crop they do not name it, so that such models keep the
        fingerprints that they had before there was one."""
        values = dataclasses.asdict(self)
        if self.attention_crop is None:
            del values["attention_crop"]
        return values

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Rebuild from `to_dict()`; a field that is unknown, missing or wrong is an InputError that
        names it."""
        for name in ("vision", "text", "grounding", "mean", "std"):
            if not isinstance(data, dict) or name not in data:
                raise InputError(f"config.json: {name} is missing; is it a tigerfg checkpoint?")
        try:
            return build(cls, data)
        except InputError as error:
            raise InputError(f"config.json: {error}") from error


DINOV3_VITB16: dict[str, Any] = {
    "model_type": "dinov3_vit",
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_register_tokens": 4,
    "key_bias": False,
}


def preset(name: str) -> ModelConfig:
    """`tiny`: trains on two CPU cores, 1.9M parameters. `small`: the same form, wider, for a GPU.
    `lite`: EfficientNet-Lite0 at 160 and 320 px, to be trained from its ImageNet weights.
    `base`: DINOv3 ViT-B/16 at 224 px (85.7M query side)."""
    if name == "tiny":
        return ModelConfig(vision=VisionConfig(kernel=3), item_levels=2)
    if name == "small":
        return ModelConfig(
            name="small",
            vision=VisionConfig(width=320, depth=8, kernel=3),
            text=TextConfig(width=256, depth=4, heads=8),
            grounding=GroundingConfig(heads=10),
            item_levels=2,
        )
    if name == "lite":
        return ModelConfig(
            name="lite",
            vision=VisionConfig(type="lite", width=320, patch=16),
            text=TextConfig(vocab_size=20_380, depth=1),
            grounding=GroundingConfig(heads=10),
            query_size=160,
            item_size=320,
            item_levels=2,
            attention_crop=AttentionCrop(threshold=0.3, weight=0.75),
            mean=LITE_MEAN,
            std=LITE_STD,
        )
    if name == "base":
        return ModelConfig(
            name="base",
            vision=VisionConfig(
                type="hf",
                width=768,
                patch=16,
                name="facebook/dinov3-vitb16-pretrain-lvd1689m",
                hf_config=DINOV3_VITB16,
            ),
            text=TextConfig(vocab_size=32768, width=512, depth=6, heads=8, mlp_ratio=4.0),
            grounding=GroundingConfig(heads=12),
            query_size=224,
            item_size=224,
        )
    raise InputError(f"preset: {name!r} is unknown; choose tiny, small, lite or base")
