"""What every engine offers, and the checks on its inputs and outputs."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from tigerfg.errors import EngineError, InputError

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle

INPUTS = {
    "query": ("pixels", "patch_mask"),
    "item": ("pixels", "patch_mask", "token_ids", "token_mask"),
}
OUTPUTS = {"query": ("embedding",), "item": ("embedding", "grounding_map", "token_weights")}
# The same towers cut before the fused tail: what the tail's kernels read, and the text's weights.
BACKBONE_INPUTS = {"query": ("pixels",), "item": ("pixels", "token_ids", "token_mask")}
BACKBONE_OUTPUTS = {"query": ("patches",), "item": ("patches", "queries", "text", "token_weights")}

Arrays = dict[str, np.ndarray]


class ItemEncoding(NamedTuple):
    """What the item tower gives for B items; all float32, C-contiguous.

    Attributes:
        embedding: (B, E), norm 1.
        grounding_map: (B, N), one weight per patch, sum 1.
        token_weights: (B, L), one weight per text token, sum 1.
    """

    embedding: np.ndarray
    grounding_map: np.ndarray
    token_weights: np.ndarray


class EngineInfo(NamedTuple):
    """Which engine runs, for logs and `tigerfg doctor`.

    Attributes:
        name: "tensorrt", "tensorrt-rtx", "onnx", "openvino" or "torch", of the query tower.
        precision: "fp32", "fp16", "bf16", "int8" or "fp8", of the query tower.
        device: "cpu" or "cuda".
        threads: CPU threads an encode call uses.
        detail: versions, and the item tower where it differs.
    """

    name: str
    precision: str
    device: str
    threads: int
    detail: str


class Engine(Protocol):
    """Encodes prepared arrays. Calls are safe from several threads; B may be 0."""

    @property
    def info(self) -> EngineInfo: ...

    def encode_queries(self, pixels: np.ndarray, patch_mask: np.ndarray) -> np.ndarray:
        """pixels float32 (B, 3, S, S), patch_mask bool (B, N) -> embeddings float32 (B, E)."""
        ...

    def encode_items(
        self,
        pixels: np.ndarray,
        patch_mask: np.ndarray,
        token_ids: np.ndarray,
        token_mask: np.ndarray,
    ) -> ItemEncoding:
        """pixels float32 (B, 3, S, S), patch_mask bool (B, N), token_ids int64 (B, L), token_mask
        bool (B, L), 1 <= L <= the model's maximum text length."""
        ...

    def close(self) -> None:
        """Free the engine; it cannot be used afterwards."""
        ...


class TowerEngine(ABC):
    """An `Engine` that computes a tower at a time; see there."""

    _shapes: TowerShapes

    def encode_queries(self, pixels: np.ndarray, patch_mask: np.ndarray) -> np.ndarray:
        return self._run("query", {"pixels": pixels, "patch_mask": patch_mask})["embedding"]

    def encode_items(
        self,
        pixels: np.ndarray,
        patch_mask: np.ndarray,
        token_ids: np.ndarray,
        token_mask: np.ndarray,
    ) -> ItemEncoding:
        values = (pixels, patch_mask, token_ids, token_mask)
        return ItemEncoding(**self._run("item", dict(zip(INPUTS["item"], values, strict=True))))

    def _run(self, tower: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        checked = self._shapes.check(tower, feeds)
        if not len(checked["pixels"]):
            return self._shapes.empty(tower, checked)
        return self._compute(tower, checked)

    @abstractmethod
    def _compute(self, tower: str, feeds: Arrays) -> Arrays:
        """A tower's outputs for inputs that are checked, B is at least 1."""


class Runner(Protocol):
    """One tower in one runtime and precision. Inputs are checked already and B is at least 1."""

    engine: str
    precision: str
    version: str

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Named inputs to named outputs, see INPUTS and OUTPUTS; safe from several threads."""
        ...

    def close(self) -> None:
        """Free what the runtime holds; the last call."""
        ...


@dataclass(frozen=True)
class TowerShapes:
    """Sizes that a model's inputs must have."""

    sides: Mapping[str, int]
    patch: int
    embedding_dim: int
    max_text_length: int
    vocab_size: int

    @classmethod
    def of(cls, bundle: Bundle) -> TowerShapes:
        spec = bundle.preprocessing
        return cls(
            {"query": spec.query_size, "item": spec.item_size},
            spec.patch,
            bundle.embedding_dim,
            bundle.max_text_length,
            bundle.manifest["vocab_size"],
        )

    def patches(self, tower: str) -> int:
        return (self.sides[tower] // self.patch) ** 2

    def check(self, tower: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The inputs, C-contiguous; InputError names the argument that cannot be used."""
        side = self.sides[tower]
        checked = {
            "pixels": _array("pixels", feeds["pixels"], np.float32, (None, 3, side, side)),
        }
        batch = len(checked["pixels"])
        checked["patch_mask"] = _mask("patch_mask", feeds["patch_mask"], batch, self.patches(tower))
        if tower == "query":
            return checked
        ids = _array("token_ids", feeds["token_ids"], np.int64, (batch, None))
        if not 1 <= ids.shape[1] <= self.max_text_length:
            raise InputError(
                f"token_ids: {ids.shape[1]} tokens a text; the model takes 1 to "
                f"{self.max_text_length}"
            )
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise InputError(
                f"token_ids: ids from {ids.min()} to {ids.max()}; the vocabulary has "
                f"{self.vocab_size}: use the bundle's own tokenizer"
            )
        mask = _mask("token_mask", feeds["token_mask"], batch, ids.shape[1])
        return {**checked, "token_ids": ids, "token_mask": mask}

    def empty(self, tower: str, feeds: Arrays) -> Arrays:
        """The outputs for no input at all."""
        widths = {"embedding": self.embedding_dim, "grounding_map": self.patches(tower)}
        if tower == "item":
            widths["token_weights"] = feeds["token_ids"].shape[1]
        return {name: np.zeros((0, widths[name]), np.float32) for name in OUTPUTS[tower]}


def check_outputs(outputs: Arrays, runner: Runner) -> Arrays:
    """The outputs, if they are finite; a runtime that went wrong is never passed on silently."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise EngineError(
                f"{runner.engine} {runner.precision} returned non-finite values in {name!r}; "
                "choose another engine or precision (see `tigerfg doctor`)"
            )
    return outputs


def _array(name: str, value: np.ndarray, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    wanted = f"({', '.join('B' if size is None else str(size) for size in shape)})"
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name}: {type(value).__name__}; give a numpy array {wanted}")
    if value.dtype != dtype:
        raise InputError(f"{name}: dtype {value.dtype}; give {np.dtype(dtype).name}")
    if value.ndim != len(shape) or any(
        size is not None and size != found for size, found in zip(shape, value.shape, strict=True)
    ):
        raise InputError(f"{name}: shape {value.shape}; give {wanted}")
    return np.ascontiguousarray(value)


def _mask(name: str, value: np.ndarray, batch: int, width: int) -> np.ndarray:
    mask = _array(name, value, np.bool_, (batch, width))
    blank = ~mask.any(axis=1)
    if blank.any():
        raise InputError(f"{name}: row {int(blank.argmax())} is all False; nothing to look at")
    return mask


def installed(packages: Mapping[str, str]) -> list[str]:
    """Names whose package is installed, in their order; imports none."""
    return [name for name, package in packages.items() if importlib.util.find_spec(package)]
