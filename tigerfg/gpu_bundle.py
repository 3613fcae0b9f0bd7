"""The part of a bundle that GPUs use: typed graphs, engines, compiled kernels and their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tigerfg.bundle_files import AGAIN, BundleFiles, FileRecord
from tigerfg.errors import BundleError

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
CUTS = ("tower", "backbone")


class GpuShape(NamedTuple):
    """Sizes that the tail kernels are launched with.

    width D, heads H, queries_per_head M, embedding_dim E; pool "mean" or "attention"; the epsilons
    of the key LayerNorm and of the last LayerNorm.
    """

    width: int
    heads: int
    queries_per_head: int
    embedding_dim: int
    pool: str
    key_norm_eps: float
    norm_eps: float


class GpuPart:
    """What manifest.json holds under "gpu", read-only; made by `Bundle.gpu`.

    What is read, or handed out, is compared with its record first; engines are by their sidecars.

    Attributes:
        shape: sizes that the tail kernels are launched with.
        profiles: (smallest, best, largest) batch of every optimisation profile of its engines.
        workspace: bytes that building an engine may use on the device; None for no limit.
        item_levels: scales at which the item tower sees its picture, see `tigerfg.levels`.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], files: BundleFiles) -> None:
        self._path, self._files = path, files
        self._weights: FileRecord = manifest["weights"]
        self._part: Mapping[str, Any] = manifest["gpu"]
        try:
            self.shape = GpuShape(**self._part["shape"])
            self.profiles = tuple(map(tuple, self._part["profiles"]))
            self.workspace: int | None = self._part["workspace"]
            self.item_levels: int = self._part["item_levels"]
        except (KeyError, TypeError) as error:
            raise BundleError(f"{path}: gpu part of the manifest: {error}: export again") from error

    @property
    def precisions(self) -> list[str]:
        """The precisions that both towers come in, in the manifest's order."""
        graphs = self._part["graphs"]
        return [name for name in graphs["query"] if name in graphs["item"]]

    def graph(self, tower: str, precision: str, cut: str) -> Path:
        """Path of a tower's typed ONNX graph.

        Args:
            cut: "tower", all of it in standard operators, or "backbone", up to the fused tail.

        Raises:
            BundleError: no such graph, it names what the bundle has instead; or a damaged file.
        """
        self._files.whole(self._weights)
        return self._files.whole(self._graph(tower, precision, cut))

    def identity(self, tower: str, precision: str, cut: str) -> str:
        """SHA-256 over the graph and its weights: what an engine must have been built from."""
        record = self._graph(tower, precision, cut)
        return hashlib.sha256(f"{record['sha256']} {self._weights['sha256']}".encode()).hexdigest()

    def proof_identity(self, cut: str) -> str:
        """SHA-256 over what a proof of an engine is about besides that: what its results are
        compared with, and for "backbone" the compiled kernels and weights behind it."""
        names = ("check", "tail", "kernels") if cut == "backbone" else ("check",)
        records = {name: self._part.get(name) for name in names}
        return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()

    def cuts(self, tower: str, precision: str) -> list[str]:
        """The cuts that a tower comes in."""
        return list(self._part["graphs"].get(tower, {}).get(precision, {}))

    def tail_weights(self) -> dict[str, np.ndarray]:
        """Weights of the tails, float32, by the names of `tigerfg.kernels.TailWeights`."""
        return self._arrays("tail")

    def check(self) -> dict[str, np.ndarray]:
        """A few prepared pictures and texts, and what the float32 model makes of them.

        Keys: query_pixels float16, query_patch_mask, query_embedding; item_pixels, item_patch_mask,
        item_token_ids, item_token_mask, item_embedding, item_grounding_map.
        """
        return self._arrays("check")

    def kernels(self) -> list[dict[str, Any]]:
        """Descriptions of the compiled kernels (see `tigerfg.kernels.aot`); "path" is the cubin."""
        if "kernels" not in self._part:
            return []
        part = self._part["kernels"]
        index = json.loads(self._files.whole(part["index"]).read_bytes())
        files = part["files"]
        for entry in index["kernels"]:
            if entry["file"] not in files:
                raise BundleError(
                    f"{self._path}: gpu.kernels.files lacks {entry['file']}, which "
                    f"{part['index']['file']} names: {AGAIN}"
                )
        return [
            {**entry, "path": self._files.whole(files[entry["file"]])} for entry in index["kernels"]
        ]

    def engines(self) -> list[Path]:
        """Engine files that came with the bundle; a sidecar lies beside each."""
        return [self._path / entry["file"] for entry in self._part.get("engines", [])]

    def records(self) -> Iterator[tuple[str, FileRecord]]:
        """Every file of this part: its field in the manifest and its record."""
        part = self._part
        for tower, precisions in part["graphs"].items():
            for precision, cuts in precisions.items():
                for cut, record in cuts.items():
                    yield f"gpu.graphs.{tower}.{precision}.{cut}", record
        for name in ("tail", "check"):
            if name in part:
                yield f"gpu.{name}", part[name]
        if "kernels" in part:
            yield "gpu.kernels.index", part["kernels"]["index"]
            for name, record in part["kernels"]["files"].items():
                yield f"gpu.kernels.files.{name}", record
        for position, entry in enumerate(part.get("engines", [])):
            yield f"gpu.engines.{position}", entry

    def _graph(self, tower: str, precision: str, cut: str) -> FileRecord:
        try:
            return self._part["graphs"][tower][precision][cut]
        except KeyError:
            raise BundleError(
                f"{self._path}: no {precision} graph of the {tower} {cut}: the bundle has "
                f"{', '.join(self.precisions) or 'none'}; export it with --{precision}"
            ) from None

    def _arrays(self, field: str) -> dict[str, np.ndarray]:
        if field not in self._part:
            raise BundleError(f"{self._path}: gpu.{field} is missing: export the bundle again")
        with np.load(self._files.whole(self._part[field]), allow_pickle=False) as arrays:
            return dict(arrays)
