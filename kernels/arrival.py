"""The last of several programs goes on with what all of them wrote: two steps in one launch.

The result does not depend on which program comes last, because that one reads everything from
memory in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_counters: dict[tuple[torch.device, int], Tensor] = {}


@triton.jit
def last_to_arrive(counter_ptr, expected):
    """Whether this program is the last of `expected` to come here; the counter returns to zero.

    Everything that the programs stored before is visible to the last one's loads with
    cache_modifier ".cg" (L2; the L1 cache of its multiprocessor may be older).
    """
    tl.debug_barrier()  # all threads of this program have stored before one of them counts it
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    last = arrived == expected - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


def counters(device: torch.device, count: int) -> Tensor:
    """At least `count` zeroed int32 counters, kept for the current stream of a device.

    Kernels leave them at zero, so no launch has to clear them; launches of one stream never
    overlap, those of two streams have counters of their own. A CUDA graph may be replayed on any
    stream, so what is captured gets new counters, which the graph itself clears.
    """
    if device.type != "cuda":
        return _kept(device, 0, count)
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros(count, dtype=torch.int32, device=device)
        return _kept(device, torch.cuda.current_stream().cuda_stream, count)


def _kept(device: torch.device, stream: int, count: int) -> Tensor:
    kept = _counters.get((device, stream))
    if kept is None or len(kept) < count:
        kept = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
        _counters[device, stream] = kept
    return kept
