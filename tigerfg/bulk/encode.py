"""The encoding job: planned, done here or on a cluster, told."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tigerfg.bulk.cluster import Cluster, encode_on_cluster
from tigerfg.bulk.job import plan_job
from tigerfg.bulk.worker import SHOWN, Outcome, UnitEncoder
from tigerfg.fetch_limits import FetchLimits


@dataclass
class EncodeReport:
    """What a call of `encode` did.

    Attributes:
        units: of the whole job. done: of them by this call; the others were there or failed.
        kept: of those done, how many had been before with no more rejects: their files stay.
        vectors, rejected: rows that gave which, by this call. shown: the first rejects, in words.
        failed: units without a result, by name: why.
        seconds: the call took. stages: seconds by stage, over all threads and actors.
    """

    units: int
    done: int = 0
    kept: int = 0
    vectors: int = 0
    rejected: int = 0
    shown: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    stages: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        rate = self.vectors / self.seconds if self.seconds > 0 else 0.0
        told = f"{self.vectors} vectors in {self.seconds:.1f} s ({rate:.0f}/s), "
        told += f"{self.rejected} rejected; {self.done} of {self.units} units done now"
        told += f", {self.kept} kept as they were" if self.kept else ""
        return told + (f", {len(self.failed)} failed" if self.failed else "")


def encode(
    items: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    cluster: Cluster | None = None,
    threads: int | None = None,
    limits: FetchLimits | None = None,
    retry_rejects: bool = False,
    progress: Callable[[EncodeReport], object] | None = None,
    **settings: Any,
) -> EncodeReport:
    """Encode the items of parquet files; a call that was interrupted is repeated, and goes on.

    The results, read by `Searcher.load`: for every unit of rows a file ``part-*.vectors.parquet``
    (item_id, content_hash, vector and grounding_map in float16, document), and a file
    ``part-*.rejects.jsonl`` where rows could not be used: their unit is done all the same.

    Args:
        items, out, settings: see `plan_job`.
        cluster: None for this process alone.
        threads: of an engine; None for all cores.
        limits: for pictures behind addresses; of each actor.
        retry_rejects: do units again that have rejects, for example of addresses that did not
            answer; all of their rows, so that the files are those of a job without such rejects.
            Where no fewer rows are rejected now, the earlier files stay.
        progress: gets the report after every unit.

    Raises:
        InputError, BundleError: see `plan_job`.
    """
    started = time.perf_counter()
    places = [items] if isinstance(items, (str, os.PathLike)) else list(items)
    job = plan_job(places, out, **settings)
    report = EncodeReport(len(job.units))

    def note(outcome: Outcome) -> None:
        if outcome.error:
            report.failed[outcome.unit] = outcome.error
        else:
            report.done += 1
            report.kept += outcome.kept
            report.vectors += outcome.vectors
            report.rejected += outcome.rejected
            report.shown += outcome.shown[: SHOWN - len(report.shown)]
            report.stages.update(outcome.stages)
        report.seconds = time.perf_counter() - started
        if progress:
            progress(report)

    units = job.to_do(retry_rejects)
    if cluster is not None:
        encode_on_cluster(job, units, cluster, threads, limits, note)
    elif units:
        encoder = UnitEncoder(job.settings, job.out, threads, limits)
        try:
            for unit in units:
                note(encoder.encode(unit))
        finally:
            encoder.close()
    report.seconds = time.perf_counter() - started
    return report
