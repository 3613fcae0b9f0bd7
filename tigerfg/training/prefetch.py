"""Batches made ahead by other processes, so that a GPU does not wait for pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tigerfg.errors import TigerfgError
from tigerfg.training.distributed import cores_of_rank
from tigerfg.training.stages import Encoded, Gathered, Trainee, TrainingStage

MOST_WORKERS = 12
AHEAD = 2  # batches of a worker

Key = tuple[int, int, int]  # step, first row, end of the rows


def worker_count(asked: int | None, device: torch.device) -> int:
    """How many processes make batches; unless told none on the CPU, which trains with its cores."""
    if asked is not None:
        return asked
    return min(cores_of_rank() - 1, MOST_WORKERS) if device.type == "cuda" else 0


class Prefetched:
    """A `TrainingStage` whose batches are made by processes of a torch DataLoader, in order.

    The batches are those of the stage itself, bit for bit: each is made from its own seed. A bad
    row of a shard is counted once by every process that meets it.

    Args:
        plan: the steps and rows that will be asked for, in this order.
        workers: processes, 1 or more. They are forked: what the stage holds is not copied.
    """

    def __init__(
        self, stage: TrainingStage, plan: Iterable[tuple[int, slice]], workers: int
    ) -> None:
        self.stage, self.maker, self._counted = stage, stage.maker, Counter[str]()
        keys = [(step, rows.start, rows.stop) for step, rows in plan]
        self._batches: Iterator[tuple[Key, Any, Counter[str]]] = iter(
            DataLoader(
                _Planned(stage, keys),
                batch_size=None,
                collate_fn=_as_made,
                num_workers=workers,
                prefetch_factor=AHEAD,
                multiprocessing_context="fork",
                worker_init_fn=_quiet,
            )
        )

    @property
    def skipped(self) -> Counter[str]:
        return self.stage.skipped + self._counted

    def make(self, step: int, rows: slice) -> Any:
        key, batch, counted = next(self._batches)
        if key != (step, rows.start, rows.stop):
            raise TigerfgError(f"prefetch: made {key}, asked for step {step}, {rows}")
        self._counted += counted
        return batch

    def prepare(self, made: Any) -> Any:
        return self.stage.prepare(made)

    def encode(self, trainee: Trainee, batch: Any) -> Encoded:
        return self.stage.encode(trainee, batch)

    def contrast(self, trainee: Trainee, batch: Gathered) -> dict[str, torch.Tensor]:
        return self.stage.contrast(trainee, batch)


class _Planned(Dataset):
    """The plan's batches, each with its key and what was skipped while it was made."""

    def __init__(self, stage: TrainingStage, keys: list[Key]) -> None:
        self._stage, self._keys = stage, keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[Key, Any, Counter[str]]:
        step, start, stop = self._keys[index]
        before = self._skipped()
        batch = self._stage.make(step, slice(start, stop))
        return self._keys[index], batch, self._skipped() - before

    def _skipped(self) -> Counter[str]:
        return self._stage.maker.skipped + self._stage.skipped


def _as_made(made: Any) -> Any:
    """In place of torch's conversion, which makes lists of tuples."""
    return made


def _quiet(worker: int) -> None:
    """The tokenizer's own threads do not survive a fork; one process a core is enough."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
