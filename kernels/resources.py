"""What a compiled kernel asks of the GPU: registers, memory, and the instructions that matter."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Matrix instructions: *GMMA of a warp group (Hopper), UTC*MMA of the tensor memory (Blackwell),
# *MMA of one warp (all).
MATRIX = re.compile(r"(UTC[A-Z]*MMA|[A-Z]GMMA|[A-Z]MMA)\b")
# Global loads of 16 bytes or more a thread: to registers, to shared memory (cp.async), and by the
# tensor memory accelerator.
WIDE_LOAD = re.compile(r"LDG\.(.*\.)?(128|ENL2\.256)\b|LDGSTS\..*\b128\b|UTMALDG|UBLKCP")
GLOBAL_LOAD = re.compile(r"LDG\b|LDGSTS\b|UTMALDG|UBLKCP")
LOCAL = re.compile(r"(LDL|STL)\b")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Resources:
    """Resources of one kernel, read from its cubin.

    Attributes:
        registers: per thread.
        stack, local: bytes of a thread in local memory; both zero where nothing is spilled.
        shared: static shared memory in bytes (Triton's is dynamic, see `Compiled.shared`).
        spills: loads from and stores to local memory.
        matrix: kind of matrix instruction -> how many there are.
        global_loads: load instructions from global memory, wide ones included.
        wide_loads: those that load 16 bytes or more a thread.
        instructions: of the whole kernel.
    """

    registers: int
    stack: int
    local: int
    shared: int
    spills: int
    matrix: dict[str, int]
    global_loads: int
    wide_loads: int
    instructions: int


def inspect(cubin: bytes) -> Resources:
    """Read a cubin with one kernel in it, using the tools of the Triton wheel."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _run("cuobjdump", "--dump-resource-usage", str(file))
        sass = _run("nvdisasm", str(file))
    registers, stack, shared, local = map(int, USAGE.search(usage).groups())
    opcodes = Counter(INSTRUCTION.findall(sass))
    matrix: Counter[str] = Counter()
    for opcode, count in opcodes.items():
        if found := MATRIX.match(opcode):
            matrix[found[1]] += count

    def total(kind: re.Pattern[str]) -> int:
        return sum(count for opcode, count in opcodes.items() if kind.match(opcode))

    return Resources(
        registers=registers,
        stack=stack,
        local=local,
        shared=shared,
        spills=total(LOCAL),
        matrix=dict(sorted(matrix.items())),
        global_loads=total(GLOBAL_LOAD),
        wide_loads=total(WIDE_LOAD),
        instructions=opcodes.total(),
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / tool, *arguments], check=True, capture_output=True, text=True
    ).stdout
