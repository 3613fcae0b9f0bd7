"""The boxes that a box head predicts for a catalogue, as a file.

`tigerfg eval --mode detect --boxes boxes.jsonl` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from tigerfg.benchmark.pictures import stored_picture
from tigerfg.decoding import load_image
from tigerfg.errors import InputError
from tigerfg.files import whole_file
from tigerfg.images import preprocess
from tigerfg.model.baselines import BoxHead
from tigerfg.model.towers import TigerFG
from tigerfg.records import Item, Rejected
from tigerfg.text import TextTokenizer, item_text
from tigerfg.training.box_head import predict_boxes

AT_ONCE = 64
# EXIF orientation -> a point of the upright picture in the picture as stored, both in [0, 1]²
_TO_STORED = {
    1: lambda x, y: (x, y),
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (y, 1 - x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (1 - y, x),
}


def write_boxes(
    file: str | Path,
    items: Iterable[Item],
    model: TigerFG,
    head: BoxHead,
    tokenizer: TextTokenizer | None = None,
) -> list[Rejected]:
    """Predict the box of every item; one {"item_id", "box": [x0, y0, x1, y1]} a line.

    Boxes are pixels of the picture as stored, EXIF orientation taken back.

    Args:
        file: replaced when all is done.
        items: e.g. `read_items(directory)`. model, head: in evaluation mode.
        tokenizer: the checkpoint's, for a head that reads text.

    Returns:
        The items whose picture cannot be used; they have no line.

    Raises:
        InputError: the head reads text and there is no tokenizer.
    """
    if head.config.text_width is not None and tokenizer is None:
        raise InputError("tokenizer: this box head reads text: give the checkpoint's tokenizer")
    file = Path(file)
    rejected: list[Rejected] = []
    with whole_file(file) as staged, open(staged, "w", encoding="utf-8") as lines:
        rest = iter(items)
        while chunk := list(islice(rest, AT_ONCE)):
            for item_id, box in _predict(chunk, model, head, tokenizer, rejected):
                line = {"item_id": item_id, "box": [round(value, 2) for value in box]}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    return rejected


def _predict(
    items: list[Item],
    model: TigerFG,
    head: BoxHead,
    tokenizer: TextTokenizer | None,
    rejected: list[Rejected],
) -> Iterator[tuple[str, list[float]]]:
    spec = model.config.preprocessing
    good, pictures = [], []
    for item in items:
        try:
            size = spec.item_size
            picture = load_image(item.image, target_size=size, interpolation=spec.interpolation)
        except InputError as error:
            rejected.append(Rejected(item.item_id, str(error)))
        else:
            good.append(item)
            pictures.append(picture)
    if not good:
        return
    pixels, _, extents = preprocess(pictures, spec.item_size, spec)
    device = next(model.parameters()).device
    texts = ()
    if head.config.text_width is not None:
        tokens = tokenizer([item_text(item) for item in good])
        texts = tuple(torch.from_numpy(array).to(device) for array in tokens)
    boxes = predict_boxes(
        model, head, torch.from_numpy(pixels).to(device), torch.from_numpy(extents), *texts
    )
    shares = boxes.cpu().double().numpy().reshape(-1, 2, 2) / extents[:, None]
    for item, box in zip(good, shares, strict=True):
        size, orientation = stored_picture(item.image)  # whoever could be decoded has a header
        corners = np.array([_TO_STORED[orientation](x, y) for x, y in box]) * size
        yield item.item_id, [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]
