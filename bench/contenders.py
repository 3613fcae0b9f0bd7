"""What the benchmarks compare: a query tower in several runtimes, and the plain loop."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from tigerfg.bundle import Bundle
from tigerfg.engines.accuracy import cosines
from tigerfg.images import crop_map, letterbox, patch_mask
from tigerfg.records import Item
from tigerfg.text import item_text


def default_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime as it comes, with the number of threads that all contenders have."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class QueryModel:
    """The query tower of a preset with random weights: torch model, and a bundle of it.

    Random weights, because speed does not depend on them; the cosine of trained weights is in the
    bundle's parity report. The item tower's place is taken by the query tower, unused.
    """

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        import torch

        from tigerfg.export.graph import tower_graph
        from tigerfg.export.manifest import record
        from tigerfg.export.quantize import int8_graph
        from tigerfg.export.weights import write_models
        from tigerfg.model import TigerFG, preset

        torch.manual_seed(0)
        self._torch = torch
        self._model = TigerFG(preset(name)).eval().requires_grad_(False)
        self.config = self._model.config
        graph = tower_graph(self._model, "query")
        graphs = {"query.int8.onnx": int8_graph(graph, self.pixels(8, seed=1)), "query.onnx": graph}
        write_models(graphs, folder)
        files = {
            "fp32": record(folder / "query.onnx"),
            "int8": record(folder / "query.int8.onnx"),
        }
        manifest = {
            "name": name,
            "fingerprint": f"bench-{name}",
            "embedding_dim": self.config.embedding_dim,
            "max_text_length": self.config.text.max_length,
            "vocab_size": self.config.text.vocab_size,
            "towers": {"query": files, "item": files},
            "parity": {},
        }
        self.bundle = Bundle(folder, manifest, self.config.preprocessing)
        feeds = self.pixels(16)
        found = default_session(folder / "query.int8.onnx", threads).run(["embedding"], feeds)[0]
        mean = float(cosines(found, self.eager(feeds)).mean())
        manifest["parity"]["query"] = {"int8": {"cosine_mean": mean}}

    def pixels(self, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Smooth random pictures."""
        from engine_models import pictures

        return pictures(self.config, "query", batch, seed)

    def eager(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """The reference: eager PyTorch in float32."""
        tensors = [self._torch.from_numpy(value) for value in feeds.values()]
        with self._torch.inference_mode():
            return self._model.encode_query(*tensors).numpy()


class PlainLoop:
    """Decode, letterbox, normalise and run a default session, picture by picture."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle, self._threads = bundle, threads

    @cached_property
    def _query(self) -> onnxruntime.InferenceSession:
        return default_session(self._bundle.onnx("query", "fp32"), self._threads)

    @cached_property
    def _item(self) -> onnxruntime.InferenceSession:
        return default_session(self._bundle.onnx("item", "fp32"), self._threads)

    def encode_query(self, file: Path) -> np.ndarray:
        """(E,)"""
        with Image.open(file) as image:
            return self._look(image.convert("RGB"))[0]

    def encode_item(self, item: Item) -> np.ndarray:
        """(E,)"""
        spec, crop = self._bundle.preprocessing, self._bundle.attention_crop
        with Image.open(item.image) as image:
            feeds, (pixels, extent) = self._prepare(image.convert("RGB"), spec.item_size)
        feeds["token_ids"], feeds["token_mask"] = self._bundle.tokenizer([item_text(item)])
        embedding, weights = self._item.run(["embedding", "grounding_map"], feeds)
        if crop is None:
            return embedding[0]
        picture = Image.fromarray(pixels[: extent[1], : extent[0]])
        part = crop.cut(
            picture, crop_map(weights[0], extent, spec.item_size, spec.patch), spec.patch
        )
        return crop.join(embedding, self._look(part))[0]

    def _look(self, image: Image.Image) -> np.ndarray:
        feeds, _ = self._prepare(image, self._bundle.preprocessing.query_size)
        return self._query.run(["embedding"], feeds)[0]

    def _prepare(
        self, image: Image.Image, size: int
    ) -> tuple[dict[str, Any], tuple[np.ndarray, tuple[int, int]]]:
        """A tower's pixels and mask; and what `letterbox` gives."""
        spec = self._bundle.preprocessing
        pixels, extent = letterbox(image, size, spec.interpolation)
        mean, std = (np.asarray(value, np.float32) for value in (spec.mean, spec.std))
        normal = (pixels.astype(np.float32) / 255 - mean) / std
        normal[extent[1] :] = 0
        normal[:, extent[0] :] = 0
        feeds = {
            "pixels": np.ascontiguousarray(normal.transpose(2, 0, 1)[None]),
            "patch_mask": patch_mask(np.asarray([extent]), size, spec.patch),
        }
        return feeds, (pixels, extent)
