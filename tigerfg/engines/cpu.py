"""What the CPU is: its name, instruction sets and the threads this process may use."""

from __future__ import annotations

import functools
import os
import platform
from typing import NamedTuple

from tigerfg.settings import whole_number

# Instruction sets that decide which kernels an inference runtime takes, as /proc/cpuinfo has them.
_TELLING = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


class Cpu(NamedTuple):
    """model: marketing name; features: the instruction sets that matter for inference."""

    model: str
    features: tuple[str, ...]

    @property
    def has_bf16(self) -> bool:
        """Whether bfloat16 products run in hardware."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(self.features))


@functools.cache
def cpu() -> Cpu:
    """The CPU of this machine."""
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                key, _, value = line.partition(":")
                fields.setdefault(key.strip().lower(), value.strip())
    except OSError:  # no Linux
        pass
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return Cpu(name, tuple(feature for feature in _TELLING if feature in flags))


def thread_count(threads: int | None) -> int:
    """`threads`, or the number of CPUs that this process may run on; InputError if it is none."""
    if threads is not None:
        return whole_number(threads, "threads")
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
