"""README's tables of quality are those of the shipped models, as they were measured."""

# ruff: noqa: E402
from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tigerfg.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "bench"))  # scripts beside the package, not part of it

from quality import figures

MODELS = ("lite", "tiny")
MODES = ("item", "text", "global", "oracle")


def test_a_single_product_has_no_interval():
    overall = {"queries": 2, "recall": {"1": 1.0}, "intervals": None}
    values = dict.fromkeys(("split", "data_digest", "mode", "items", "grounding"))
    values |= {"directory": "/photos/standard", "overall": overall}
    row = figures(SimpleNamespace(to_dict=lambda: values))
    assert (row["recall"], row["data"]) == ({"1": 100.0}, "photos/standard")
    assert "recall@1 95 %" not in row
    overall["intervals"] = {"recall@1": [0.5, 0.75]}
    assert figures(SimpleNamespace(to_dict=lambda: values))["recall@1 95 %"] == [50.0, 75.0]


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    files = {name: ROOT / f"bench/results/quality_{name}.json" for name in MODELS}
    return {name: json.loads(file.read_text()) for name, file in files.items()}


@pytest.fixture(scope="module")
def readme() -> dict[str, list[str]]:
    """First cell -> the others, of every line of a table, without what is bold."""
    lines = re.findall(r"^\| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    rows = [line.replace("*", "").split(" | ") for line in lines]
    return {first.strip("`"): cells for first, *cells in rows}


def measured_row(model: dict[str, Any], data: str, mode: str) -> dict[str, Any]:
    (row,) = (r for r in model["rows"] if (r["data"], r["mode"]) == (data, mode))
    return row


def recall(model: dict[str, Any], data: str, mode: str) -> str:
    return f"{measured_row(model, data, mode)['recall']['1']:.1f}"


def pointing(model: dict[str, Any], data: str) -> str:
    row = measured_row(model, data, "item")
    return f"{row['pointing']:.0f} ({row['chance']:.0f})"


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_model_was_measured(measured, name):
    assert measured[name]["fingerprint"] == Bundle.open(name).fingerprint
    assert (measured[name]["engine"], measured[name]["precision"]) == ("onnx", "fp32")


@pytest.mark.parametrize("layout", ["standard", "cluttered"])
@pytest.mark.parametrize(("name", "title"), [("grocery", "grocery test"), ("luma", "luma (all)")])
def test_photos(measured, readme, name, title, layout):
    data, lite = f"{name}/{layout}", measured["lite"]
    row = measured_row(lite, data, "item")
    told = readme[f"{title}, {layout}"]
    assert told[:2] == [str(row["items"]), f"{row['queries']:,}"]
    assert told[2:6] == [recall(lite, data, mode) for mode in MODES]
    assert told[6] == ("–" if layout == "standard" else pointing(lite, data))
    assert told[7] == recall(measured["tiny"], data, "item")


@pytest.mark.parametrize(
    ("mode", "title"),
    [
        ("item", "TIGER-FG"),
        ("text", "text alone (blank picture)"),
        ("global", "whole picture in the query tower, no text"),
        ("oracle", "oracle`: true box cropped, query tower"),
    ],
)
def test_renders(measured, readme, mode, title):
    expected = [
        recall(measured[name], f"suite/{layout}", mode)
        for name in MODELS
        for layout in ("standard", "cluttered")
    ]
    assert readme[title] == expected


def test_pointing_at_renders(measured, readme):
    expected = [
        pointing(measured[name], f"suite/{layout}")
        for name in MODELS
        for layout in ("standard", "cluttered")
    ]
    assert readme["map's strongest patch in the target (chance)"] == expected
