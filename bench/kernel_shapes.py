"""The shapes at which the kernels are measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Inputs of the operators on patch features.

    tower: patches are a slice behind five other tokens, and a fifth of them is masked.
    """

    batch: int
    patches: int
    queries: int
    dtype: str
    width: int = 768
    heads: int = 12
    tower: bool = False

    def __str__(self) -> str:
        width = "" if self.width == 768 else f"-D{self.width}"
        tower = "-tower" if self.tower else ""
        return f"{self.dtype}-B{self.batch}-N{self.patches}-Q{self.queries}{width}{tower}"


@dataclass(frozen=True)
class Photos:
    """Inputs of the preprocessing: photos of one size, and the side of the square they become."""

    batch: int
    height: int
    width: int
    side: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}-B{self.batch}-{self.width}x{self.height}-to-{self.side}"


# Grounding's, the most telling first: a run that is cut short has those.
SHAPES = [
    Shape(batch, patches, queries, dtype)
    for dtype in ("float16", "bfloat16")
    for batch in (256, 8, 1024, 64, 1)
    for patches, queries in ((196, 12), (576, 12), (196, 48), (256, 12), (201, 12))
]
TOWER = Shape(256, 196, 12, "float16", tower=True)
EMBEDDINGS = [
    Shape(256, 196, 12, "float16"),
    Shape(8, 196, 12, "float16"),
    Shape(256, 196, 12, "bfloat16"),
]
PHOTOS = [
    Photos(64, 480, 640, 224, "float16"),
    Photos(8, 3000, 4000, 448, "float16"),
    Photos(1, 480, 640, 224, "float16"),
]
