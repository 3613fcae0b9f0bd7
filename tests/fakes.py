"""A model without a model: bundle and engine for tests of what lies around them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from tigerfg.engines.base import EngineInfo, ItemEncoding
from tigerfg.errors import BundleError
from tigerfg.images import Preprocessing

SIZE, PATCH, DIM = 32, 8, 64


class FakeBundle:
    """Looks like `tigerfg.bundle.Bundle`; a tokenizer that counts characters."""

    gpu = None
    attention_crop = None
    least_parity = 1.0
    precisions = ("fp32",)

    def __init__(self, name: str = "fake", fingerprint: str = "f" * 64) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.path = Path("/nowhere") / name
        self.manifest: dict[str, object] = {}
        self.embedding_dim = DIM
        self.max_text_length = 8
        self.preprocessing = Preprocessing(SIZE, SIZE, PATCH, (0.5,) * 3, (0.25,) * 3)

    def onnx(self, tower: str, precision: str) -> Path:
        raise BundleError("a fake bundle has no graphs")

    def tokenizer(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([max(1, min(len(text), self.max_text_length)) for text in texts])
        mask = np.arange(lengths.max()) < lengths[:, None]
        return mask.astype(np.int64), mask


class FakeEngine:
    """Embedding: a fixed random projection of the 8 x 8 means of the pixels, normalised.

    The text does not count, so that an item's own picture as a query scores 1.
    """

    info = EngineInfo("fake", "fp32", "cpu", 1, "")

    def __init__(self) -> None:
        self.items_encoded = 0
        self.closed = False

    def encode_queries(self, pixels: np.ndarray, patch_mask: np.ndarray) -> np.ndarray:
        part = pixels.shape[-1] // 8
        cells = pixels.reshape(len(pixels), 3, 8, part, 8, part).mean((3, 5))
        # float64, so that a picture's embedding does not depend on the rest of its batch
        embedding = cells.reshape(len(pixels), -1).astype(np.float64) @ _projection() + 1e-3
        norms = np.linalg.norm(embedding, axis=1, keepdims=True)
        return (embedding / norms).astype(np.float32)

    def encode_items(
        self,
        pixels: np.ndarray,
        patch_mask: np.ndarray,
        token_ids: np.ndarray,
        token_mask: np.ndarray,
    ) -> ItemEncoding:
        self.items_encoded += len(pixels)
        weights = patch_mask / patch_mask.sum(1, keepdims=True)
        tokens = token_mask / token_mask.sum(1, keepdims=True)
        return ItemEncoding(
            self.encode_queries(pixels, patch_mask),
            weights.astype(np.float32),
            tokens.astype(np.float32),
        )

    def close(self) -> None:
        self.closed = True


def picture(seed: int, width: int = 16, height: int = 16) -> np.ndarray:
    """uint8 (height, width, 3), different for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_picture(path: Path, seed: int) -> Path:
    Image.fromarray(picture(seed)).save(path)
    return path


@functools.cache
def _projection() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3 * 64, DIM))
