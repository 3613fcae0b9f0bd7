"""Every row that one trained checkpoint gives: its item tower, and baselines of the same towers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tigerfg.benchmark.boxsource import noisy_boxes, predicted_boxes
from tigerfg.benchmark.evaluate import Row, evaluate_rows
from tigerfg.benchmark.evaluation import Evaluation
from tigerfg.catalog import read_items
from tigerfg.encoder import Encoder
from tigerfg.engines.torch import TorchEngine
from tigerfg.images import Preprocessing
from tigerfg.model import load_checkpoint
from tigerfg.model.checkpoint import TOKENIZER, fingerprint
from tigerfg.text import TextTokenizer
from tigerfg.training.box_files import write_boxes
from tigerfg.training.box_head import train_box_head
from tigerfg.training.config import TrainConfig
from tigerfg.training.distributed import joined
from tigerfg.training.inputs import Inputs
from tigerfg.training.precision import cast_encoders, resolve

IOUS = (0.9, 0.7, 0.5)
GALLERIES = (100, 500, 1000, 2000)


@dataclass(frozen=True)
class DataSet:
    """Items and queries to evaluate on; split None: all of them."""

    name: str
    directory: Path
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> DataSet:
        """From NAME=DIR:SPLIT, the split left out for all."""
        name, _, place = text.partition("=")
        directory, _, split = place.partition(":")
        return cls(name, Path(directory), split or None)


@dataclass(frozen=True)
class _Checkpoint:
    """What the encoder and the evaluation ask of a bundle."""

    name: str
    fingerprint: str
    embedding_dim: int
    preprocessing: Preprocessing
    tokenizer: TextTokenizer


def evaluate_checkpoint(
    checkpoint: Path,
    data: list[DataSet],
    config: TrainConfig,
    *,
    detectors: bool,
    threads: int | None,
) -> list[dict[str, Any]]:
    """One row for every data set and way to embed its items.

    Args:
        config: of the run, for the box head's training pictures.
        detectors: rows of the query tower on crops too: true boxes, noisy ones, a trained
            detector's without and with the text; and text alone, the whole picture.
    """
    device = torch.device("cpu")
    model = load_checkpoint(checkpoint)
    precision = resolve("auto", device)
    cast_encoders(model, precision, device)
    tokenizer = TextTokenizer.from_file(checkpoint / TOKENIZER, model.config.text.max_length)
    bundle = _Checkpoint(
        model.config.name,
        fingerprint(checkpoint),
        model.config.embedding_dim,
        model.config.preprocessing,
        tokenizer,
    )
    engine = TorchEngine(model, threads)
    rows: list[dict[str, Any]] = []
    heads = list(_box_heads(config, model)) if detectors else []
    with closing(Encoder(bundle, engine)) as encoder:
        for part in data:
            wanted = {"item": Row()}
            if detectors:
                wanted |= {mode: Row(mode) for mode in ("text", "global", "oracle")}
                wanted |= {f"iou {iou}": Row("detect", noisy_boxes(iou)) for iou in IOUS}
                for title, head in heads:
                    file = checkpoint / f"boxes-{part.name}-{title.replace(' ', '-')}.jsonl"
                    write_boxes(file, read_items(part.directory), model, head, tokenizer)
                    wanted[title] = Row("detect", predicted_boxes(file))
            found = evaluate_rows(
                part.directory,
                encoder,
                list(wanted.values()),
                split=part.split,
                gallery_sizes=GALLERIES,
            )
            for title, result in zip(wanted, found, strict=True):
                rows.append({"data": part.name, "row": title, **_numbers(result, part, precision)})
    return rows


def _box_heads(config: TrainConfig, model: Any) -> Iterator[tuple[str, Any]]:
    with joined("cpu", config.rank_timeout) as world:
        maker = Inputs(config, world).maker
    for text in (False, True):
        run = train_box_head(model, maker, seed=config.seed, text=text)
        yield ("detector with text" if text else "detector"), run.head


def _numbers(result: Evaluation, part: DataSet, precision: str) -> dict[str, Any]:
    """Recall and grounding in percent, by kind of query, gallery size and number of distractors."""
    numbers: dict[str, Any] = {
        "queries": result.queries,
        "items": result.items,
        "precision": precision,
        **{f"r{k}": 100 * value for k, value in result.overall.recall.items()},
        "map": 100 * result.overall.map,
        "kinds": {kind: 100 * scores.recall[1] for kind, scores in result.per_kind.items()},
        "gallery": {point.size: 100 * point.recall for point in result.curve},
        "distractors": _by_distractors(result, part),
    }
    if result.grounding is not None:
        grounding = result.grounding
        numbers |= {
            name: 100 * getattr(grounding, name) for name in ("pointing", "mass", "iou", "chance")
        }
    return numbers


def _by_distractors(result: Evaluation, part: DataSet) -> dict[int, float]:
    """Recall@1 by how many other products the picture of the correct item shows."""
    others: dict[str, int] = {}
    for item in read_items(part.directory):
        if "objects" in item.extra:
            others[item.item_id] = len(item.extra["objects"]) - 1
    right = {
        query["query_id"]: query["item_ids"][0]
        for query in map(json.loads, (part.directory / "queries.jsonl").open(encoding="utf-8"))
        if len(query["item_ids"]) == 1
    }
    hits: dict[int, list[bool]] = defaultdict(list)
    answers = result.answers
    for query_id, rank in zip(answers.query_id, answers.rank, strict=True):
        if right.get(query_id) in others:
            hits[others[right[query_id]]].append(rank == 1)
    return {count: 100 * float(np.mean(found)) for count, found in sorted(hits.items())}
