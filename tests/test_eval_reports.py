"""Comparisons, tables, plots and heat maps of evaluations."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tigerfg.benchmark.compare import compare, compare_all
from tigerfg.benchmark.evaluation import (
    MEASURES,
    Answers,
    Cost,
    CurvePoint,
    Evaluation,
    Grounding,
    Scores,
)
from tigerfg.benchmark.heatmaps import MapSample, write_heatmaps
from tigerfg.benchmark.plot import check_plot, write_plot
from tigerfg.benchmark.report import conditions, models, tables, write_markdown
from tigerfg.catalog import Item
from tigerfg.errors import InputError, MissingExtraError

QUERIES = 60


def evaluation(ranks: list[int], **changes: object) -> Evaluation:
    """An evaluation in which query n finds its only correct item at ranks[n], of 100."""
    answers = Answers()
    for number, rank in enumerate(ranks):
        answers.add(f"q{number}", "all", number, np.array([rank]), 100)
    scores = Scores.of(answers.values(), np.array(answers.product))
    made = Evaluation(
        directory="data/cluttered",
        data="data/cluttered",
        data_digest="d",
        mode="item",
        boxes=None,
        split=None,
        overall=scores,
        per_kind={"all": scores},
        grounding=Grounding(9, 0.75, 0.5, 0.25, 0.125, {"pointing": (0.5, 0.875)}),
        items=100,
        items_without_box=0,
        queries=len(ranks),
        queries_without_item=0,
        text_words=7.25,
        seconds_items=1.0,
        seconds_queries=1.0,
        cost=Cost(2.5, 1.25, 7_000_000, None, "a note"),
        curve=[CurvePoint(10, 0.9, (0.8, 0.95)), CurvePoint(100, scores.recall[1], None)],
        conditions={
            "model": "tiny",
            "fingerprint": "a" * 64,
            "engine": "onnx",
            "precision": "fp32",
            "threads": 1,
            "cpu": "a cpu",
            "tigerfg": "0.1.0",
        },
        answers=answers,
    )
    return replace(made, **changes)


def other_model(result: Evaluation, name: str = "tiny") -> Evaluation:
    fingerprint = "b" * 64
    return replace(
        result, conditions={**result.conditions, "model": name, "fingerprint": fingerprint}
    )


@pytest.fixture
def pair() -> list[Evaluation]:
    """The second hits 20 queries more, and misses 2 that the first hits."""
    first = [1] * 20 + [4] * 40
    second = [4] * 2 + [1] * 38 + [4] * 20
    return [evaluation(first), other_model(evaluation(second))]


def test_comparison_is_paired(pair):
    assert compare_all(pair) == 1
    assert pair[0].comparison is None
    found = pair[1].comparison
    assert (found.against, found.queries) == ("tiny item", QUERIES)
    assert found.mcnemar[:2] == (2, 20)
    assert set(found.differences) == set(MEASURES)
    recall = found.differences["recall@1"]
    assert recall.value == pytest.approx(18 / 60, abs=1e-12)
    assert 0 < recall.low < recall.value < recall.high
    assert recall.p < 0.001
    # a quarter instead of one for each that got worse, and the other way round
    assert found.differences["map"].value == pytest.approx(18 * 0.75 / 60, abs=1e-12)
    assert found.differences["recall@5"] == (0.0, 0.0, 0.0, 1.0)


def test_queries_are_paired_by_their_ids():
    first = evaluation([1, 2, 3, 4])
    order = [2, 0, 3]
    answers = Answers(**{k: [v[n] for n in order] for k, v in vars(first.answers).items()})
    found = compare(first, replace(first, answers=answers))
    assert (found.queries, found.mcnemar[:2]) == (3, (0, 0))
    assert found.differences["map"].value == 0.0


def test_nothing_to_compare(pair):
    with pytest.raises(InputError, match="nothing to compare"):
        compare_all([pair[0], replace(pair[1], data_digest="e")])
    with pytest.raises(InputError, match="no query was answered in both"):
        compare(pair[0], replace(pair[1], answers=Answers()))
    alone = Answers()
    alone.add("q0", "all", 0, np.array([2]), 5)
    single = compare(pair[0], replace(pair[1], answers=alone))
    assert single.differences is None
    assert single.mcnemar == (1, 0, 1.0)


def test_models_that_share_a_name_are_numbered(pair):
    assert list(models(pair).values()) == ["tiny", "tiny #2"]
    assert list(models([pair[0], other_model(pair[1], "base")]).values()) == ["tiny", "base"]


def test_tables(pair):
    compare_all(pair)
    made = {table.title.split(":")[0].split(";")[0]: table for table in tables(pair)}
    assert list(made) == [
        "recall and mean average precision",
        "paired with the first row of the same data",
        "grounding maps",
        "Recall@1 in smaller galleries, the mean of all random ones of that size",
        "cost a picture",
    ]
    for table in made.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}
    scores = made["recall and mean average precision"]
    assert [row[3] for row in scores.rows] == ["tiny", "tiny #2"]
    assert "mAP@R" not in scores.columns  # every query has one answer
    assert made["cost a picture"].rows[0][3:] == ("2.50", "1.25", "7.0", "-")
    assert tables([evaluation([1], grounding=None, curve=[])])[-1].title.endswith("a note")
    assert len(tables([evaluation([1], grounding=None, curve=[])])) == 2


def test_kinds_and_several_answers_have_their_place():
    answers = Answers()
    answers.add("a", "shelf", 0, np.array([1, 3]), 9)
    answers.add("b", "street", 1, np.array([2]), 9)
    values, products = answers.values(), np.array(answers.product)
    result = evaluation([1], answers=answers)
    result.overall = Scores.of(values, products)
    result.per_kind = {
        kind: Scores.of(values[[n]], products[[n]]) for n, kind in enumerate(["shelf", "street"])
    }
    table = tables([result])[0]
    assert [row[2] for row in table.rows] == ["all kinds", "shelf", "street"]
    assert table.columns[-1] == "mAP@R"
    # R = 2: of the first two only the first is right, 1/2 * (1/1); R = 1: 0
    assert [row[-1] for row in table.rows] == pytest.approx([0.25, 0.5, 0.0])


def test_markdown(pair, tmp_path):
    compare_all(pair)
    pair[0].notes = ["50 % | of <b>it</b>"]
    pair[1].items_without_box = 3
    write_markdown(pair, tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text()
    lines = text.splitlines()
    assert "| data/cluttered | item | all kinds | tiny | 60 | 100 | 33.3 |" in text
    assert "- data/cluttered: 50 % \\| of \\<b\\>it\\</b\\>" in lines
    assert "3 of 100 items have no box" in text
    assert sum(line.startswith("|---") for line in lines) == 5
    for line in lines:
        if line.startswith("|---"):
            columns = line.count("---")
            head = lines[lines.index(line) - 1]
            assert len(re.findall(r"(?<!\\)\|", head)) == columns + 1
    assert (
        conditions(pair)[0]
        == "model tiny (aaaaaaaaaaaa): onnx fp32, 1 threads, a cpu, tigerfg 0.1.0"
    )


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot(pair, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    alone = evaluation([1], data="one query", curve=[])
    write_plot([*pair, alone], tmp_path / f"p{suffix}")
    if suffix == ".png":
        wide = Image.open(tmp_path / "p.png").size
        write_plot([alone], tmp_path / "small.png")
        small = Image.open(tmp_path / "small.png").size
        assert wide[0] > small[0] > 500  # the curves stand beside the bars
        assert wide[1] > small[1]
    else:
        assert "<svg" in (tmp_path / "p.svg").read_text()


def test_plot_refusals(pair, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"must end in \.png"):
        check_plot(tmp_path / "p.bmp")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tigerfg\[plot\]'"):
        write_plot(pair, tmp_path / "p.png")


def item(folder: Path, name: str, title: str = "") -> Item:
    file = folder / f"{name}.png"
    Image.new("RGB", (64, 48), (40, 90, 160)).save(file)
    return Item(name, str(file), title, target_box=(0, 0, 32, 24))


def test_heatmaps(tmp_path):
    sample = MapSample(8)
    hit, miss = np.zeros((3, 4)), np.zeros((3, 4))
    hit[0, 0], miss[2, 3] = 1.0, 1.0
    sample(item(tmp_path, "a", "<script>alert(1)</script>"), hit)
    sample(item(tmp_path, "b", "cup"), miss)
    sample(item(tmp_path, "c", "pot"), np.full((3, 4), np.nan))
    write_heatmaps([(evaluation([1, 2]), sample)], tmp_path / "h.html")
    text = (tmp_path / "h.html").read_text()
    assert re.findall(r'<figure class="(\w+)">', text) == ["hit", "miss", "miss"]
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "75.0 %</b> (95 %: 50.0 to 87.5); chance 12.5 %" in text
    assert "100 % of the map in the box, IoU 33 %, chance 25 %" in text  # 16 x 16 of 32 x 24
    assert text.count("data:image/jpeg;base64,") == 6
    assert not re.search(r'src="(?!data:)', text)


def test_the_sample_does_not_depend_on_the_order(tmp_path):
    names = [f"item{number}" for number in range(40)]
    chosen = []
    for order in (names, names[::-1]):
        sample = MapSample(6)
        for name in order:
            sample(Item(name, "x.png"), np.ones((1, 1)))
        chosen.append([shown.item.item_id for shown in sample.shown()])
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 6
    assert chosen[0] != sorted(names)[:6]


def test_no_heatmaps(tmp_path):
    with pytest.raises(InputError, match="heat maps"):
        write_heatmaps([(evaluation([1], grounding=None), MapSample(1))], tmp_path / "h.html")
    with pytest.raises(InputError, match="heat-map count 0"):
        MapSample(0)
    assert not (tmp_path / "h.html").exists()
