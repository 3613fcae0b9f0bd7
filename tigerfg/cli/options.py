"""Options that several commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tigerfg.fetch_limits import FetchLimits

LIMITS = FetchLimits()

Catalog = Annotated[
    str, typer.Option("--catalog", help="Its directory, or milvus://host:port/collection.")
]
Model = Annotated[
    str, typer.Option("--model", help="Model bundle: a directory, or the name of a shipped one.")
]
NewModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model bundle: a directory, or the name of a shipped one. Without: the one that an "
        "existing catalogue was made with, lite for a new one.",
    ),
]
MovedModel = Annotated[
    str | None,
    typer.Option("--model", help="Bundle, where it is no longer where the catalogue says."),
]
Engine = Annotated[
    str, typer.Option("--engine", help="auto, tensorrt, tensorrt-rtx, onnx, openvino or torch.")
]
Precision = Annotated[
    str, typer.Option("--precision", help="auto, or what the bundle has: fp32, int8, fp16, ...")
]
Index = Annotated[
    str | None,
    typer.Option(
        "--index",
        help="auto, flat, a faiss factory (IVF...; ours: SVD,IVF...), a Milvus type.",
    ),
]
TargetRecall = Annotated[
    float | None, typer.Option("--target-recall", help="Recall@10 for which nprobe is chosen.")
]
MemoryBudget = Annotated[
    int | None,
    typer.Option("--memory-budget", min=0, help="Bytes of memory for the index; 0: no limit."),
]
Where = Annotated[
    str | None,
    typer.Option("--where", help='JSON object that items must match: {"price": {"$lt": 50}}.'),
]
RequireGpu = Annotated[
    bool, typer.Option("--require-gpu", help="Fail where the vector search has no GPU.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; all cores unless told.")
]
Connections = Annotated[
    int, typer.Option("--connections", min=1, help="Pictures behind addresses: fetched at once.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", help="Seconds that a picture's server may be silent.")
]
Deadline = Annotated[float, typer.Option("--deadline", help="Seconds for one try of a picture.")]
Attempts = Annotated[
    int, typer.Option("--attempts", min=1, help="Tries of a picture, before its item is rejected.")
]


def parse_box(text: str | None) -> tuple[float, float, float, float] | None:
    """``"x0,y0,x1,y1"`` as four numbers."""
    if text is None:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not x0,y0,x1,y1 in pixels", param_hint="--box"
        ) from None
    return x0, y0, x1, y1


def parse_where(text: str | None) -> dict[str, Any] | None:
    """A JSON object that filters items."""
    if text is None:
        return None
    try:
        where = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(
            f'{error}; give an object such as {{"color": "red"}}', param_hint="--where"
        ) from None
    if not isinstance(where, dict):
        raise typer.BadParameter(
            f'{text} is no JSON object such as {{"color": "red"}}', param_hint="--where"
        )
    return where


def parse_filters(texts: list[str]) -> dict[str, str]:
    """``["key=value", ...]`` as a mapping."""
    filters = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{text!r} is not key=value", param_hint="--filter")
        filters[key] = value
    return filters
