"""The paper's claim, rerun: TIGER-FG, its ablations and the baselines, same towers, same budget.

    python bench/claim.py --suite SUITE --out RUNS
        [--photos GROCERY ...] [--real NAME=DIR:SPLIT ...]

SUITE is made by `tigerfg suite SUITE --pairs 0 --eval 5000`. For every seed the towers are trained
once (stages crops and regions), then every variant goes on from them (stages map and joint). All is
resumable: a variant is done when RUNS/seed/variant/result.json exists; a killed training goes on.
The results are copied to --results, beside claim.md: means and standard deviations over seeds.
With --train-only the runs are trained, on a GPU where there is one, and evaluated by a later call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from claim_evaluation import DataSet, evaluate_all, evaluate_items
from claim_report import check_alike, read_results, write_report
from conditions import conditions

from tigerfg.errors import InputError
from tigerfg.model import preset
from tigerfg.model.checkpoint import fingerprint
from tigerfg.training.config import LossWeights, Stage, TrainConfig
from tigerfg.training.loop import train
from tigerfg.training.state import STATE, load_progress

HERE = Path(__file__).resolve().parent
MAP_CACHE_GIB = 1.2  # 12,000 pictures of `tiny`


@dataclass(frozen=True)
class Recipe:
    """Stages of a claim.

    Attributes:
        towers: trained once a seed. map, joint: of every variant.
        instead: joint steps that a variant without a map stage gets more, for about the same time
            on one CPU thread (`tiny`: 200 map steps take some 350 s, a joint step 4.4 s). The
            seconds that every variant's training took are in its result.
    """

    towers: tuple[Stage, ...]
    map: Stage
    joint: Stage
    instead: int


RECIPES = {
    "short": Recipe(
        (
            Stage("crops", 160, 256, 2e-3),
            Stage("regions", 320, 128, 1.5e-3, matrix_lr=0.06),
        ),
        Stage("map", 200, 256, 1e-3, matrix_lr=0.03),
        Stage("joint", 100, 128, 1e-3, backbone_rate=0.5, matrix_lr=0.04),
        80,
    ),
    "long": Recipe(  # for a GPU
        (
            Stage("crops", 400, 256, 2e-3),
            Stage("regions", 800, 128, 1.5e-3, matrix_lr=0.06),
        ),
        Stage("map", 300, 256, 1e-3, matrix_lr=0.03),
        Stage("joint", 1000, 128, 1e-3, backbone_rate=0.5, matrix_lr=0.04),
        120,
    ),
}


@dataclass(frozen=True)
class Variant:
    """A row of the table: changes of the model, of its grounding, and of the losses' weights."""

    title: str
    model: dict[str, Any] = field(default_factory=dict)
    grounding: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


CLIP = "`clip`: global picture and text, no grounding"
VARIANTS = {
    "tiger": Variant("TIGER-FG"),
    "clip": Variant(CLIP, model={"item_tower": "global"}),
    "clip-nce": Variant(
        f"{CLIP}, no relation loss", {"item_tower": "global"}, weights={"relation": 0.0}
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


def towers_run(out: Path, seed: int, base: TrainConfig, recipe: Recipe) -> TrainConfig:
    """The training of what all variants of a seed start from."""
    return replace(base, out=out / str(seed) / "towers", stages=recipe.towers, seed=seed)


def variant_run(out: Path, seed: int, name: str, base: TrainConfig, recipe: Recipe) -> TrainConfig:
    """The training of one variant from the seed's towers."""
    variant = VARIANTS[name]
    weights = replace(base.weights, **variant.weights)
    model = replace(base.model, **variant.model)
    model = replace(model, grounding=replace(model.grounding, **variant.grounding))
    mapped = model.item_tower == "grounded" and weights.map > 0
    joint = recipe.joint
    if not mapped:
        joint = replace(joint, steps=joint.steps + recipe.instead)
    folder = out / str(seed)
    return replace(
        base,
        out=folder / name,
        init=folder / "towers" / "checkpoint",
        stages=(recipe.map, joint) if mapped else (joint,),
        seed=seed,
        model=model,
        weights=weights,
    )


def settings_of(config: TrainConfig, recipe: Recipe) -> dict[str, Any]:
    """What a run's outcome depends on, as JSON gives it back; no path of this machine."""
    settings = {
        "products": config.products,
        "photos": ", ".join(path.resolve().name for path in config.photos) or None,
        "preset": config.model.name,
        "towers": [asdict(stage) for stage in recipe.towers],
        "stages": [asdict(stage) for stage in config.stages],
        "model": config.model.to_dict(),
        "weights": config.weights.to_dict(),
    }
    return json.loads(json.dumps(settings))


def check_same(file: Path, wanted: dict[str, Any], fix: str) -> None:
    """Compare the settings in a file, where there is one, with those asked for now.

    Raises:
        InputError: they differ; names the first difference.
    """
    if not file.exists():
        return
    found = json.loads(file.read_text())["settings"]
    for name, value in wanted.items():
        if found.get(name) != value:
            then, now = _difference(name, found.get(name), value)
            raise InputError(f"{file}: made with other settings: {then}, now {now}; {fix}")


def _difference(name: str, found: Any, wanted: Any) -> tuple[str, str]:
    """The smallest part in which two JSON values differ: its name and value, and the other one."""
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        found, wanted = dict(enumerate(found)), dict(enumerate(wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in (*wanted, *(key for key in found if key not in wanted)):
            if found.get(key) != wanted.get(key):
                return _difference(f"{name}.{key}", found.get(key), wanted.get(key))
    return f"{name} {json.dumps(found)}", json.dumps(wanted)


class Claim:
    """The study: its runs, what is done of them, and the results.

    Raises:
        InputError: a data set or the photos cannot be used, or runs or results are there that
            were made with other settings. Nothing was trained then.
    """

    def __init__(self, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self.options, self.say, self.recipe = options, say, RECIPES[options.recipe]
        self.data = [DataSet.parse(text) for text in options.real]
        if not options.train_only:
            layouts = ("standard", "cluttered")
            self.data = [DataSet(name, options.suite / name) for name in layouts] + self.data
        names = [part.name for part in self.data]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"--real: the name {min(twice)!r} is taken; give every set its own")
        self.digests = {part.name: part.read().digest() for part in self.data}
        for path in options.photos:
            if not path.is_dir():
                raise InputError(f"--photos: {path} is not a directory")
        self.base = TrainConfig(
            out=options.out,
            model=preset(options.preset),
            photos=options.photos,
            products=options.products,
            threads=options.threads,
            validate_every=10**6,
            map_cache_gib=MAP_CACHE_GIB,
            weights=LossWeights(),
        )
        there = read_results(options.results)
        planned = {}
        for seed in options.seeds:
            self._check(towers_run(options.out, seed, self.base, self.recipe))
            for name in options.variants:
                config = variant_run(options.out, seed, name, self.base, self.recipe)
                self._check(config)
                settings, file = self._settings(config), f"{seed}-{name}.json"
                check_same(options.results / file, settings, "take another --results")
                planned[file] = {"variant": name, "settings": settings, "rows": []}
        check_alike({**planned, **there})

    def run(self) -> None:
        """Train and evaluate what is missing; the report is written anew after every variant."""
        if self.options.train_only:
            for seed in self.options.seeds:
                for name in self.options.variants:
                    self.say(f"seed {seed}, {name}: {self._trained(seed, name)[2]}")
            return
        write_report(self.options.results)
        for seed in self.options.seeds:
            for name in self.options.variants:
                file = self.options.out / str(seed) / name / "result.json"
                if not file.exists():
                    self.say(f"seed {seed}, {name}")
                    _write(file, json.dumps(self._result(seed, name), indent=1) + "\n")
                _write(self.options.results / f"{seed}-{name}.json", file.read_text())
                write_report(self.options.results)
        self.say((self.options.results / "claim.md").read_text())

    def _settings(self, config: TrainConfig) -> dict[str, Any]:
        return {**settings_of(config, self.recipe), "data": self.digests}

    def _check(self, config: TrainConfig) -> None:
        """What is there of a run must have been made as it would be now."""
        begun = config.out / "run.json"
        if (config.out / STATE).exists() and not begun.exists():
            raise InputError(f"--out: {config.out} is a run of something else; take another --out")
        check_same(begun, settings_of(config, self.recipe), "take another --out")
        file = config.out / "result.json"
        check_same(file, self._settings(config), "delete the file to evaluate again")

    def _result(self, seed: int, name: str) -> dict[str, Any]:
        options = self.options
        config, before, after = self._trained(seed, name)
        if name == "tiger":
            rows, detectors = evaluate_all(after, before, self.data, config, options.threads)
        else:
            rows, detectors = evaluate_items(after, self.data, options.threads), {}
        return {
            "seed": seed,
            "variant": name,
            "title": VARIANTS[name].title,
            "settings": self._settings(config),
            "seconds": {
                "towers": load_progress(before.parent / STATE).seconds,
                "variant": load_progress(config.out / STATE).seconds,
            },
            "threads": options.threads,
            "fingerprints": {"towers": fingerprint(before), "variant": fingerprint(after)},
            "training_commit": json.loads((config.out / "run.json").read_text())["commit"],
            "conditions": conditions(),
            "detectors": detectors,
            "rows": rows,
        }

    def _trained(self, seed: int, name: str) -> tuple[TrainConfig, Path, Path]:
        """A variant's training, and the checkpoints before and after it."""
        options = self.options
        towers = towers_run(options.out, seed, self.base, self.recipe)
        config = variant_run(options.out, seed, name, self.base, self.recipe)
        return config, self._train(towers), self._train(config)

    def _train(self, config: TrainConfig) -> Path:
        """Train, or go on; nothing where the run is finished. Returns the checkpoint."""
        checkpoint = config.out / "checkpoint"
        if (checkpoint / "MODEL_CARD.md").exists():
            return checkpoint
        pools, shared = config.out / "pools", self.options.out / "pools"
        shared.mkdir(parents=True, exist_ok=True)
        config.out.mkdir(parents=True, exist_ok=True)
        if not pools.exists():
            pools.symlink_to(os.path.relpath(shared, config.out))
        begun = config.out / "run.json"
        if not begun.exists():
            settings = settings_of(config, self.recipe)
            content = {"settings": settings, "commit": conditions()["commit"]}
            _write(begun, json.dumps(content, indent=1) + "\n")
        return train(config, resume=(config.out / STATE).exists(), show_progress=False)


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_suffix(".part")
    staged.write_text(text)
    os.replace(staged, file)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", type=Path, help="what `tigerfg suite` made")
    parser.add_argument("--out", type=Path, required=True, help="training runs")
    parser.add_argument(
        "--photos", nargs="*", type=Path, default=[], help="real photos to train on besides"
    )
    parser.add_argument(
        "--real", nargs="*", default=[], metavar="NAME=DIR:SPLIT", help="real photos to evaluate on"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--recipe", choices=RECIPES, default="short", help="how long to train")
    parser.add_argument("--train-only", action="store_true", help="evaluate in a later call")
    parser.add_argument("--preset", choices=("tiny", "small", "base"), default="tiny")
    parser.add_argument("--products", type=int, default=10_000, help="rendered, to train on")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "claim")
    options = parser.parse_args(arguments)
    if options.suite is None and not options.train_only:
        parser.error("--suite: what is to be evaluated on is missing")
    try:
        Claim(options, lambda line: print(line, flush=True)).run()
    except InputError as error:
        print(" ".join(str(error).split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
