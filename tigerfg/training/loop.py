"""The training loop: the staged recipe, with checkpoints, log, validation and resume."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path

import torch

from tigerfg.errors import InputError, TigerfgError
from tigerfg.model.checkpoint import load_checkpoint, save_checkpoint
from tigerfg.model.towers import TigerFG
from tigerfg.training.card import write_card
from tigerfg.training.config import Stage, TrainConfig
from tigerfg.training.distributed import World, cores_of_rank, joined
from tigerfg.training.gradients import slices_of, step_gradients
from tigerfg.training.inputs import Inputs
from tigerfg.training.item_stages import JointStage, RegionStage
from tigerfg.training.journal import Journal, log, progress_bar
from tigerfg.training.map_stage import MapStage
from tigerfg.training.optimizer import Optimizer, make_optimizer, set_rate
from tigerfg.training.precision import cast_encoders, resolve
from tigerfg.training.prefetch import Prefetched, worker_count
from tigerfg.training.recipe import check_recipe, recipe_of
from tigerfg.training.stages import CropStage, Trainee, TrainingStage
from tigerfg.training.state import STATE, Progress, load_progress, load_state, save_state
from tigerfg.training.teacher import Teacher
from tigerfg.training.validate import validate

CLIP = 1.0  # largest norm of the gradient
LOG_EVERY = 10  # steps


def train(config: TrainConfig, resume: bool = False, show_progress: bool = True) -> Path:
    """Run the recipe; returns the checkpoint directory `out/checkpoint`.

    Under torchrun the ranks share every batch: results are those of one process, but for the
    order of sums. A killed run goes on with `resume`, to the bit with as many ranks, as many
    threads and the same `micro_batch`; with others, but for the order of sums.

    Args:
        resume: go on from the state in `out`; without it `out` must hold no state or checkpoint.

    Raises:
        InputError: `out` already has a state or a checkpoint and resume is off, or there is
            nothing to resume, or it is of another recipe.
        TigerfgError: a loss or gradient is not finite, or a stage's gradients were all zero; the
            last state is untouched.
    """
    file = Path(config.out) / STATE
    if resume != file.exists():
        wrong = "holds no state to resume" if resume else "already has a run; add --resume"
        raise InputError(f"out: {config.out} {wrong}")
    made = [made for name in ("checkpoint", "checkpoint-*") for made in file.parent.glob(name)]
    if made and not resume:
        raise InputError(f"out: {config.out} holds {made[0].name}; name another directory")
    if resume:
        check_recipe(load_progress(file).recipe, recipe_of(config))
    torch.set_num_threads(config.threads or cores_of_rank())
    Path(config.out).mkdir(parents=True, exist_ok=True)
    with joined(config.device, config.rank_timeout) as world:
        run = _Run(config, world, show_progress and world.first)
        if resume:
            run.resume(file)
        run.start()
        for number, stage in enumerate(config.stages):
            if number >= run.progress.stage:
                run.stage(number, stage, restore=resume and number == run.progress.stage)
        if world.first:
            run.journal.close()
            write_card(config, run.progress, world.size, run.inputs.one_view)
    return Path(config.out) / "checkpoint"


class _Run:
    """One run of the recipe: what all stages share."""

    def __init__(self, config: TrainConfig, world: World, show_progress: bool) -> None:
        self.config, self.world, self.show_progress = config, world, show_progress
        self.out = Path(config.out)
        self.state = self.out / STATE
        self.inputs = Inputs(config, world)
        precision = resolve(config.precision, world.device)
        self.progress = Progress(recipe_of(config), precision=precision)

    def resume(self, file: Path) -> None:
        """Take up the progress of a saved state."""
        saved = load_progress(file)
        if self.config.precision not in ("auto", saved.precision):
            raise InputError(
                f"precision: the run was in {saved.precision}; resume it in that, or leave the "
                "option out"
            )
        self.progress = saved

    def start(self) -> None:
        """Make the model, and open the log on the first rank."""
        config = self.config
        torch.manual_seed(config.seed)
        model = start_model(config).to(self.world.device)
        self.trainee = Trainee(cast_encoders(model, self.progress.precision, self.world.device))
        self.trainee.to(self.world.device)
        # what was skipped when the pools were made: the same on every rank
        self.skipped = Counter(self.progress.skipped) or Counter(self.inputs.maker.skipped)
        if self.world.first:
            position = (self.progress.stage, self.progress.step)
            self.journal = Journal(self.out, config.stages, self.progress.log_bytes, position)
            log.info(
                "training on %s in %s, %d process(es)",
                self.world.device,
                self.progress.precision,
                self.world.size,
            )

    def stage(self, number: int, stage: Stage, restore: bool) -> None:
        """Run one stage to its end and write the checkpoint."""
        if stage.batch < self.world.size:
            raise InputError(f"stages: a batch of {stage.batch} is less than a row a rank")
        optimizer = make_optimizer(self.trainee, stage, self.config.layer_decay)
        teacher = self._teacher(number) if stage.kind == "joint" else None
        if restore:
            load_state(self.state, self.trainee, optimizer, teacher)
        else:
            self.progress.stage, self.progress.step, self.progress.learnt = number, 0, False
        first = self.progress.step
        if first < stage.steps:  # else resumed between the last step and the checkpoint
            self._steps(number, stage, optimizer, teacher)
        if self.world.first:
            for name in ("checkpoint", f"checkpoint-{number}-{stage.kind}"):
                save_checkpoint(self.trainee.model, self.inputs.tokenizer_file, self.out / name)
        self.world.wait()  # the next stage's teacher is read from there

    def _steps(
        self,
        number: int,
        stage: Stage,
        optimizer: Optimizer,
        teacher: Teacher | None,
    ) -> None:
        config, world, progress = self.config, self.world, self.progress
        self.counted = Counter(self.inputs.maker.skipped)
        first = progress.step
        started, saved = time.monotonic() - progress.seconds, time.monotonic()
        source = self._ahead(self._source(number, stage, teacher), stage, first)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        with progress_bar(stage, first, self.show_progress) as advance:
            for step in range(first, stage.steps):
                losses = step_gradients(
                    self.trainee, source, step, stage.batch, config.micro_batch, world
                )
                world.sum_gradients(trained)
                norm = torch.nn.utils.clip_grad_norm_(trained, CLIP).item()
                values = {name: loss.item() for name, loss in losses.items()}
                if bad := _not_finite({**values, "gradient": norm}):
                    raise TigerfgError(
                        f"stage {stage.kind}, step {step}: {bad}; nothing of this step was saved, "
                        f"and --resume would come to the same: {self._other_run(stage)}"
                    )
                set_rate(optimizer, stage, step)
                optimizer.step()
                if teacher is not None:
                    teacher.follow(self.trainee.model)
                progress.step, progress.seconds = step + 1, time.monotonic() - started
                progress.learnt |= norm > 0
                advance(" ".join(f"{name} {value:.2f}" for name, value in values.items()))
                last = step + 1 == stage.steps
                logs = step % LOG_EVERY == 0 or last
                saves = last or self._agreed(time.monotonic() - saved > config.save_seconds)
                if logs or saves:
                    self._count(source)
                if logs:
                    self._log(number, stage, {k: round(v, 6) for k, v in values.items()})
                if last and not progress.learnt:
                    raise TigerfgError(self._nothing_learnt(stage))
                if (step + 1) % config.validate_every == 0 or last:
                    self._validate(number, stage)
                if saves:
                    self._save(optimizer, teacher)
                    saved = time.monotonic()

    def _source(self, number: int, stage: Stage, teacher: Teacher | None) -> TrainingStage:
        """What the stage's steps draw and compute."""
        maker, seed, device = self.inputs.maker, self.config.seed * 100 + number, self.world.device
        if stage.kind == "crops":
            return CropStage(maker, seed, stage.batch, device)
        if stage.kind == "regions":
            return RegionStage(maker, seed, stage.batch, device)
        if stage.kind == "map":
            model = self.config.model
            picture = 2 * model.item_patches * model.vision.width  # bytes, in float16
            kept = int(self.config.map_cache_gib * 2**30) // picture
            rows = max(1, min(kept, stage.steps * stage.batch))
            return MapStage(self.trainee.model, maker, seed, rows, stage.batch, self.world)
        assert teacher is not None
        return JointStage(maker, seed, stage.batch, device, teacher.model, self.config.weights)

    def _ahead(self, source: TrainingStage, stage: Stage, first: int) -> TrainingStage:
        """The same batches, made ahead where processes are to spare."""
        workers = worker_count(self.config.workers, self.world.device)
        if not workers:
            return source
        slices = slices_of(self.world.rows(stage.batch), self.config.micro_batch)
        plan = ((step, rows) for step in range(first, stage.steps) for rows in slices)
        return Prefetched(source, plan, workers)

    def _teacher(self, number: int) -> Teacher:
        """The towers as they were at the end of the last stage before this one, for pictures of
        the sizes that are trained on now."""
        config = self.config
        source = config.init
        if number > 0:
            source = self.out / f"checkpoint-{number - 1}-{config.stages[number - 1].kind}"
        assert source is not None  # as the configuration has checked
        model = TigerFG(self.trainee.model.config).eval()
        model.start_from(load_checkpoint(source))
        model.to(self.world.device)
        cast_encoders(model, self.progress.precision, self.world.device)
        return Teacher(model, config.teacher_decay if config.teacher == "ema" else None)

    def _agreed(self, first: bool) -> bool:
        """What the first rank says, on every rank."""
        said = torch.tensor(float(first and self.world.first), device=self.world.device)
        return bool(self.world.sum(said))

    def _count(self, source: TrainingStage) -> None:
        """Add what was skipped by all ranks since the last call to the progress."""
        seen = self.inputs.maker.skipped + source.skipped
        counts = self.world.collect(dict(seen - self.counted))
        self.counted = seen
        for count in counts:
            self.skipped.update(count)
        self.progress.skipped = dict(self.skipped)
        self.progress.told &= not any(counts)

    def _log(self, number: int, stage: Stage, values: dict[str, float]) -> None:
        """Losses, and what was skipped where that is more than at the last row."""
        progress = self.progress
        told = {} if progress.told else {"skipped": dict(self.skipped)}
        progress.told = True
        if self.world.first:
            self.journal.write(stage, number, progress.step, progress.seconds, {**values, **told})

    def _validate(self, number: int, stage: Stage) -> None:
        if not self.world.first:
            return
        scores = validate(self.trainee.model, self.inputs.held_out, self.inputs.tokenizer)
        values = {name: round(value, 2) for name, value in scores.items()}
        self.journal.write(stage, number, self.progress.step, self.progress.seconds, values)

    def _other_run(self, stage: Stage) -> str:
        """What to do when a stage has diverged: a resumed run keeps its rates and precision, so it
        takes another run to change them."""
        advice = f"begin a run in another directory with a lr below {stage.lr:g} and a matrix_lr "
        advice += f"below {stage.matrix_lr:g}"
        if self.progress.precision != "fp32":
            advice += ", or with precision fp32"
        if self.progress.stage > 0 and self.progress.step > 0:  # what it began with was good
            advice += f"; --init {self.out / 'checkpoint'} goes on from the last whole stage"
        return advice

    def _nothing_learnt(self, stage: Stage) -> str:
        skipped = ", ".join(f"{count} × {reason}" for reason, count in self.skipped.items())
        return (
            f"stage {stage.kind}: it learnt nothing, every gradient was 0; data left out: "
            f"{skipped or 'none'}; a step needs usable rows, and of two products at least"
        )

    def _save(self, optimizer: Optimizer, teacher: Teacher | None) -> None:
        if not self.world.first:
            return
        self.journal.flush()
        self.progress.log_bytes = self.journal.log_bytes
        save_state(self.state, self.trainee, optimizer, teacher, self.progress)


def _not_finite(values: dict[str, float]) -> str | None:
    """The first of the values that is no finite number, as "name is value"."""
    return next((f"{k} is {v}" for k, v in values.items() if not math.isfinite(v)), None)


def start_model(config: TrainConfig) -> TigerFG:
    """The model as training begins; in evaluation mode always: no dropout, so that a step can be
    encoded twice and a run resumed to the bit."""
    model = TigerFG(config.model, config.pretrained)
    if config.init is not None:
        model.start_from(load_checkpoint(config.init))
    return model.eval()
