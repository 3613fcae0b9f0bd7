"""Launch parameters per architecture, from the small JSON tables in `tuning/`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

ARCHITECTURES = (80, 86, 89, 90, 100, 120)

# Shared memory that one block may ask for, in bytes (CUDA C++ programming guide, "compute
# capabilities": the opt-in maximum per block).
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}


@torch.compiler.assume_constant_result
def architecture(device: torch.device) -> int:
    """The newest architecture with a table that is not newer than the device's; 90 on a CPU."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    known = [arch for arch in ARCHITECTURES if arch <= 10 * major + minor]
    if not known:
        raise ValueError(f"device: {device} has compute capability {major}.{minor}; 8.0 is needed")
    return known[-1]


@functools.cache
def table(arch: int) -> dict[str, Any]:
    """The table of one architecture: `measured` says on which GPU, null where on none."""
    file = Path(__file__).parent / "tuning" / f"sm_{arch}.json"
    return json.loads(file.read_text())


def find_parameters(operator: str, arch: int, **quantities: int) -> dict[str, int] | None:
    """The first rule of an operator whose upper bounds hold for the quantities; None without one.

    Args:
        operator: "grounding", "tail", "pooling" or "preprocess".
        quantities: what the rules may bound, e.g. bytes (of an element), width, queries.
    """
    for rule in table(arch)[operator]:
        if all(quantities[name] <= bound for name, bound in rule["up_to"].items()):
            return rule["use"]
    return None


def launch_parameters(operator: str, arch: int, **quantities: int) -> dict[str, int]:
    """`find_parameters`, but a ValueError where no rule holds."""
    use = find_parameters(operator, arch, **quantities)
    if use is None:
        described = ", ".join(f"{name}={value}" for name, value in quantities.items())
        raise ValueError(f"{operator}: no launch parameters on sm_{arch} for {described}")
    return use


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a device has; 132 (an H200's) on a CPU."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count
