"""Evaluate a bundle on items and queries, in memory.

Everything is encoded once and compared by one matrix product: no catalogue is written and no
approximate index is involved, so the numbers are those of the model alone.

Modes, all from the towers of the same bundle:

- ``item``: items by picture and text, with the attention crop of a model that has one: what a
  catalogue stores;
- ``text``: the same with a blank picture: what the text alone tells a model;
- ``global``: the query tower on the whole item picture, no text, no grounding;
- ``oracle``: the query tower on the item picture cropped to its target box, as a perfect detector
  would do;
- ``detect``: the same with the boxes of a detector, see `boxsource`; its own cost is not counted.

An item without a box is taken whole. All but ``item`` are reference rows, not products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from tigerfg.benchmark import distractors, metrics
from tigerfg.benchmark.boxsource import BoxSource, true_boxes
from tigerfg.benchmark.cost import Flops
from tigerfg.benchmark.evaluation import (
    Answers,
    Cost,
    CurvePoint,
    Evaluation,
    Mode,
    Scores,
    named_intervals,
)
from tigerfg.benchmark.gallery import (
    EncodedQueries,
    Gallery,
    OnMap,
    encode_gallery,
    encode_queries,
)
from tigerfg.benchmark.selection import (
    Selection,
    correct_ids,
    excluded_ids,
    kind_of,
    product_numbers,
)
from tigerfg.encoder import Encoder
from tigerfg.engines.cpu import cpu
from tigerfg.errors import InputError
from tigerfg.text import item_text

if TYPE_CHECKING:
    from tigerfg.benchmark.datasets import EvalSet

SCORES = 1 << 25  # of the score matrix held at a time, 128 MiB

Progress = Callable[[int, "int | None"], None]


class Row(NamedTuple):
    """One way to embed the items: a row of the table.

    Attributes:
        mode: see the module's text.
        boxes: of mode ``detect``, which needs them.
        on_map: called with every item that has a target box and its grounding map (h, w).
    """

    mode: Mode = "item"
    boxes: BoxSource | None = None
    on_map: OnMap | None = None


def evaluate(
    data: str | Path | EvalSet,
    encoder: Encoder,
    *,
    mode: Mode = "item",
    boxes: BoxSource | None = None,
    on_map: OnMap | None = None,
    **options: Any,
) -> Evaluation:
    """:func:`evaluate_rows` with a single row; ``options`` are its keyword arguments."""
    return next(evaluate_rows(data, encoder, [Row(mode, boxes, on_map)], **options))


def evaluate_rows(
    data: str | Path | EvalSet,
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    split: str | None = None,
    query_kinds: Iterable[str] = (),
    item_filter: Mapping[str, str] | None = None,
    gallery_sizes: Sequence[int] = (),
    flops: Flops | None = None,
    progress: Progress | None = None,
) -> Iterator[Evaluation]:
    """Recall@1/5/10 and mAP of a bundle on one set of items and queries.

    A query's field ``exclude_item_id``, an id or a list of ids, names items that it does not
    search: its own picture where pictures are searched among themselves.

    Args:
        data: a directory that holds ``items.jsonl`` and ``queries.jsonl``, whose unknown fields are
            ignored, or what `tigerfg.benchmark.datasets.load_dataset` read.
        encoder: the bundle's towers on an engine.
        rows: how items are embedded; each gives an evaluation, the queries are encoded once.
        split: keep only a directory's items and queries whose field ``split`` has this value.
        query_kinds: keep only queries whose field ``query_kind`` is one of these; all if empty.
        item_filter: keep only items whose fields, compared as text, have these values.
        gallery_sizes: sizes of smaller galleries at which Recall@1 is given too.
        flops: what `cost.count_flops` counted, for the result's cost.
        progress: called with (pictures done, total).

    Yields:
        The scores of each row. Queries whose correct items are all missing from the filtered
        gallery are counted in ``queries_without_item`` and left out; broken items and queries are
        listed.

    Raises:
        InputError: the files are missing, or no item or no query is left to evaluate.
    """
    rows = [row._replace(boxes=_boxes_for(row.mode, row.boxes)) for row in rows]
    if gallery_sizes and min(gallery_sizes) < 1:
        raise InputError(f"gallery size {min(gallery_sizes)} is not at least 1")
    if isinstance(data, (str, Path)):
        chosen = Selection.read(Path(data), split)
    else:
        chosen = Selection.of(data)
    chosen.restrict(item_filter or {}, query_kinds)
    known = {item.item_id for item in chosen.items}
    answerable = [query for query in chosen.queries if known.intersection(correct_ids(query))]
    if not answerable:
        raise InputError(f"{chosen.name}: no query has one of its item_ids among the items left")

    total, done = len(answerable) + len(rows) * len(chosen.items), 0

    def report(now: int) -> None:
        if progress:
            progress(done + now, total)

    queries = encode_queries(answerable, encoder, report)
    conditions = _conditions(encoder, chosen, query_kinds)
    done += len(answerable)
    for row in rows:
        gallery = encode_gallery(chosen.items, encoder, row.mode, row.boxes, report, row.on_map)
        done += len(chosen.items)
        yield _result(row, chosen, queries, gallery, gallery_sizes, flops, conditions)


def _result(
    row: Row,
    chosen: Selection,
    queries: EncodedQueries,
    gallery: Gallery,
    gallery_sizes: Sequence[int],
    flops: Flops | None,
    conditions: dict[str, Any],
) -> Evaluation:
    answers = _answers(queries, gallery)
    if not len(answers):
        raise InputError(f"{chosen.name}: no query is left: no correct item could be encoded")
    values, products, kinds = answers.values(), np.array(answers.product), np.array(answers.kind)
    return Evaluation(
        directory=chosen.directory,
        data=chosen.name,
        data_digest=chosen.digest(),
        mode=row.mode,
        boxes=row.boxes.label if row.boxes and row.mode == "detect" else None,
        split=chosen.split,
        overall=Scores.of(values, products),
        per_kind={
            str(kind): Scores.of(values[kinds == kind], products[kinds == kind])
            for kind in np.unique(kinds)
        },
        grounding=gallery.grounding(),
        items=len(gallery.items),
        items_without_box=gallery.without_box,
        queries=len(answers),
        queries_without_item=len(chosen.queries) - len(queries.rejected) - len(answers),
        text_words=float(np.mean([len(item_text(item).split()) for item in chosen.items])),
        seconds_items=gallery.seconds,
        seconds_queries=queries.seconds,
        cost=_cost(row.mode, gallery, queries, flops),
        curve=_curve(answers, products, gallery_sizes),
        conditions=conditions,
        answers=answers,
        notes=chosen.notes,
        rejected_items=chosen.rejected_items + gallery.rejected,
        rejected_queries=chosen.rejected_queries + queries.rejected,
    )


def _boxes_for(mode: Mode, boxes: BoxSource | None) -> BoxSource | None:
    if mode not in get_args(Mode):
        raise InputError(f"mode: {mode!r} is none of {', '.join(get_args(Mode))}")
    if mode == "detect" and boxes is None:
        raise InputError("mode detect needs boxes: noisy true ones of an IoU, or a detector's file")
    if mode != "detect" and boxes is not None:
        raise InputError(f"boxes are for mode detect, not for {mode}")
    return true_boxes() if mode == "oracle" else boxes


def _answers(asked: EncodedQueries, gallery: Gallery) -> Answers:
    """Rank the gallery for every query that has a correct item in it."""
    queries = asked.queries
    column = {item.item_id: number for number, item in enumerate(gallery.items)}
    relevant = [[column[i] for i in set(correct_ids(q)) if i in column] for q in queries]
    excluded = [[column[i] for i in set(excluded_ids(q)) if i in column] for q in queries]
    products = product_numbers(queries)
    kept = [number for number, own in enumerate(relevant) if own]
    embeddings, places = metrics.distinct(gallery.vectors)
    answers = Answers()
    block = max(1, SCORES // max(1, len(places)))
    for start in range(0, len(kept), block):
        part = kept[start : start + block]
        ranks = metrics.relevant_ranks(
            (asked.vectors[part] @ embeddings.T)[:, places],
            [relevant[number] for number in part],
            [excluded[number] for number in part],
        )
        for number, own in zip(part, ranks, strict=True):
            query = queries[number]
            candidates = len(places) - len(excluded[number])
            answers.add(query.query_id, kind_of(query), products[number], own, candidates)
    return answers


def _curve(answers: Answers, products: np.ndarray, sizes: Sequence[int]) -> list[CurvePoint]:
    """Recall@1 at the asked gallery sizes that are smaller than the whole, and at the whole."""
    if not sizes:
        return []
    whole = max(answers.candidates)
    points = []
    for size in sorted({*(size for size in sizes if size < whole), whole}):
        chances = distractors.hit_chances(answers.rank, answers.correct, answers.candidates, size)
        ends = named_intervals(("recall",), chances[:, None], products)
        points.append(CurvePoint(size, float(chances.mean()), ends and ends["recall"]))
    return points


def _cost(mode: Mode, gallery: Gallery, queries: EncodedQueries, flops: Flops | None) -> Cost:
    """Per picture, those included that turned out to be broken."""
    item_ms = 1000 * gallery.seconds / (len(gallery.items) + len(gallery.rejected))
    query_ms = 1000 * queries.seconds / (len(queries.queries) + len(queries.rejected))
    flops = flops or Flops(None, None, "FLOPs not counted")
    of_item = flops.item if mode in ("item", "text") else flops.query
    return Cost(item_ms, query_ms, of_item, flops.query, flops.note)


def _conditions(encoder: Encoder, chosen: Selection, query_kinds: Iterable[str]) -> dict[str, Any]:
    info = encoder.engine.info
    return {
        "model": encoder.bundle.name,
        "fingerprint": encoder.bundle.fingerprint,
        "engine": info.name,
        "precision": info.precision,
        "device": info.device,
        "threads": info.threads,
        "engine_detail": info.detail,
        "cpu": cpu().model,
        "tigerfg": version("tigerfg"),
        "item_filter": chosen.filtered,
        "query_kinds": sorted(set(query_kinds)),
    }
