"""Processes that train one model together: started by torchrun, joined by gloo or NCCL.

Every rank draws the same global batch and encodes its own rows. What the contrastive losses
compare is gathered, so that every rank computes the same loss of the global batch and takes the
gradient of its own rows from it; gradients of parameters are then summed. Nothing is averaged:
the sum over ranks is the gradient that one process would have computed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tigerfg.errors import InputError

SETUP_HOURS = 24  # ranks wait this long for the first one to make the training pictures


def cores_of_rank() -> int:
    """This machine's cores that fall to one of the ranks on it, at least 1."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cores)


@dataclass(frozen=True)
class World:
    """The ranks of a run; a run without torchrun is a world of one."""

    rank: int
    size: int
    device: torch.device
    waiting: Any = None  # a process group with a long timeout, for `wait`

    @property
    def first(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """This rank's rows of a global batch of `total`; ranks differ by one row at most."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.size > 1:
            dist.barrier(group=self.waiting)

    def gather(self, own: Tensor, total: int) -> Tensor:
        """Rows of all ranks in the order of the global batch, without gradient.

        Args:
            own: this rank's rows, `rows(total)` of the batch; any dtype and trailing shape.
            total: rows of the global batch.

        Returns:
            (total, ...) on every rank.
        """
        if self.size == 1:
            return own.detach()
        most = -(-total // self.size)
        width = math.prod(own.shape[1:])
        padded = own.new_zeros(most, width)
        padded[: len(own)] = own.detach().reshape(len(own), width)
        sent = padded.view(torch.uint8)  # bytes: every backend moves them
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent)
        sizes = (total * (r + 1) // self.size - total * r // self.size for r in range(self.size))
        parts = [part[:size] for part, size in zip(received, sizes, strict=True)]
        return torch.cat(parts).view(own.dtype).view(total, *own.shape[1:])

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def collect(self, value: Any) -> list[Any]:
        """What JSON can hold, from every rank in order."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(text)], device=self.device), self.size)
        padded = torch.zeros(1, int(lengths.max()), dtype=torch.uint8)
        padded[0, : len(text)] = text
        rows = self.gather(padded.to(self.device), self.size).cpu()
        return [
            json.loads(bytes(row[:n].tolist()))
            for row, n in zip(rows, lengths.tolist(), strict=True)
        ]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum every parameter's gradient over the ranks, in one flat buffer.

        A parameter that no rank has a gradient of keeps none.
        """
        if self.size == 1:
            return
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([used, *(g.reshape(-1) for g in gradients)])
        dist.all_reduce(flat)
        used, *summed = flat.split([len(used), *(p.numel() for p in parameters)])
        for parameter, gradient, ranks in zip(parameters, summed, used.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if ranks else None


@contextmanager
def joined(device: str, timeout: float) -> Iterator[World]:
    """The world of this process: what torchrun says, or this process alone.

    Args:
        device: "auto", "cpu" or "cuda"; a rank takes the GPU of its local rank, and NCCL.
        timeout: seconds after which a collective operation gives a silent rank up.

    Raises:
        InputError: "cuda" where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch sees no GPU; choose cpu or auto")
    chosen = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    if not dist.is_torchelastic_launched():
        yield World(0, 1, chosen)
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        waiting = dist.new_group(backend="gloo", timeout=timedelta(hours=SETUP_HOURS))
        yield World(dist.get_rank(), dist.get_world_size(), chosen, waiting)
    finally:
        dist.destroy_process_group()
