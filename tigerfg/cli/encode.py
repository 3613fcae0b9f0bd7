"""``tigerfg encode``: vectors of millions of items, on this machine or on a Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tigerfg.bundle import DEFAULT_MODEL
from tigerfg.cli import options
from tigerfg.cli.console import progress, say, shown_path
from tigerfg.fetch_limits import FetchLimits


def command(
    items: Annotated[
        list[str], typer.Argument(metavar="ITEMS...", help="Parquet files or directories of them.")
    ],
    out: Annotated[str, typer.Option("--out", help="Directory or address (s3://...) of results.")],
    model: options.Model = DEFAULT_MODEL,
    ray: Annotated[bool, typer.Option("--ray", help="Run on a Ray cluster.")] = False,
    address: Annotated[
        str | None, typer.Option("--address", help="Of the cluster; else RAY_ADDRESS, or here.")
    ] = None,
    actors: Annotated[
        int, typer.Option("--actors", min=1, help="With --ray: engines at once, at most.")
    ] = 1,
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="With --ray: CPUs of an actor.")] = 1,
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="With --ray: GPUs of an actor.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Items encoded at once.")] = 32,
    unit_rows: Annotated[
        int, typer.Option("--unit-rows", min=1, help="Rows of a unit: what a lost node costs.")
    ] = 4096,
    retry_rejects: Annotated[
        bool,
        typer.Option(
            "--retry-rejects", help="Do units with rejects again, such as of silent servers."
        ),
    ] = False,
    engine: options.Engine = "onnx",
    precision: options.Precision = "fp32",
    threads: options.Threads = None,
    connections: options.Connections = options.LIMITS.connections,
    timeout: options.Timeout = options.LIMITS.timeout,
    deadline: options.Deadline = options.LIMITS.deadline,
    attempts: options.Attempts = options.LIMITS.attempts,
) -> None:
    """Encode parquet files of items into parquet files of vectors, for `tigerfg load`.

    What is there already is not done again, so an interrupted run is simply repeated. The exit
    code is 0 if every unit of the job is done, and not all rows were rejected, else 1.
    """
    from tigerfg.bulk.cluster import Cluster
    from tigerfg.bulk.encode import encode
    from tigerfg.bulk.job import REJECTS
    from tigerfg.bulk.worker import SHOWN

    limits = FetchLimits(
        connections=connections, timeout=timeout, deadline=deadline, attempts=attempts
    )
    cluster = Cluster(address, actors, cpus, gpus) if ray else None
    with progress("encoding") as advance:
        report = encode(
            items,
            out,
            cluster=cluster,
            model=model,
            engine=engine,
            precision=precision,
            threads=threads,
            limits=limits,
            retry_rejects=retry_rejects,
            batch_size=batch,
            unit_rows=unit_rows,
            progress=lambda now: advance(now.done, now.units),
        )
    place = out if "://" in out else shown_path(Path(os.path.abspath(out)))
    typer.echo(f"{report}; {place}")
    for name, reason in list(report.failed.items())[:SHOWN]:
        say(f"failed {name}: {reason}")
    for reject in report.shown:
        say(f"rejected {reject}")
    if report.rejected:
        say(f"all rejects: {place}/*{REJECTS}; --retry-rejects encodes their units again")
    if report.failed or (report.rejected and not report.vectors):
        raise typer.Exit(1)
