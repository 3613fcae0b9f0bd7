"""The training loop: the staged recipe, with progress, checkpoints, log and resume."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor, nn

from tigerfg.errors import InputError
from tigerfg.model.checkpoint import load_checkpoint, save_checkpoint
from tigerfg.model.config import ModelConfig, preset
from tigerfg.model.towers import TigerFG
from tigerfg.text import TextTokenizer
from tigerfg.training.batches import BatchMaker
from tigerfg.training.card import HELD_OUT, write_card
from tigerfg.training.map_stage import FeatureCache, map_steps
from tigerfg.training.pool import Pool
from tigerfg.training.prepare import photo_pool, rendered_pool
from tigerfg.training.stages import STEPS, LossWeights, Trainee
from tigerfg.training.state import Progress, load_progress, load_state, save_state
from tigerfg.training.tokenizer import train_tokenizer
from tigerfg.training.validate import validate

log = logging.getLogger("tigerfg")

CACHED_SCENES = 6144  # pictures whose features the map stage keeps, at most


@dataclass(frozen=True)
class Stage:
    """One stage: `kind` crops | regions | map | joint; `backbone_rate` scales the backbone's lr."""

    kind: str
    steps: int
    batch: int
    lr: float
    backbone_rate: float = 1.0


RECIPE = (
    Stage("crops", 280, 256, 2e-3),
    Stage("regions", 460, 128, 1.5e-3),
    Stage("map", 900, 256, 1e-3),
    Stage("joint", 280, 128, 1e-3, backbone_rate=0.6),
)


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        out: run directory: pools, training state, log, and `checkpoint/` at the end of a stage.
        model: model configuration. stages: the recipe.
        photos: catalogue directory of real photos (standard/ and cluttered/), or None.
        products, product_seed: how many rendered products, and their seed.
        photo_share: share of a batch that is real photos.
        init: checkpoint to start from (with its tokenizer), or None.
        pretrained: load the Hugging Face encoders' weights from their `name`.
        seed: of weights, batches and augmentation. threads: CPU threads, None for all.
        save_seconds: how often the state is saved. validate_every: steps between validations.
    """

    out: Path
    model: ModelConfig = field(default_factory=lambda: preset("tiny"))
    stages: tuple[Stage, ...] = RECIPE
    photos: Path | None = None
    photos_split: str = "train"
    products: int = 6000
    product_seed: int = 1
    photo_share: float = 0.3
    init: Path | None = None
    pretrained: bool = False
    seed: int = 0
    threads: int | None = None
    save_seconds: float = 120.0
    validate_every: int = 100
    weights: LossWeights = field(default_factory=LossWeights)


def train(config: TrainConfig, resume: bool = False, show_progress: bool = True) -> Path:
    """Run the recipe; returns the checkpoint directory `out/checkpoint`.

    Args:
        resume: go on from the state in `out`; without it `out` must hold no state.

    Raises:
        InputError: `out` already has a state and resume is off, or there is nothing to resume.
    """
    out = Path(config.out)
    state = out / "state"
    if resume != state.exists():
        wrong = "holds no state to resume" if resume else "already has a run; add --resume"
        raise InputError(f"out: {out} {wrong}")
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    pools, held_out = _pools(config, out / "pools")
    tokenizer_file = _tokenizer(config, pools, out)
    tokenizer = TextTokenizer.from_file(tokenizer_file, config.model.text.max_length)
    shares = [1.0 - config.photo_share, config.photo_share][: len(pools)]
    maker = BatchMaker(pools, shares if len(pools) > 1 else [1.0], config.model, tokenizer)
    trainee = Trainee(_start_model(config))
    run = _Run(config, trainee, maker, held_out, tokenizer, tokenizer_file, show_progress)
    if resume:
        run.progress = load_progress(state)
    for number, stage in enumerate(config.stages):
        if number >= run.progress.stage:
            run.stage(number, stage, restore=resume and number == run.progress.stage)
    write_card(config, out)
    return out / "checkpoint"


class _Run:
    """One run of the recipe: what all stages share."""

    def __init__(
        self,
        config: TrainConfig,
        trainee: Trainee,
        maker: BatchMaker,
        held_out: Pool,
        tokenizer: TextTokenizer,
        tokenizer_file: Path,
        show_progress: bool,
    ) -> None:
        self.config, self.trainee, self.maker = config, trainee, maker
        self.held_out, self.tokenizer, self.tokenizer_file = held_out, tokenizer, tokenizer_file
        self.show_progress = show_progress
        self.out = Path(config.out)
        self.progress = Progress(0, 0, 0.0)

    def stage(self, number: int, stage: Stage, restore: bool) -> None:
        """Run one stage to its end and write the checkpoint."""
        optimizer = _optimizer(self.trainee, stage)
        if restore:
            load_state(self.out / "state", self.trainee, optimizer)
        else:
            self.progress = Progress(number, 0, self.progress.seconds)
        first = self.progress.step
        started, saved = time.monotonic() - self.progress.seconds, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Bar(*columns, TimeRemainingColumn(), disable=not self.show_progress) as bar:
            task = bar.add_task(stage.kind, total=stage.steps, completed=first)
            for step, losses in enumerate(self._losses(number, stage, first), start=first):
                loss = torch.stack(list(losses.values())).sum()
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"stage {stage.kind}, step {step}: loss is {loss}")
                _set_rate(optimizer, stage, step)
                # of all parameters: a stage that trains few must not clip by what another left
                self.trainee.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
                optimizer.step()
                self.progress = Progress(number, step + 1, time.monotonic() - started)
                shown = " ".join(f"{k} {v.item():.2f}" for k, v in losses.items())
                bar.update(task, advance=1, description=f"{stage.kind} {shown}")
                last = step + 1 == stage.steps
                if step % 10 == 0 or last:
                    self._log({k: round(v.item(), 4) for k, v in losses.items()}, stage.kind)
                if (step + 1) % self.config.validate_every == 0 or last:
                    scores = validate(self.trainee.model, self.held_out, self.tokenizer)
                    self._log({k: round(v, 2) for k, v in scores.items()}, stage.kind)
                if time.monotonic() - saved > self.config.save_seconds or last:
                    save_state(self.out / "state", self.trainee, optimizer, self.progress)
                    saved = time.monotonic()
        for name in ("checkpoint", f"checkpoint-{number}-{stage.kind}"):
            save_checkpoint(self.trainee.model, self.tokenizer_file, self.out / name)

    def _losses(self, number: int, stage: Stage, first: int) -> Iterator[dict[str, Tensor]]:
        config, seed = self.config, self.config.seed * 100 + number
        if first >= stage.steps:  # resumed between a stage's last step and its checkpoint
            return
        if stage.kind == "map":
            rows = min(CACHED_SCENES, stage.steps * stage.batch)
            cache = FeatureCache(self.trainee, self.maker, seed, rows, min(stage.batch, 128))
            yield from map_steps(self.trainee, cache, seed, first, stage.steps, stage.batch)
            return
        teacher = None
        if stage.kind == "joint":
            teacher = self._teacher()
        for step in range(first, stage.steps):
            draw = self.maker.start(seed, step, stage.batch)
            yield STEPS[stage.kind](self.trainee, teacher, draw, config.weights)

    def _teacher(self) -> TigerFG:
        """The frozen tower as it was at the end of the last stage before this one."""
        number = self.progress.stage - 1
        if number >= 0:
            kind = self.config.stages[number].kind
            return load_checkpoint(self.out / f"checkpoint-{number}-{kind}")
        if self.config.init is None:
            raise InputError("stages: a joint stage needs earlier stages or --init for its teacher")
        return load_checkpoint(self.config.init)

    def _log(self, values: dict[str, float], stage: str) -> None:
        row = {"stage": stage, "step": self.progress.step, "s": round(self.progress.seconds, 1)}
        with open(self.out / "training_log.jsonl", "a") as file:
            file.write(json.dumps({**row, **values}) + "\n")


def _start_model(config: TrainConfig) -> TigerFG:
    model = TigerFG(config.model, config.pretrained)
    if config.init is not None:
        model.load_state_dict(load_checkpoint(config.init).state_dict())
    return model.train()


def _pools(config: TrainConfig, directory: Path) -> tuple[list[Pool], Pool]:
    """Prepared pools (made once, then memory-mapped) and the held-out rendered pool."""
    for layout in ("standard", "cluttered") if config.photos is not None else ():
        if not (config.photos / layout / "items.jsonl").is_file():
            raise InputError(f"photos: {config.photos} has no {layout}/items.jsonl")
    sizes = (config.model.query_size, config.model.item_size)
    workers = config.threads or len(os.sched_getaffinity(0))
    makers: dict[str, Any] = {
        "rendered": lambda: rendered_pool(
            config.products, config.product_seed, *sizes, workers=workers
        ),
        "held_out": lambda: rendered_pool(
            min(config.products, HELD_OUT),
            config.product_seed + 1000,
            *sizes,
            views=1,
            cluttered=1,
            workers=workers,
        ),
    }
    if config.photos is not None:
        makers["photos"] = lambda: photo_pool(
            config.photos, config.photos_split, *sizes, seed=config.seed
        )
    for name, make in makers.items():
        if not (directory / name).exists():
            log.info("preparing training pictures: %s", name)
            make().save(directory / name)
    pools = [Pool.load(directory / name) for name in makers if name != "held_out"]
    return pools, Pool.load(directory / "held_out")


def _tokenizer(config: TrainConfig, pools: list[Pool], out: Path) -> Path:
    path = out / "tokenizer.json"
    if config.init is not None:
        return Path(config.init) / "tokenizer.json"
    if not path.exists():
        texts = (text for pool in pools for variants in pool.texts for text in variants)
        train_tokenizer(texts, config.model.text.vocab_size, path)
    return path


def _optimizer(trainee: Trainee, stage: Stage) -> torch.optim.AdamW:
    """AdamW; no decay on vectors; the backbone with its own rate; only what the stage trains."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainee.named_parameters():
        if stage.kind == "map" and not name.startswith(("model.text", "model.grounding")):
            continue
        rate = stage.backbone_rate if name.startswith("model.vision") else 1.0
        decay = 0.05 if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [
        {"params": parameters, "rate": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=stage.lr, betas=(0.9, 0.98), foreach=True)


def _set_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> None:
    """Linear warm-up over a twentieth of the stage, then cosine to 2 %."""
    warm = max(1, stage.steps // 20)
    if step < warm:
        factor = (step + 1) / warm
    else:
        factor = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (stage.steps - warm)))
    for group in optimizer.param_groups:
        group["lr"] = stage.lr * factor * group["rate"]
