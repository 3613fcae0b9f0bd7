"""Units of an encoding job on a Ray cluster, by an actor pool of Ray Data.

A node can be lost at any time. Actors are restarted where there is room (``max_restarts=-1``), but
their tasks are not tried again by Ray (``max_task_retries=0``): a task that waits for an actor that
has no node left to restart on would wait for ever, and the job with it. Instead the block of a lost
task counts as failed and is passed over (``max_errored_blocks=-1``), and the units of which nothing
was heard are done in another round.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from tigerfg.bulk.job import Job, Settings, Unit
from tigerfg.bulk.worker import Outcome, UnitEncoder
from tigerfg.errors import MissingExtraError, TigerfgError
from tigerfg.fetch_limits import FetchLimits

INIT_DEATHS = 8  # nodes lost one after the other while their actors start

logger = logging.getLogger("tigerfg")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where to run, and what an actor takes.

    Attributes:
        address: of the cluster; None for RAY_ADDRESS, or a new one on this machine.
        actors: most at once. cpus, gpus: of an actor.
    """

    address: str | None = None
    actors: int = 1
    cpus: float = 1
    gpus: float = 0


class _Actor:
    """One engine, which encodes unit after unit."""

    def __init__(
        self, settings: Settings, out: str, threads: int | None, limits: FetchLimits | None
    ) -> None:
        self._encoder = UnitEncoder(settings, out, threads, limits)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        outcomes = [self._encoder.encode(Unit(**json.loads(text))) for text in batch["unit"]]
        return {"outcome": [json.dumps(dataclasses.asdict(outcome)) for outcome in outcomes]}


def encode_on_cluster(
    job: Job,
    units: Sequence[Unit],
    cluster: Cluster,
    threads: int | None,
    limits: FetchLimits | None,
    on_outcome: Callable[[Outcome], object],
) -> None:
    """Do units of a job.

    Turns off Ray Data's collection of usage in this process (RAY_DATA_USAGE_DISABLED).

    Raises:
        MissingExtraError: Ray is not installed.
        TigerfgError: no cluster there, an actor cannot start, or a whole round did no unit.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise MissingExtraError("encoding on a cluster", "ray[data]", "ray") from error

    # Ray Data's collector of usage would stay in this process for ever, asking for a Prometheus on
    # this host; the tracebacks it logs break `ast` in other threads of Python 3.11 (SystemError).
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")
    own = not ray.is_initialized()
    try:
        if own:
            ray.init(address=cluster.address, log_to_driver=False)
        _do_rounds(units, cluster, (job.settings, job.out, threads, limits), on_outcome)
    except (RayError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise TigerfgError(f"encoding on the cluster: {reason}") from error
    finally:
        if own:
            ray.shutdown()


def _do_rounds(
    units: Sequence[Unit],
    cluster: Cluster,
    actor: tuple[Any, ...],
    on_outcome: Callable[[Outcome], object],
) -> None:
    """Do units, round after round; actor: what each `_Actor` is made with."""
    import ray

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    context.enable_progress_bars = False
    left = {unit.name: unit for unit in units}
    while left:
        logger.info("%d units on at most %d actors", len(left), cluster.actors)
        rows = [{"unit": json.dumps(dataclasses.asdict(unit))} for unit in left.values()]
        outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=min(cluster.actors, len(left)),
                max_tasks_in_flight_per_actor=2,  # one waits while one is done
            ),
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            ray_remote_args_fn=_actor_options,
        )
        for row in outcomes.iter_rows():
            outcome = Outcome(**json.loads(row["outcome"]))
            del left[outcome.unit]
            on_outcome(outcome)
        if len(left) == len(rows):
            raise TigerfgError(
                f"no actor of the cluster could do one of {len(left)} units, such as "
                f"{next(iter(left))}; Ray's logs say why; started again, the job goes on where it "
                "is"
            )


def _actor_options() -> dict[str, int]:
    return {"max_restarts": -1, "max_task_retries": 0}
