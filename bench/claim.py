"""The paper's claim, rerun: TIGER-FG, its ablations and the baselines, same towers, same budget.

    python bench/claim.py --suite SUITE --out RUNS [--photos GROCERY] [--real NAME=DIR:SPLIT ...]

SUITE is made by `tigerfg suite SUITE --pairs 0 --eval 5000`. For every seed the towers are trained
once (stages crops and regions), then every variant goes on from them (stages map and joint). All is
resumable: a variant whose results file exists is not trained again, a killed training goes on.
Results: one JSON file a seed and variant, and the table in claim.md, means and standard deviations
over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from claim_evaluation import DataSet, evaluate_checkpoint
from claim_report import write_report
from conditions import conditions

from tigerfg.model import preset
from tigerfg.training.config import LossWeights, Stage, TrainConfig
from tigerfg.training.loop import train

HERE = Path(__file__).resolve().parent
TOWERS = (
    Stage("crops", 160, 256, 2e-3),
    Stage("regions", 320, 128, 1.5e-3, matrix_lr=0.06),
)
MAP = Stage("map", 300, 256, 1e-3)
JOINT = Stage("joint", 60, 128, 1e-3, backbone_rate=0.5, matrix_lr=0.04)
MAP_IN_JOINT_STEPS = 12  # what the map stage costs: who has none gets so many joint steps more


@dataclass(frozen=True)
class Variant:
    """A row of the table: changes of the model, of its grounding, and of the losses' weights."""

    title: str
    model: dict[str, Any] = field(default_factory=dict)
    grounding: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


VARIANTS = {
    "tiger": Variant("TIGER-FG"),
    "clip": Variant(
        "`clip`: global picture and text, no grounding", model={"item_tower": "global"}
    ),
    "learned": Variant("no text guidance: learned queries", grounding={"guidance": "learned"}),
    "tokens": Variant(
        "a map per token, averaged after the softmax", {}, {"token_pooling": "after"}
    ),
    "m4": Variant("M = 4 queries a head", grounding={"queries_per_head": 4}),
    "no-dense": Variant("no dense spatial loss", weights={"dense": 0.0}),
    "no-map": Variant("no map loss", weights={"map": 0.0}),
    "no-relation": Variant("no relation loss", weights={"relation": 0.0}),
    "no-distillation": Variant(
        "none of the three", weights={"dense": 0.0, "map": 0.0, "relation": 0.0}
    ),
}


def towers(out: Path, seed: int, base: TrainConfig) -> Path:
    """Train what all variants of a seed start from; the checkpoint's directory."""
    config = replace(base, out=out / str(seed) / "towers", stages=TOWERS, seed=seed)
    _train(config)
    return config.out / "checkpoint"


def variant_run(out: Path, seed: int, name: str, base: TrainConfig) -> TrainConfig:
    """The training of one variant from the seed's towers."""
    variant = VARIANTS[name]
    weights = replace(base.weights, **variant.weights)
    model = replace(base.model, **variant.model)
    model = replace(model, grounding=replace(model.grounding, **variant.grounding))
    mapped = model.item_tower == "grounded" and weights.map > 0
    steps = JOINT.steps + (0 if mapped else MAP_IN_JOINT_STEPS)
    joint = replace(JOINT, steps=steps)
    folder = out / str(seed)
    return replace(
        base,
        out=folder / name,
        init=folder / "towers" / "checkpoint",
        stages=(MAP, joint) if mapped else (joint,),
        seed=seed,
        model=model,
        weights=weights,
    )


def _train(config: TrainConfig) -> None:
    """Train, or go on; nothing where the run is finished."""
    if (config.out / "checkpoint" / "MODEL_CARD.md").exists():
        return
    pools = config.out / "pools"
    shared = config.out.parents[1] / "pools"
    shared.mkdir(parents=True, exist_ok=True)
    config.out.mkdir(parents=True, exist_ok=True)
    if not pools.exists():
        pools.symlink_to(os.path.relpath(shared, config.out))
    train(config, resume=(config.out / "state.safetensors").exists(), show_progress=False)


def run(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    suite = [DataSet(layout, options.suite / layout) for layout in ("standard", "cluttered")]
    real = [DataSet.parse(text) for text in options.real]
    base = TrainConfig(
        out=options.out,
        model=preset(options.preset),
        photos=options.photos,
        products=options.products,
        threads=options.threads,
        validate_every=10**6,
        weights=LossWeights(),
    )
    results = options.results
    for seed in options.seeds:
        for name in options.variants:
            file = results / f"{seed}-{name}.json"
            if file.exists():
                continue
            towers(options.out, seed, base)
            config = variant_run(options.out, seed, name, base)
            say(f"seed {seed}, {name}")
            _train(config)
            rows = evaluate_checkpoint(
                config.out / "checkpoint",
                suite + real,
                config,
                detectors=name == "tiger",
                threads=options.threads,
            )
            results.mkdir(parents=True, exist_ok=True)
            content = {
                "seed": seed,
                "variant": name,
                "title": VARIANTS[name].title,
                "stages": [vars(stage) for stage in (*TOWERS, *config.stages)],
                "products": config.products,
                "photos": config.photos is not None,
                "conditions": conditions(),
                "rows": rows,
            }
            staged = file.with_suffix(".part")
            staged.write_text(json.dumps(content, indent=1) + "\n")
            os.replace(staged, file)
            write_report(results)
    say((results / "claim.md").read_text())
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", type=Path, required=True, help="what `tigerfg suite` made")
    parser.add_argument("--out", type=Path, required=True, help="training runs")
    parser.add_argument("--photos", type=Path, help="real photos to train on besides")
    parser.add_argument(
        "--real", nargs="*", default=[], metavar="NAME=DIR:SPLIT", help="real photos to evaluate on"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--products", type=int, default=10_000, help="rendered, to train on")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "claim")
    return run(parser.parse_args(arguments), lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
