"""Which layer of a graph a type does not suit: too large its values, or too far from float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from tigerfg.export.emulate import LOW, EmulatedRunner
from tigerfg.export.precision import FLOAT, MOVEMENT, element_types

MASKED = 1e30  # scores that a softmax must not see are -inf, or the least float32


class LayerError(NamedTuple):
    """What one node of a graph loses.

    Attributes:
        node: its name.
        operator: its ONNX operator.
        error: relative RMS error of its output against the float32 graph; inf: not finite.
        gain: `error` less the largest error among the values it is computed from.
    """

    node: str
    operator: str
    error: float
    gain: float


def compare_layers(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    threads: int = 0,
) -> list[LayerError]:
    """Every computing node that both graphs have (by the name of its output), largest gain first.

    Nodes that only move values are left out: their errors are those of what they move.

    Args:
        reference: the float32 graph.
        candidate: the same graph typed or quantised; it is emulated.
        feeds: inputs by name, one row per sample; samples run one by one, to save memory.
        threads: 0 takes all cores.
    """
    types, others = element_types(reference), element_types(candidate)
    makers = {
        node.output[0]: node
        for node in reference.graph.node
        if node.op_type not in MOVEMENT
        and types.get(node.output[0]) == FLOAT
        and others.get(node.output[0]) in LOW | {FLOAT}
    }
    errors = _errors(reference, candidate, feeds, list(makers), threads)
    sources = _sources(reference, set(makers))
    found = []
    for name, node in makers.items():
        before = max((errors[source] for source in sources[name]), default=0.0)
        gain = 0.0 if math.isinf(before) else errors[name] - before
        found.append(LayerError(node.name, node.op_type, errors[name], gain))
    return sorted(found, key=lambda entry: entry.gain, reverse=True)


def large_layers(
    proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], limit: float, threads: int = 0
) -> set[str]:
    """Names of the nodes that read or give a value beyond +-`limit`, masked scores aside.

    Args:
        proto: a float32 graph.
        feeds, threads: as for `compare_layers`.
    """
    types = element_types(proto)
    made = [name for node in proto.graph.node for name in node.output]
    values = [name for name in made if types.get(name) == FLOAT]
    runner = EmulatedRunner(proto, threads, values)
    large: set[str] = set()
    for sample in _samples(feeds):
        for name, value in runner.run(sample).items():
            sizes = np.abs(value)
            if np.any((sizes > limit) & (sizes < MASKED)):
                large.add(name)
    return {node.name for node in proto.graph.node if large & {*node.input, *node.output}}


def format_layers(errors: Sequence[LayerError], top: int = 10) -> str:
    """The first `top` of them as a table for the terminal."""
    lines = [f"{'gain':>9}  {'error':>9}  {'operator':<18}  node"]
    lines += [
        f"{entry.gain:9.2e}  {entry.error:9.2e}  {entry.operator:<18}  {entry.node}"
        for entry in errors[:top]
    ]
    return "\n".join(lines)


def _errors(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    names: list[str],
    threads: int,
) -> dict[str, float]:
    """Relative RMS error of every value over all samples."""
    graphs = [EmulatedRunner(proto, threads, names) for proto in (reference, candidate)]
    sums = dict.fromkeys(names, (0.0, 0.0))
    for sample in _samples(feeds):
        expected, found = (graph.run(sample) for graph in graphs)
        for name, (noise, power) in sums.items():
            more, much = _energies(expected.pop(name), found.pop(name))
            sums[name] = noise + more, power + much
    return {
        name: math.sqrt(noise / power) if power else (math.inf if noise else 0.0)
        for name, (noise, power) in sums.items()
    }


def _samples(feeds: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for row in range(len(next(iter(feeds.values())))):
        yield {name: value[row : row + 1] for name, value in feeds.items()}


def _energies(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Squares of the difference and of the expected value, summed where nothing is masked."""
    real = np.abs(expected) < MASKED
    expected, found = expected[real].astype(np.float64), found[real].astype(np.float64)
    if not np.isfinite(found).all():
        return math.inf, float(np.sum(expected**2))
    return float(np.sum((found - expected) ** 2)), float(np.sum(expected**2))


def _sources(graph: onnx.ModelProto, measured: set[str]) -> dict[str, set[str]]:
    """For every measured value the measured values it is computed from, through all others."""
    direct: dict[str, set[str]] = {}
    through: dict[str, set[str]] = {}  # what stands for a value when it is read
    for node in graph.graph.node:
        inputs = set().union(*(through.get(name, set()) for name in node.input))
        for name in node.output:
            direct[name] = inputs
            through[name] = {name} if name in measured else inputs
    return {name: direct[name] for name in measured}
