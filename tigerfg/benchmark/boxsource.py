"""Where the boxes of mode ``detect`` come from: the truth with noise, or a detector's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tigerfg.benchmark.boxnoise import check_iou, noise_of, noisy_box
from tigerfg.benchmark.pictures import stored_picture
from tigerfg.boxes import parse_box
from tigerfg.catalog import Item
from tigerfg.errors import InputError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxSource:
    """``label`` for tables; ``box_of(item)`` in pixels of the picture as stored, or None."""

    label: str
    box_of: Callable[[Item], Box | None]


def true_boxes() -> BoxSource:
    """The items' own target boxes."""
    return BoxSource("true box", lambda item: item.target_box)


def noisy_boxes(iou: float, seed: int = 0) -> BoxSource:
    """The target boxes with noise: random boxes of exactly this IoU with them, see `boxnoise`.

    A crop keeps every pixel that its box touches, so on very small pictures the pixels' IoU differs
    a little.

    Raises:
        InputError: ``iou`` is not in (0, 1].
    """
    check_iou(iou)

    def box_of(item: Item) -> Box | None:
        picture = stored_picture(item.image)
        if item.target_box is None or picture is None:
            return item.target_box
        return noisy_box(item.target_box, picture.size, iou, noise_of(item.item_id, seed))

    return BoxSource(f"IoU {iou:g}", box_of)


def predicted_boxes(file: Path) -> BoxSource:
    """Boxes from a file with one ``{"item_id": ..., "box": [x0, y0, x1, y1]}`` a line.

    A null box means that the detector found nothing. Other fields are ignored.

    Raises:
        InputError: the file or one of its lines cannot be used.
    """
    boxes: dict[str, Box | None] = {}
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: the file cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                item_id, box = _box_line(line)
            except InputError as error:
                raise InputError(f"{file}:{number}: {error}") from error
            if item_id in boxes:
                raise InputError(f"{file}:{number}: item_id {item_id!r} is a duplicate")
            boxes[item_id] = box
    if not boxes:
        raise InputError(f'{file}: no boxes: give {{"item_id": ..., "box": [...]}} lines')
    return BoxSource(file.name, lambda item: boxes.get(item.item_id))


def _box_line(line: str) -> tuple[str, Box | None]:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}") from error
    if not isinstance(record, dict) or not {"item_id", "box"} <= record.keys():
        raise InputError("item_id or box is missing")
    box = record["box"]
    return str(record["item_id"]), None if box is None else parse_box(box)
