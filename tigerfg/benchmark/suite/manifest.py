"""manifest.json: what a suite was made with and what it holds, with hashes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tigerfg.errors import InputError
from tigerfg.files import sha256_file, write_whole
from tigerfg.settings import Checked, Count, Natural, build

from .evalset import pictures_digest
from .schema import SUITE_VERSION
from .settings import Settings
from .sources import Source

FORMAT = "tigerfg-suite"
AGAIN = "run the command that made the suite again"
_WRITERS = ("numpy", "pillow", "pyarrow")  # the bytes of pictures and shards come from these


@dataclass(frozen=True)
class _Shard(Checked):
    name: str
    rows: Count
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class _Evaluation(Checked):
    files: dict
    pictures: Natural
    bytes: Natural
    pictures_sha256: str


@dataclass(frozen=True)
class _Stored(Checked):
    """A manifest as its readers take it for granted."""

    settings: Settings
    source: dict
    products: Natural
    writers: dict
    shards: tuple[_Shard, ...]
    evaluation: _Evaluation | None
    rejected: dict


@dataclass
class Manifest:
    """Everything about a suite that is not a pair.

    Attributes:
        settings, source: JSON forms of `Settings` and of the source's identity.
        writers: versions of the packages that the bytes depend on.
        products: number of products of the training part.
        shards: of every finished shard name, rows, bytes, sha256, in order.
        evaluation: hashes of the evaluation sets; None until they are complete.
        rejected: rows of a catalogue that could not be used, reason -> count.
    """

    settings: dict[str, Any]
    source: dict[str, Any]
    products: int
    writers: dict[str, str] = field(default_factory=lambda: {n: version(n) for n in _WRITERS})
    shards: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    rejected: dict[str, int] = field(default_factory=dict)

    @classmethod
    def new(cls, settings: Settings, source: Source, rejected: dict[str, int]) -> Manifest:
        return cls(
            settings.to_dict(), source.describe(), source.products(settings), rejected=rejected
        )

    @classmethod
    def load(cls, out: Path) -> Manifest:
        """Read OUT/manifest.json.

        Raises:
            InputError: it is missing, damaged, or of another version.
        """
        path = out / "manifest.json"
        try:
            values = json.loads(path.read_bytes())
            if values.pop("format") != FORMAT:
                raise KeyError("format")
            found = values.pop("version")
        except FileNotFoundError as error:
            raise InputError(f"{out}: no suite: it has no manifest.json") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}: not the manifest of a suite") from error
        if found != SUITE_VERSION:
            raise InputError(
                f"{path}: version {found}, this tigerfg reads version {SUITE_VERSION}: build it "
                "again"
            )
        try:
            build(_Stored, values)
        except InputError as error:
            raise InputError(f"{path}: damaged: {error}") from error
        return cls(**values)

    def save(self, out: Path) -> None:
        head = {"format": FORMAT, "version": SUITE_VERSION}
        text = json.dumps({**head, **vars(self)}, indent=1, ensure_ascii=False)
        write_whole(out / "manifest.json", text + "\n")

    @property
    def pairs(self) -> int:
        """Pairs of the finished shards."""
        return sum(shard["rows"] for shard in self.shards)

    @property
    def complete(self) -> bool:
        """Whether everything that the settings ask for is there."""
        return self.pairs == self.settings["pairs"] and (
            self.evaluation is not None or not self.settings["eval_products"]
        )

    def check_same(self, wanted: Manifest, out: Path) -> None:
        """Raise InputError if a build with ``wanted`` could not go on in this suite."""
        for name in ("settings", "source", "writers"):
            mine, theirs = getattr(self, name), getattr(wanted, name)
            for key in mine.keys() | theirs.keys():
                if mine.get(key) != theirs.get(key):
                    raise InputError(
                        f"{out}: the suite there was made with {name} {key} = {mine.get(key)!r}, "
                        f"not {theirs.get(key)!r}: name a new directory, or ask for the same"
                    )


def verify(out: Path) -> list[str]:
    """What is wrong with a finished suite, by its manifest's hashes, and how to mend it; empty if
    nothing is."""
    manifest = Manifest.load(out)
    expected = {shard["name"]: shard["sha256"] for shard in manifest.shards}
    evaluation = manifest.evaluation or {"files": {}}
    expected |= evaluation["files"]
    problems = [] if manifest.complete else [f"the suite is not complete: {AGAIN}"]
    for name, sha256 in expected.items():
        if not (out / name).is_file():
            problems.append(f"{name}: missing: {AGAIN}")
        elif sha256_file(out / name) != sha256:
            problems.append(
                f"{name}: its bytes differ from the manifest's sha256: delete it, then {AGAIN}"
            )
    if manifest.evaluation is not None:
        pictures = sorted((out / "images").glob("*/*.jpg"))
        found = {path.relative_to(out).as_posix(): sha256_file(path) for path in pictures}
        if pictures_digest(found) != evaluation["pictures_sha256"]:
            problems.append(
                f"images: {len(found)} pictures, {evaluation['pictures']} expected; "
                f"one or more are missing or differ: delete images/, then {AGAIN}"
            )
    return problems
