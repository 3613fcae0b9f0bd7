"""What a run tells while it goes: a jsonl log, TensorBoard events, a progress bar with ETA."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tigerfg.errors import InputError
from tigerfg.training.config import Stage

log = logging.getLogger("tigerfg")

LOG, EVENTS = "training_log.jsonl", "tensorboard"


class Journal:
    """The log of a run's first rank.

    Args:
        out: the run's directory. stages: the recipe; TensorBoard counts steps over all of it.
        log_bytes: what a resumed run keeps of the log: the rest tells of steps done again.
        position: stage and step at which this process begins.

    Raises:
        InputError: the log is shorter than `log_bytes`.
    """

    def __init__(
        self, out: Path, stages: tuple[Stage, ...], log_bytes: int, position: tuple[int, int]
    ) -> None:
        self.file = out / LOG
        self.first_steps = [sum(s.steps for s in stages[:n]) for n in range(len(stages))]
        self.file.touch()
        if self.log_bytes < log_bytes:  # to truncate it would fill it up with zeros
            raise InputError(
                f"resume: {self.file} has {self.log_bytes} bytes, and had {log_bytes} when the "
                "state was saved; put the whole log back"
            )
        with open(self.file, "rb+") as opened:
            opened.truncate(log_bytes)
        self._events = _event_writer(out / EVENTS, self.first_steps[position[0]] + position[1])

    @property
    def log_bytes(self) -> int:
        return self.file.stat().st_size

    def write(self, stage: Stage, number: int, step: int, seconds: float, values: dict) -> None:
        """Add a row to the log, and its numbers to TensorBoard as `<stage>/<name>`."""
        row = {"stage": stage.kind, "step": step, "s": round(seconds, 1), **values}
        with open(self.file, "a") as file:
            file.write(json.dumps(row) + "\n")
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    key = f"{stage.kind}/{name}"
                    self._events.add_scalar(key, value, self.first_steps[number] + step)

    def flush(self) -> None:
        """Let no event wait in memory."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _event_writer(directory: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        log.info("no TensorBoard events: pip install tensorboard")
        return None
    # events of steps that a killed run did and this one does again are hidden
    return SummaryWriter(str(directory), purge_step=done + 1 if done else None)


@contextmanager
def progress_bar(stage: Stage, first: int, shown: bool) -> Iterator[Any]:
    """A function `advance(text)` to be called after every step of a stage."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeRemainingColumn(), disable=not shown) as bar:
        task = bar.add_task(stage.kind, total=stage.steps, completed=first)

        def advance(text: str) -> None:
            bar.update(task, advance=1, description=f"{stage.kind} {text}")

        yield advance
