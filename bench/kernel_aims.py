"""What the grounding kernel set out to reach, held against measured rows. Never asserted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from kernel_shapes import SHAPES, Shape

Row = dict[str, Any]
Rows = dict[str, Row]  # contender -> its row, of one shape


class Aim(NamedTuple):
    """status: met; missed; incomplete: some shapes are not measured, the others reach it; no data.

    found: the worst value and its shape, and how many shapes reach the aim.
    """

    name: str
    status: str
    found: str


def by_shape(rows: Sequence[Row]) -> dict[Shape, Rows]:
    """Grounding's rows without those of the tower's inputs."""
    table: dict[Shape, Rows] = {}
    for row in rows:
        if row["op"] == "grounding" and not row["tower"]:
            shape = Shape(**{field.name: row[field.name] for field in fields(Shape)})
            table.setdefault(shape, {})[row["contender"]] = row
    return table


def speed_up(slower: str, faster: str, rows: Rows) -> float | None:
    """Ratio of medians; None without both."""
    if slower not in rows or faster not in rows:
        return None
    return rows[slower]["ms"] / rows[faster]["ms"]


def error_ratio(rows: Rows) -> float | None:
    """The largest error of an output over torch's own in this dtype."""
    if "tigerfg" not in rows:
        return None
    own, torch = rows["tigerfg"]["error"], rows["tigerfg"]["torch_error"]
    return max(own[name] / max(torch[name], 1e-7) for name in own)  # 1e-7: float32's rounding


def aims(rows: Sequence[Row], runs: dict[str, Any], shapes: Sequence[Shape] = SHAPES) -> list[Aim]:
    """Every aim over the shapes it speaks of."""
    table = by_shape(rows)

    def copy_percent(found: Rows) -> float | None:
        return found["tigerfg"]["copy_percent"] if "tigerfg" in found else None

    def replay(found: Rows) -> float | None:
        if "tigerfg" not in found or found["tigerfg"]["replay_ms"] is None:
            return None
        row = found["tigerfg"]
        return row["replay_ms"] / runs[row["run"]]["empty_replay_ms"]

    def over(slower: str, faster: str = "tigerfg") -> Callable[[Rows], float | None]:
        return lambda found: speed_up(slower, faster, found)

    def aim(name: str, batches: range, value: Callable[[Rows], float | None], bound: float) -> Aim:
        """A bound above zero is a least value, one below zero the negative of a largest one."""
        spoken_of = [shape for shape in shapes if shape.batch in batches]
        values = {shape: value(table.get(shape, {})) for shape in spoken_of}
        known = {shape: number for shape, number in values.items() if number is not None}
        if not known:
            return Aim(name, "no data", f"0 of {len(spoken_of)} shapes measured")
        sign = 1 if bound > 0 else -1
        reached = [shape for shape, number in known.items() if sign * number >= bound]
        worst = min(known, key=lambda shape: sign * known[shape])
        status = "missed"
        if len(reached) == len(known):
            status = "met" if len(known) == len(spoken_of) else "incomplete"
        return Aim(
            name,
            status,
            f"worst {known[worst]:.2f} ({worst}); {len(reached)} of {len(known)} shapes reach it, "
            f"{len(known)} of {len(spoken_of)} measured",
        )

    large, several, one, every = range(256, 1 << 31), range(8, 1 << 31), range(1, 2), range(1 << 31)
    return [
        aim("percent of copy bandwidth >= 85 at batch >= 256", large, copy_percent, 85),
        aim("x compiled absorbed >= 1.5 at batch >= 8", several, over("absorbed compiled"), 1.5),
        aim("x compiled usual >= 5 at batch >= 8", several, over("usual compiled"), 5),
        aim(
            "x compiled usual >= 5 at batch >= 8, projections counted in ours",
            several,
            over("usual compiled", "tigerfg + projections"),
            5,
        ),
        aim("graph replay over an empty kernel's <= 2 at batch 1", one, replay, -2),
        aim("error over torch's own in the same dtype <= 2", every, error_ratio, -2),
    ]
