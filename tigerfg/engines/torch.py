"""PyTorch on a checkpoint, for development: the float32 reference, on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tigerfg.engines.base import Arrays, EngineInfo, TowerEngine, TowerShapes, check_outputs
from tigerfg.engines.cpu import thread_count
from tigerfg.errors import EngineError, MissingExtraError

if TYPE_CHECKING:
    from tigerfg.model import TigerFG


class TorchEngine(TowerEngine):
    """The reference model itself; needs the `train` extra.

    Args:
        checkpoint: what `load_checkpoint` takes, or a model in evaluation mode.
        threads: CPU threads, None for all; torch keeps one number for the whole process.
    """

    engine = "torch"
    precision = "fp32"

    def __init__(self, checkpoint: str | Path | TigerFG, threads: int | None = None) -> None:
        try:
            import torch

            from tigerfg.model import TigerFG, load_checkpoint
        except ImportError as error:
            raise MissingExtraError("the engine 'torch'", error.name or "torch", "train") from error
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._threads = thread_count(threads)
        if self._device == "cpu":
            torch.set_num_threads(self._threads)
        model = checkpoint if isinstance(checkpoint, TigerFG) else load_checkpoint(checkpoint)
        self._model = model.to(self._device)
        self._shapes = shapes_of(self._model)

    @property
    def info(self) -> EngineInfo:
        detail = f"torch {self._torch.__version__}"
        return EngineInfo("torch", "fp32", self._device, self._threads, detail)

    def close(self) -> None:
        self._model = None

    def _compute(self, tower: str, feeds: Arrays) -> Arrays:
        model = self._model  # another thread may close this meanwhile
        if model is None:
            raise EngineError("the engine is closed")
        with self._torch.inference_mode():
            tensors = [self._torch.from_numpy(value).to(self._device) for value in feeds.values()]
            if tower == "query":
                outputs = {"embedding": model.encode_query(*tensors)}
            else:
                outputs = model.encode_item(*tensors)._asdict()
            arrays = {name: value.float().cpu().numpy() for name, value in outputs.items()}
        return check_outputs(arrays, self)


def shapes_of(model: TigerFG) -> TowerShapes:
    """Sizes that a model's inputs must have."""
    config = model.config
    return TowerShapes(
        {"query": config.query_size, "item": config.item_size},
        config.vision.patch,
        config.embedding_dim,
        config.text.max_length,
        model.vocab_size,
    )
