"""The claim's rows of a model that is trained: its item tower, and the baselines of its towers.

    python bench/claim_model.py --model lite --suite SUITE --out FOLDER
        [--photos GROCERY ...] [--real NAME=DIR:SPLIT ...]

SUITE is made by `tigerfg suite SUITE --pairs 0 --eval 5000`. Box heads are trained as in
bench/claim.py, on rendered products and --photos, in FOLDER. `clip` is missing: it is a training
of its own. Results go to results/claim_NAME.json.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from claim_evaluation import DataSet, evaluate_all
from claim_report import DERIVED
from conditions import conditions
from engine_report import markdown

from tigerfg.errors import TigerfgError
from tigerfg.model.checkpoint import fingerprint, load_config
from tigerfg.training.config import TrainConfig

HERE = Path(__file__).resolve().parent
COLUMNS = ("data", "row", "Recall@1", "5", "10", "pointing (chance)")


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Train the detectors, evaluate every row on every data set."""
    data = [DataSet(name, options.suite / name) for name in ("standard", "cluttered")]
    data += [DataSet.parse(text) for text in options.real]
    config = TrainConfig(
        out=options.out,
        init=options.model,
        model=load_config(options.model),
        photos=options.photos,
        products=options.products,
        threads=options.threads,
    )
    rows, detectors = evaluate_all(options.model, None, data, config, options.threads)
    return {
        "model": config.model.name,
        "fingerprint": fingerprint(options.model),
        "photos": ", ".join(path.resolve().name for path in options.photos) or None,
        "products": options.products,
        "data": {part.name: part.read().digest() for part in data},
        "conditions": conditions(),
        "detectors": detectors,
        "rows": rows,
    }


def table(rows: list[dict]) -> str:
    """Markdown: a line a data set and row."""
    lines = []
    for row in rows:
        map_of = row.get("grounding")
        told = f"{map_of['pointing']:.1f} ({map_of['chance']:.1f})" if map_of else ""
        recalls = (f"{row[f'r{k}']:.1f}" for k in (1, 5, 10))
        lines.append((row["data"], DERIVED.get(row["row"], "TIGER-FG"), *recalls, told))
    return "\n".join(markdown(COLUMNS, lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, required=True, help="shipped name, bundle, checkpoint"
    )
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="training pictures, boxes")
    parser.add_argument(
        "--photos", nargs="*", type=Path, default=[], help="photos to train box heads on besides"
    )
    parser.add_argument("--real", nargs="*", default=[], metavar="NAME=DIR:SPLIT")
    parser.add_argument("--products", type=int, default=10_000, help="rendered, to train heads on")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        found = measure(options)
    except TigerfgError as error:
        print(" ".join(str(error).split()))
        return 1
    file = options.results / f"claim_{found['model']}.json"
    options.results.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found["rows"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
