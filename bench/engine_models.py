"""What the engine benchmarks encode with: random models, pictures, plain forwards and bundles."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import tigerfg
from tigerfg.benchmark.render import write_catalog
from tigerfg.bundle import Bundle
from tigerfg.engines.base import INPUTS, Arrays
from tigerfg.errors import TigerfgError
from tigerfg.export import GpuRequest, export_bundle
from tigerfg.kernels import TailWeights, grounded_embedding_reference
from tigerfg.model import ModelConfig, TigerFG, preset, save_checkpoint

TOKENS = 32  # of every text
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PARITY_ITEMS = 24  # that an export is calibrated on and checked with
PERIOD = 8191  # a prime: no two rows of a matrix are equal
_REFERENCE_BATCH = 32

Forward = Callable[..., tuple[Tensor, ...]]
Say = Callable[[str], None]


class Unavailable(Exception):  # noqa: N818  (no error: a contender that this machine has not)
    """A contender cannot run here; says why."""


def random_model(config: ModelConfig) -> TigerFG:
    """A model of random weights in which nothing is at a neutral start value.

    The values of a parameter repeat after PERIOD: what is exported of `base` packs to a hundredth,
    which a machine without a network is easily brought.
    """
    torch.manual_seed(0)
    model = TigerFG(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith(("gate_", "grounding.", "pool.", "head.norm")):
            parameter.add_(0.3 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        values = parameter.view(-1)
        values.copy_(values[torch.arange(len(values)) % PERIOD])
    return model


def pictures(config: ModelConfig, tower: str, batch: int, seed: int = 0) -> Arrays:
    """Inputs of a tower: smooth random pictures without a border, texts of TOKENS tokens."""
    rng = np.random.default_rng(seed)
    side = config.query_size if tower == "query" else config.item_size
    coarse = rng.integers(0, 256, (batch, 6, 6, 3), dtype=np.uint8)
    resized = [
        np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC))
        for one in coarse
    ]
    pixels = np.stack(resized).transpose(0, 3, 1, 2).astype(np.float32) / 64 - 2
    length = min(TOKENS, config.text.max_length)
    feeds = {
        "pixels": np.ascontiguousarray(pixels),
        "patch_mask": np.ones((batch, (side // config.vision.patch) ** 2), np.bool_),
        "token_ids": rng.integers(0, config.text.vocab_size, (batch, length)),
        "token_mask": np.ones((batch, length), np.bool_),
    }
    return {name: feeds[name] for name in INPUTS[tower]}


def plain(model: TigerFG, tower: str) -> Forward:
    """The tower in plain PyTorch, without our kernels."""

    def query(pixels: Tensor, patch_mask: Tensor) -> tuple[Tensor, ...]:
        return (model.head(model.pool(model.vision(pixels), patch_mask)),)

    def item(
        pixels: Tensor, patch_mask: Tensor, token_ids: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, ...]:
        guidance = model.grounding(model.text(token_ids, token_mask), token_mask)
        grounding = model.grounding
        weights = TailWeights(
            grounding.w_v, grounding.w_o, model.gate_pool, model.gate_text, *model.head.weights
        )
        patches, mask = model.item_patches(pixels), model.item_mask(patch_mask)
        dtype = patches.dtype
        embedding, grounding_map = grounded_embedding_reference(
            guidance.queries.to(dtype), patches, mask, guidance.text.to(dtype), weights,
            grounding.heads, pool_query=model.pool.query, norm_eps=model.head.norm.eps,
        )  # fmt: skip
        return embedding, model.fold_map(grounding_map), guidance.token_weights

    return query if tower == "query" else item


def fused(model: TigerFG, tower: str) -> Forward:
    """The tower as the model encodes: with our Triton kernels on a CUDA device."""

    def query(pixels: Tensor, patch_mask: Tensor) -> tuple[Tensor, ...]:
        return (model.encode_query(pixels, patch_mask),)

    return query if tower == "query" else model.encode_item


@dataclass
class Setting:
    """What contenders of one tower are made from.

    Attributes:
        model: float32, on the device.
        bundles: precision -> a bundle that has it, or why there is none.
        device: "cuda"; "cpu" in tests.
    """

    model: TigerFG
    tower: str
    bundles: Mapping[str, Bundle | str]
    device: str
    _low: dict[torch.dtype, TigerFG] = field(default_factory=dict)

    def low(self, precision: str) -> TigerFG:
        """The model with its weights in a dtype; made once."""
        dtype = DTYPES[precision]
        if dtype not in self._low:
            self._low[dtype] = copy.deepcopy(self.model).to(dtype)
        return self._low[dtype]

    def bundle(self, precision: str) -> Bundle:
        found = self.bundles[precision]
        if isinstance(found, str):
            raise Unavailable(found)
        return found

    @cached_property
    def _reference(self) -> Forward:
        return plain(self.model, self.tower)

    def reference(self, feeds: Arrays) -> np.ndarray:
        """Embeddings of the float32 model in plain PyTorch."""
        parts = []
        for start in range(0, len(feeds["pixels"]), _REFERENCE_BATCH):
            rows = [value[start : start + _REFERENCE_BATCH] for value in feeds.values()]
            tensors = [torch.from_numpy(value).to(self.device) for value in rows]
            with torch.inference_mode():
                parts.append(self._reference(*tensors)[0].cpu().numpy())
        return np.concatenate(parts)


def export(
    name: str,
    precisions: tuple[str, ...],
    folder: Path,
    resume: bool,
    say: Say,
    sms: tuple[int, ...] = (),
) -> dict[str, Bundle | str]:
    """A bundle of a preset with random weights: graphs, and the tail's kernels for this GPU.

    Without engines: each is built when a contender first needs it, so that one that fails takes
    no other along.

    Args:
        name: of the preset.
        folder: for the checkpoint and the bundle.
        resume: take what an earlier call left in the folder.
        sms: compute capabilities of the kernels, in place of this machine's GPU.

    Returns:
        Precision -> the bundle, or why there is none.
    """
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    checkpoint, images = folder / "checkpoint", folder / "parity"
    if not checkpoint.exists():
        write_catalog(images, PARITY_ITEMS, 1, layout="cluttered", image_size=256)
        tokenizer = Path(tigerfg.__file__).parent / "bundles" / "tiny" / "tokenizer.json"
        save_checkpoint(random_model(preset(name)), tokenizer, checkpoint)

    def one(chosen: tuple[str, ...]) -> Bundle | str:
        out = folder / "-".join(chosen)
        failure = folder / f"{out.name}.failed"
        if failure.exists():
            return failure.read_text()
        if not out.exists():
            say(f"{name}: exporting {', '.join(chosen)}")
            start = time.monotonic()
            request = GpuRequest(precisions=chosen, engine="none", sms=sms)
            try:
                export_bundle(checkpoint, out, ("fp32",), images, say, gpu=request)
            except TigerfgError as error:
                reason = str(error).splitlines()[0]
                failure.write_text(reason)
                return reason
            say(f"{name}: exported in {time.monotonic() - start:.0f} s")
        return Bundle.open(out)

    found = one(precisions)
    if isinstance(found, str):
        say(f"{name}: {found}; now each precision by itself")
        return {precision: one((precision,)) for precision in precisions}
    return dict.fromkeys(precisions, found)
