"""Training speed: pairs a second of the joint stage, by preset and precision.

    python bench/training_bench.py [--presets tiny base small] [--batch 128] [--results FOLDER]

Random weights, all losses, rendered products. `step_s`: with a few batches that were made
beforehand, which is the device and the copies to it; `loop_s`: as in training, with batches made
ahead by other processes. Medians.

The results, training.json (on a CPU training_cpu.json) in --results, in $RESULTS_DIR or in
bench/results/, are written after every row, the most telling rows first: a run that is cut short
leaves what it measured, and a further one with other options adds to it.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from conditions import conditions
from engine_report import Results, markdown

from tigerfg.errors import TigerfgError
from tigerfg.model import ModelConfig, TigerFG, preset
from tigerfg.text import TextTokenizer
from tigerfg.training.batches import BatchMaker
from tigerfg.training.config import LossWeights, Stage
from tigerfg.training.distributed import World, joined
from tigerfg.training.gradients import step_gradients
from tigerfg.training.item_stages import JointStage
from tigerfg.training.optimizer import make_optimizer, set_rate
from tigerfg.training.pool import Pool
from tigerfg.training.precision import cast_encoders
from tigerfg.training.prefetch import Prefetched, worker_count
from tigerfg.training.prepare import rendered_pool
from tigerfg.training.stages import Trainee, TrainingStage
from tigerfg.training.tokenizer import train_tokenizer

HERE = Path(__file__).resolve().parent
READY = 4  # batches made beforehand
CHUNK = 16  # products, at least, that one process renders
IDENTITY = ("preset", "precision", "batch")
SAME_MACHINE = ("gpu", "cpu", "threads")


class _Ready:
    """A stage that gives a few batches again and again."""

    def __init__(self, stage: TrainingStage, size: int) -> None:
        self.stage = stage
        self._made = [stage.make(step, slice(0, size)) for step in range(READY)]

    def make(self, step: int, rows: slice) -> Any:
        return self._made[step % READY]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)


@cache
def training_pictures(products: int, query_size: int, item_size: int) -> Pool:
    """Rendered by all cores, once for all rows whose models take pictures of these sizes."""
    cores = len(os.sched_getaffinity(0))
    chunk = max(CHUNK, -(-products // cores))
    return rendered_pool(products, 1, query_size, item_size, workers=cores, chunk=chunk)


def measure(
    config: ModelConfig, precision: str, options: argparse.Namespace, world: World
) -> dict[str, Any]:
    """One row: seconds of a step by the device alone and in the loop, memory, and parameters."""
    torch.manual_seed(0)
    model = TigerFG(config).eval().to(world.device)
    trainee = Trainee(cast_encoders(model, precision, world.device)).to(world.device)
    teacher = cast_encoders(copy.deepcopy(model), precision, world.device).requires_grad_(False)
    pool = training_pictures(options.products, config.query_size, config.item_size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        words = (text for texts in pool.texts for text in texts)
        train_tokenizer(words, config.text.vocab_size, file)
        tokenizer = TextTokenizer.from_file(file, config.text.max_length)
    maker = BatchMaker([pool], [1.0], config, tokenizer)
    recipe = Stage("joint", 10**6, options.batch, 1e-5, matrix_lr=1e-5)
    stage = JointStage(maker, 0, options.batch, world.device, teacher, LossWeights())
    optimizer = make_optimizer(trainee, recipe)
    set_rate(optimizer, recipe, 0)

    def step_of(source: TrainingStage) -> Callable[[int], None]:
        def step(number: int) -> None:
            losses = step_gradients(trainee, source, number, options.batch, None, world)
            optimizer.step()
            assert all(torch.isfinite(loss) for loss in losses.values())  # waits for the device

        return step

    row: dict[str, Any] = {"preset": config.name, "precision": precision, "batch": options.batch}
    row["step_s"] = _median(step_of(_Ready(stage, options.batch)), options.seconds)
    workers = worker_count(None, world.device) or 1
    plan = ((number, slice(0, options.batch)) for number in range(20_000))
    row["loop_s"] = _median(step_of(Prefetched(stage, plan, workers)), options.seconds)
    row["workers"] = workers
    if world.device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    row["parameters"] = sum(p.numel() for p in model.parameters())
    print(row, flush=True)
    return row


def _median(step: Callable[[int], None], seconds: float) -> float:
    """Median seconds of a step, the first ones left out."""
    taken: list[float] = []
    until = None
    for number in range(20_000):
        started = time.perf_counter()
        step(number)
        taken.append(time.perf_counter() - started)
        if number == 4:
            until = time.perf_counter() + seconds
        if number > 9 and until is not None and time.perf_counter() > until:
            break
    return statistics.median(taken[5:])


def measure_all(options: argparse.Namespace) -> None:
    """Measure and write the rows one by one; at the end, however it comes, print the table.

    Raises:
        InputError: a preset or device is not there; nothing was measured.
    """
    models = [preset(name) for name in options.presets]
    with joined(options.device, 60.0) as world:
        gpu = torch.cuda.get_device_name() if world.device.type == "cuda" else None
        file = options.results / ("training.json" if gpu else "training_cpu.json")
        results = Results(file, {**conditions(), "gpu": gpu}, IDENTITY, SAME_MACHINE)
        try:
            for precision in options.precisions:
                for config in models:
                    results.add(measure(config, precision, options, world))
        finally:
            print("\n".join(table(results.rows)), flush=True)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    head = ["preset", "precision", "batch", "pairs/s, device", "pairs/s, loop", "peak GiB"]
    body = [
        [
            row["preset"],
            row["precision"],
            str(row["batch"]),
            f"{row['batch'] / row['step_s']:.0f}",
            f"{row['batch'] / row['loop_s']:.0f}",
            f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "–",
        ]
        for row in rows
    ]
    return markdown(head, body)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["tiny", "base", "small"])
    parser.add_argument(
        "--precisions", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"]
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--products", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring each figure")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--results", type=Path, default=Path(os.environ.get("RESULTS_DIR") or HERE / "results")
    )
    try:
        measure_all(parser.parse_args(arguments))
    except TigerfgError as error:
        print(" ".join(str(error).split()))
        return 1
    except KeyboardInterrupt:
        print("cut off: what is missing can be added with --presets and --precisions")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
