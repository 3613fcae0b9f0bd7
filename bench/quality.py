"""What is kept of evaluations: the figures of README's tables, without the queries' own ranks.

    tigerfg eval SUITE/standard SUITE/cluttered --model lite --engine onnx --precision fp32 \\
        --mode item --mode text --mode global --mode oracle --json renders.json
    tigerfg eval PHOTOS/standard PHOTOS/cluttered --split test ... --json photos.json
    python bench/quality.py renders.json photos.json

writes results/quality_NAME.json for every model in the files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tigerfg.benchmark.evaluation import Evaluation, read_results

HERE = Path(__file__).resolve().parent
WHERE = ("model", "fingerprint", "engine", "precision", "engine_detail", "cpu")


def figures(result: Evaluation) -> dict[str, Any]:
    """One row, percent: no path of this machine, no answer to a single query."""
    values = result.to_dict()
    overall, grounding = values["overall"], values["grounding"]
    row: dict[str, Any] = {
        "data": "/".join(Path(values["directory"]).parts[-2:]),
        "split": values["split"],
        "digest": values["data_digest"],
        "mode": values["mode"],
        "items": values["items"],
        "queries": overall["queries"],
        "recall": {k: round(100 * share, 2) for k, share in overall["recall"].items()},
    }
    if ends := overall["intervals"]:  # none of a single product
        row["recall@1 95 %"] = [round(100 * end, 2) for end in ends["recall@1"]]
    if grounding:
        row |= {name: round(100 * grounding[name], 2) for name in ("pointing", "chance", "mass")}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="of `tigerfg eval --json`")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    models: dict[str, dict[str, Any]] = {}
    for file in options.files:
        for result in read_results(file):
            told = {name: result.conditions[name] for name in WHERE}
            model = models.setdefault(told["model"], {**told, "rows": []})
            if told != {name: model[name] for name in WHERE}:
                parser.error(f"{file}: {told} differs from what the other files were made with")
            model["rows"].append(figures(result))
    options.results.mkdir(parents=True, exist_ok=True)
    for name, content in models.items():
        text = json.dumps(content, indent=1) + "\n"
        (options.results / f"quality_{name}.json").write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
