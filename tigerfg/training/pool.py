"""Training pictures in fixed-size arrays: what a training step gathers its batch from."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from tigerfg.errors import InputError


@dataclass
class Pool:
    """Crops and full pictures of P products, letterboxed (uint8), memory-mapped when loaded.

    Attributes:
        crops: (C, Sq, Sq, 3) uint8 query-side pictures. crop_extents: (C, 2) valid (w, h).
        crop_products: (C,) int32 in [0, P).
        scenes: (M, Si, Si, 3) uint8 item pictures. scene_extents: (M, 2).
        scene_products: (M,) int32, the target. scene_boxes: (M, 4) float32, target box in pixels
            of the letterboxed picture. other_boxes: (M, 4) box of one other product in the
            picture, all zero where there is none.
        twins: (P,) int32, a product that differs in one attribute, or -1.
        texts: for every product its item texts: the first is the full one, the others lack parts.
    """

    crops: np.ndarray
    crop_extents: np.ndarray
    crop_products: np.ndarray
    scenes: np.ndarray
    scene_extents: np.ndarray
    scene_products: np.ndarray
    scene_boxes: np.ndarray
    other_boxes: np.ndarray
    twins: np.ndarray
    texts: list[list[str]]

    def __post_init__(self) -> None:
        self._crops_of = _group(self.crop_products, len(self.twins))
        self._scenes_of = _group(self.scene_products, len(self.twins))

    @property
    def products(self) -> int:
        return len(self.twins)

    def save(self, directory: str | Path) -> None:
        """Write the arrays whole or not at all to a directory that does not exist yet."""
        directory = Path(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".pool-") as temp:
            staged = Path(temp) / "pool"
            staged.mkdir()
            for name in _array_names():
                np.save(staged / f"{name}.npy", getattr(self, name), allow_pickle=False)
            (staged / "texts.json").write_text(json.dumps(self.texts))
            os.rename(staged, directory)

    @classmethod
    def load(cls, directory: str | Path) -> Pool:
        """Memory-map a saved pool."""
        directory = Path(directory)
        if not (directory / "texts.json").is_file():
            raise InputError(f"pool: {directory} is not a saved training pool; prepare it again")
        arrays = {
            name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in _array_names()
        }
        return cls(**arrays, texts=json.loads((directory / "texts.json").read_text()))

    def pick_products(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Distinct products while there are enough, half of them as pairs of near-twins."""
        if count > self.products:
            return rng.integers(0, self.products, count)
        chosen: dict[int, None] = {}
        for product in rng.permutation(self.products):
            if len(chosen) >= count:
                break
            chosen[int(product)] = None
            twin = int(self.twins[product])
            if twin >= 0 and rng.random() < 0.5:
                chosen[twin] = None
        return np.fromiter(chosen, dtype=np.int64)[:count]

    def pick_crops(self, products: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One crop index for every product."""
        return np.array([rng.choice(self._crops_of[p]) for p in products], dtype=np.int64)

    def pick_scenes(self, products: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One scene index for every product."""
        return np.array([rng.choice(self._scenes_of[p]) for p in products], dtype=np.int64)

    def pick_texts(
        self, products: np.ndarray, rng: np.random.Generator, full: float = 0.5
    ) -> list[str]:
        """One text for every product: the full one with probability `full`, else a shorter one."""
        chosen = []
        for product in products:
            texts = self.texts[product]
            shorter = rng.random() >= full and len(texts) > 1
            chosen.append(texts[int(rng.integers(1, len(texts)))] if shorter else texts[0])
        return chosen


def _array_names() -> list[str]:
    return [field.name for field in fields(Pool) if field.name != "texts"]


def _group(products: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(products, kind="stable")
    bounds = np.searchsorted(products[order], np.arange(count + 1))
    return [order[bounds[p] : bounds[p + 1]] for p in range(count)]
