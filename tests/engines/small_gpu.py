"""A small model's GPU part on a pretended device: graphs, kernels, weights, check and engines."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from cuda_fakes import Device, description, engine_content
from small_models import LEVELS, build, expected, inputs

from tigerfg.engines import sidecar
from tigerfg.engines.sidecar import Sidecar
from tigerfg.export.graph import tower_graph
from tigerfg.export.tail import tail_weights
from tigerfg.gpu_bundle import GpuShape
from tigerfg.kernels.model_kernels import ModelKernels
from tigerfg.model import TigerFG
from tigerfg.model.config import GroundingConfig, ModelConfig, VisionConfig

# 100 item patches are two tiles of the grounding kernel, 16 query patches two of the pooling one.
CONFIG = replace(
    LEVELS,  # what the kernels see is not what callers see
    vision=VisionConfig(width=32, depth=1),
    grounding=GroundingConfig(heads=2, queries_per_head=2),
    item_size=80,
)
PROFILES = ((1, 1, 1), (2, 4, 8), (12, 14, 16))  # a gap, and less than the batches of the tests
LOW = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
TRITON = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
CHECKED = 5  # pictures of the check
# parity that need not be measured, but for what it is of
PROVEN = {"gpu": "Pretended GPU", "sm": 89, "driver": "13.0"}


@dataclass
class Part:
    """Stands for `tigerfg.gpu_bundle.GpuPart`."""

    folder: Path
    model: TigerFG
    pool: str
    archs: tuple[int, ...] = (80, 89, 90)
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16")
    profiles: Any = PROFILES
    workspace: int | None = None
    with_cuts: tuple[str, ...] = ("tower", "backbone")
    with_engines: list[Path] = field(default_factory=list)
    variants: dict[str, Any] = field(default_factory=dict)

    @property
    def item_levels(self) -> int:
        return self.model.config.item_levels

    @property
    def shape(self) -> GpuShape:
        config = self.model.config
        sizes = (config.grounding.heads, config.grounding.queries_per_head, config.embedding_dim)
        return GpuShape(config.vision.width, *sizes, self.pool, 1e-6, 1e-6)

    def cuts(self, tower: str, precision: str) -> list[str]:
        return list(self.with_cuts)

    def graph(self, tower: str, precision: str, cut: str) -> Path:
        return self.folder / f"{tower}.{cut}.onnx"

    def identity(self, tower: str, precision: str, cut: str) -> str:
        return hashlib.sha256(f"{self.pool} {tower} {precision} {cut}".encode()).hexdigest()

    def proof_identity(self, cut: str) -> str:
        digest = hashlib.sha256(cut.encode())
        for name, value in sorted(self.tail_weights().items() if cut == "backbone" else ()):
            digest.update(name.encode() + value.tobytes())
        return digest.hexdigest()

    def tail_weights(self) -> dict[str, np.ndarray]:
        return tail_weights(self.model)

    def engines(self) -> list[Path]:
        return list(self.with_engines)

    def kernels(self) -> list[dict[str, Any]]:
        """Descriptions of the model's kernels; a "cubin" holds what the device knows it by."""
        found = []
        for arch in self.archs:
            for element in TRITON.values():
                kernels = ModelKernels(element, *self.shape[:4], self.pool)
                for operator in ("grounding", "tail", "pooling"):
                    for variant in kernels.variants(operator, arch):
                        path = self.folder / f"{variant.name}.sm_{arch}.cubin"
                        if path.name not in self.variants:
                            path.write_text(path.name)
                            self.variants[path.name] = variant
                        found.append({**description(variant, arch), "path": path})
        return found

    def check(self) -> dict[str, np.ndarray]:
        found = {}
        for tower in ("query", "item"):
            feeds = inputs(self.model.config, tower, batch=CHECKED, seed=77)
            feeds["pixels"] = feeds["pixels"].astype(np.float16).astype(np.float32)
            results = expected(self.model, tower, feeds)
            found |= {f"{tower}_{name}": value for name, value in (feeds | results).items()}
            found[f"{tower}_pixels"] = feeds["pixels"].astype(np.float16)
        return found

    def put_engine(
        self, path: Path, tower: str, precision: str, cut: str, **changes: Any
    ) -> Sidecar:
        """Write an engine file for the pretended TensorRT, with its sidecar."""
        low = LOW[precision] if cut == "backbone" else "FLOAT"
        graph = self.graph(tower, precision, cut)
        content = engine_content(graph, PROFILES, self.model.config.text.max_length, low)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        fields = {
            "builder": "tensorrt-rtx",
            "version": "1.7.1",
            "sms": (89,),
            "driver": None,
            "onnx_sha256": self.identity(tower, precision, cut),
            **{"tower": tower, "precision": precision, "cut": cut},
            "profiles": PROFILES,
            "max_text_length": self.model.config.text.max_length,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "seconds": 1.0,
            "workspace": None,
            "parity": PROVEN and {**PROVEN, "proof": self.proof_identity(cut)},
        }
        record = Sidecar(**(fields | changes))
        sidecar.write(path, record)
        return record

    def use(self, device: Device) -> None:
        """Tell the device what the cubins are."""
        self.kernels()
        device.variants.update(self.variants)


def make_part(folder: Path, pool: str, config: ModelConfig = CONFIG) -> Part:
    """The model of a pooling and its graphs."""
    model = build(config, pool=pool)
    for tower in ("query", "item"):
        for cut in ("tower", "backbone"):
            onnx.save(tower_graph(model, tower, cut), folder / f"{tower}.{cut}.onnx")
    return Part(folder, model, pool)


def make_bundle(part: Part | None) -> Any:
    """Stands for `tigerfg.bundle.Bundle`."""
    config = CONFIG if part is None else part.model.config
    return SimpleNamespace(
        path="bundle",
        gpu=part,
        preprocessing=config.preprocessing,
        embedding_dim=config.embedding_dim,
        max_text_length=config.text.max_length,
        manifest={"vocab_size": config.text.vocab_size},
    )
