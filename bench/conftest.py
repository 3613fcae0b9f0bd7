"""Side-by-side benchmarks: contenders of a group in one run, with the same threads, by median.

`pytest bench/ --benchmark-only` prints a table of ratios and writes it as JSON to $RESULTS_DIR, or
to bench/results/. The cosine (or overlap) with the reference stands beside every ratio.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conditions import conditions
from contenders import PlainLoop

from tigerfg.bundle import Bundle
from tigerfg.engines.cpu import thread_count
from tigerfg.errors import BundleError

HERE = Path(__file__).parent
ROWS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bundle", default="tiny", help="bundle for the groups ingest and search")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def threads() -> int:
    """Threads of every contender: all that this process may use."""
    count = thread_count(None)
    try:
        import torch
    except ImportError:
        return count
    torch.set_num_threads(count)
    return count


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """The bundle of the groups ingest and search."""
    name = request.config.getoption("--bundle")
    try:
        return Bundle.open(name)
    except BundleError as error:
        pytest.skip(f"{error}: give one with --bundle")


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered catalogue of 128 items with one query each."""
    from tigerfg.benchmark.render import write_catalog

    folder = tmp_path_factory.mktemp("catalog")
    write_catalog(folder, 128, seed=4711, layout="cluttered")
    return folder


@pytest.fixture(scope="session")
def plain(bundle: Bundle, threads: int) -> PlainLoop:
    """What one writes without us: PIL and a default ONNX Runtime session, one picture at a time."""
    return PlainLoop(bundle, threads)


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """``compare(group, contender, call, pictures, agreement, rounds)``: measure one contender.

    The first contender of a group is what the others' ratios refer to. `pictures` is how many
    one call works on, `agreement` the cosine or overlap of its results with the reference.
    """

    def measure(
        group: str,
        contender: str,
        call: Callable[[], object],
        pictures: int = 1,
        agreement: float | None = None,
        rounds: int = 15,
        warmup: int = 3,
    ) -> None:
        benchmark.group = group
        benchmark.extra_info.update(contender=contender, pictures=pictures, agreement=agreement)
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=warmup)
        if benchmark.stats is None:  # --benchmark-disable
            return
        request.config.stash[ROWS].append(
            {
                "group": group,
                "contender": contender,
                "median_ms": 1000 * benchmark.stats.stats.median,
                "pictures": pictures,
                "rounds": rounds,
                "agreement": agreement,
            }
        )

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    groups = [row["group"] for row in rows]
    rows.sort(key=lambda row: groups.index(row["group"]))
    first: dict[str, float] = {}
    for row in rows:
        row["ratio"] = first.setdefault(row["group"], row["median_ms"]) / row["median_ms"]
    machine = conditions()
    terminalreporter.section("ratios (first contender of a group = 1.00, higher is faster)")
    terminalreporter.line(
        f"{machine['cpu']}, {machine['threads']} threads, {' '.join(machine['features'])}"
    )
    for row in rows:
        agreement = "" if row["agreement"] is None else f"  agreement {row['agreement']:.5f}"
        terminalreporter.line(
            f"{row['group']:<22} {row['contender']:<26} {row['median_ms']:>10.2f} ms "
            f"{row['ratio']:>7.2f}x  {1000 * row['pictures'] / row['median_ms']:>9.1f}/s{agreement}"
        )
    folder = Path(os.environ.get("RESULTS_DIR") or HERE / "results")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "bench.json"
    file.write_text(json.dumps({"conditions": machine, "rows": rows}, indent=2) + "\n")
    terminalreporter.line(f"written to {file}")
