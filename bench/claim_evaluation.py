"""Every row that one trained checkpoint gives: its item tower, and baselines of the same towers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tigerfg.attention_crop import AttentionCrop
from tigerfg.benchmark.boxsource import noisy_boxes, predicted_boxes
from tigerfg.benchmark.evaluate import Row, evaluate_rows
from tigerfg.benchmark.evaluation import Evaluation
from tigerfg.benchmark.selection import Selection, correct_ids
from tigerfg.encoder import Encoder
from tigerfg.engines.torch import TorchEngine
from tigerfg.errors import InputError
from tigerfg.images import Preprocessing
from tigerfg.model import TigerFG, load_checkpoint
from tigerfg.model.checkpoint import TOKENIZER, find_checkpoint, fingerprint
from tigerfg.text import TextTokenizer
from tigerfg.training.box_files import write_boxes
from tigerfg.training.box_head import train_box_head
from tigerfg.training.config import TrainConfig
from tigerfg.training.distributed import joined
from tigerfg.training.inputs import Inputs
from tigerfg.training.precision import cast_encoders, resolve

IOUS = (0.9, 0.7, 0.5)
GALLERIES = (100, 500, 1000, 2000)
BEFORE = "towers: "  # begins the names of rows of the checkpoint before the joint stage


@dataclass(frozen=True)
class DataSet:
    """Items and queries to evaluate on; split None: all of them."""

    name: str
    directory: Path
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> DataSet:
        """From NAME=DIR:SPLIT, the split left out for all.

        Raises:
            InputError: not of this form.
        """
        name, _, place = text.partition("=")
        directory, _, split = place.partition(":")
        if not re.fullmatch(r"[\w.]+(-[\w.]+)*", name) or not directory:
            raise InputError(f"--real: {text!r} is not NAME=DIR or NAME=DIR:SPLIT")
        return cls(name, Path(directory), split or None)

    def read(self) -> Selection:
        """Its items and queries; what cannot be used is listed in the selection.

        Raises:
            InputError: no items.jsonl or queries.jsonl there, or nothing to evaluate in them.
        """
        for file in ("items.jsonl", "queries.jsonl"):
            if not (self.directory / file).is_file():
                raise InputError(f"data set {self.name}: {self.directory} has no {file}")
        chosen = Selection.read(self.directory, self.split)
        known = {item.item_id for item in chosen.items}
        if not any(known.intersection(correct_ids(query)) for query in chosen.queries):
            raise InputError(
                f"data set {self.name}: no query of {self.directory} has one of its item_ids "
                "among the items"
            )
        return chosen


@dataclass(frozen=True)
class _Checkpoint:
    """What the encoder and the evaluation ask of a bundle."""

    name: str
    fingerprint: str
    embedding_dim: int
    preprocessing: Preprocessing
    attention_crop: AttentionCrop | None
    tokenizer: TextTokenizer


@dataclass(frozen=True)
class _Boxes:
    """A detector's boxes for a data set; rejected: items it gave none for."""

    file: Path
    rejected: int


def evaluate_items(
    checkpoint: Path, data: Sequence[DataSet], threads: int | None
) -> list[dict[str, Any]]:
    """One row a data set, named "item"; without grounding where the model's map is flat."""
    with _opened(checkpoint, threads) as (model, encoder):
        rows = [row for part in data for row in _rows(encoder, part, {"item": Row()}, {})]
    if model.config.item_tower == "global":
        for row in rows:
            row.pop("grounding", None)
    return rows


def evaluate_all(
    checkpoint: Path,
    towers: Path | None,
    data: Sequence[DataSet],
    config: TrainConfig,
    threads: int | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the items, and of the query tower on crops of the items' pictures.

    Crops by true boxes, noisy ones and a trained detector's without and with the text; the whole
    picture; the text alone; and, of a model with an attention crop, the item tower without it.

    Args:
        checkpoint: whose towers embed, and on whose features the detectors are trained.
        towers: the checkpoint before the joint stage: its query tower gives rows on the same
            crops. None where there is none.
        config: of the checkpoint's run: for the detectors' training pictures, and where their
            boxes are written.

    Returns:
        The rows; and of every detector the IoU with held-out boxes (`BoxHeadRun.mean_iou`).
    """
    rows: list[dict[str, Any]] = []
    with _opened(checkpoint, threads) as (model, encoder):
        heads = _box_heads(config, model)
        boxes = {part.name: _predict(part, model, heads, encoder, config.out) for part in data}
        for part in data:
            own = boxes[part.name]
            wanted = {"item": Row(), "text": Row("text"), **_query_rows(own)}
            rows += _rows(encoder, part, wanted, own)
            if encoder.bundle.attention_crop:
                alone = Encoder(replace(encoder.bundle, attention_crop=None), encoder.engine)
                with closing(alone):
                    rows += _rows(alone, part, {"item tower": Row()}, {})
    if towers is not None:
        with _opened(towers, threads) as (_, encoder):
            for part in data:
                own = boxes[part.name]
                for row in _rows(encoder, part, _query_rows(own), own):
                    rows.append({**row, "row": BEFORE + row["row"]})
    told = {title: {"iou": run.mean_iou, "held_out": run.held_out} for title, run in heads.items()}
    return rows, told


@contextmanager
def _opened(checkpoint: Path, threads: int | None) -> Iterator[tuple[TigerFG, Encoder]]:
    device = torch.device("cpu")
    model = load_checkpoint(checkpoint)
    cast_encoders(model, resolve("auto", device), device)
    bundle = _Checkpoint(
        model.config.name,
        fingerprint(checkpoint),
        model.config.embedding_dim,
        model.config.preprocessing,
        model.config.attention_crop,
        TextTokenizer.from_file(
            find_checkpoint(checkpoint) / TOKENIZER, model.config.text.max_length
        ),
    )
    with closing(Encoder(bundle, TorchEngine(model, threads))) as encoder:
        yield model, encoder


def _box_heads(config: TrainConfig, model: TigerFG) -> dict[str, Any]:
    with joined("cpu", config.rank_timeout) as world:
        maker = Inputs(config, world).maker
    return {
        "detector with text" if text else "detector": train_box_head(
            model, maker, seed=config.seed, text=text
        )
        for text in (False, True)
    }


def _predict(
    part: DataSet, model: TigerFG, heads: Mapping[str, Any], encoder: Encoder, folder: Path
) -> dict[str, _Boxes]:
    found = {}
    for title, run in heads.items():
        file = folder / f"boxes-{part.name}-{title.replace(' ', '-')}.jsonl"
        items = part.read().items
        rejected = write_boxes(file, items, model, run.head, encoder.bundle.tokenizer)
        found[title] = _Boxes(file, len(rejected))
    return found


def _query_rows(boxes: Mapping[str, _Boxes]) -> dict[str, Row]:
    return {
        "global": Row("global"),
        "oracle": Row("oracle"),
        **{f"iou {iou}": Row("detect", noisy_boxes(iou)) for iou in IOUS},
        **{title: Row("detect", predicted_boxes(own.file)) for title, own in boxes.items()},
    }


def _rows(
    encoder: Encoder, part: DataSet, wanted: Mapping[str, Row], boxes: Mapping[str, _Boxes]
) -> Iterator[dict[str, Any]]:
    chosen = part.read()
    found = evaluate_rows(
        part.directory,
        encoder,
        list(wanted.values()),
        split=part.split,
        gallery_sizes=GALLERIES,
    )
    for title, result in zip(wanted, found, strict=True):
        row = {"data": part.name, "row": title, **_numbers(result)}
        row["distractors"] = _by_distractors(result, chosen)
        if title in boxes:
            row["items_without_boxes"] = boxes[title].rejected
        yield row


def _numbers(result: Evaluation) -> dict[str, Any]:
    """Recall and grounding in percent, by kind of query and gallery size."""
    numbers: dict[str, Any] = {
        "queries": result.queries,
        "items": result.items,
        "rejected_queries": len(result.rejected_queries),
        "rejected_items": len(result.rejected_items),
        "precision": resolve("auto", torch.device("cpu")),
        **{f"r{k}": 100 * value for k, value in result.overall.recall.items()},
        "map": 100 * result.overall.map,
        "kinds": {kind: 100 * scores.recall[1] for kind, scores in result.per_kind.items()},
        "gallery": {point.size: 100 * point.recall for point in result.curve},
    }
    if result.grounding is not None:
        numbers["grounding"] = {
            name: 100 * getattr(result.grounding, name)
            for name in ("pointing", "mass", "iou", "chance")
        }
    return numbers


def _by_distractors(result: Evaluation, chosen: Selection) -> dict[int, float]:
    """Recall@1 by how many other products the picture of the correct item shows."""
    others = {
        item.item_id: len(item.extra["objects"]) - 1
        for item in chosen.items
        if "objects" in item.extra
    }
    right = {q.query_id: q.item_ids[0] for q in chosen.queries if len(q.item_ids) == 1}
    hits: dict[int, list[bool]] = defaultdict(list)
    answers = result.answers
    for query_id, rank in zip(answers.query_id, answers.rank, strict=True):
        if right.get(query_id) in others:
            hits[others[right[query_id]]].append(rank == 1)
    return {count: 100 * float(np.mean(found)) for count, found in sorted(hits.items())}
