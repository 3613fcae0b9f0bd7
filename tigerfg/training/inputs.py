"""What a run learns from: pools and shards, the held-out pool, and the text tokenizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from tigerfg.errors import InputError
from tigerfg.model.checkpoint import TOKENIZER, find_checkpoint
from tigerfg.text import TextTokenizer
from tigerfg.training.batches import BatchMaker
from tigerfg.training.card import HELD_OUT
from tigerfg.training.config import TrainConfig
from tigerfg.training.distributed import World
from tigerfg.training.photos import photo_pool, photos_digest
from tigerfg.training.pool import Pool
from tigerfg.training.prepare import rendered_pool
from tigerfg.training.sources import Source
from tigerfg.training.state import STATE
from tigerfg.training.tokenizer import train_tokenizer

log = logging.getLogger("tigerfg")

TOKENIZER_TEXTS, AT_ONCE = 20_000, 256  # of a source that does not hold its texts in memory


class Inputs:
    """Data of a run, made by the first rank and opened by all.

    Attributes:
        maker: makes batches. held_out: rendered products for validation, one crop, one standard
            and one cluttered picture each. tokenizer, tokenizer_file: of the item texts.
        one_view: how many products of the photos have a single one.

    The tokenizer is made from the texts, unless the run has a state: that goes with its own.
    """

    def __init__(self, config: TrainConfig, world: World) -> None:
        pools = Path(config.out) / "pools"
        folders = {kind: pools / name for kind, name in pool_names(config).items()}
        if world.first:
            makers = _pool_makers(config)
            for kind, folder in folders.items():
                _prepare(folder, makers[kind])
        world.wait()
        self.held_out = Pool.load(folders["held_out"])
        sources: list[Source] = []
        if config.shards is None:
            sources.append(Pool.load(folders["rendered"]))
        else:
            from tigerfg.training.shards import ShardPool

            sizes = (config.model.query_size, config.model.item_size)
            sources.append(ShardPool(config.shards, *sizes))
        photos = [Pool.load(folders[f"photos.{n}"]) for n in range(len(config.photos))]
        self.one_view = sum(pool.one_view for pool in photos)
        sources += photos
        shares = [max(0.0, 1.0 - sum(config.photo_shares)), *config.photo_shares]
        self.tokenizer_file = Path(config.out) / TOKENIZER
        begun = (Path(config.out) / STATE).exists()
        if config.init is not None:
            self.tokenizer_file = find_checkpoint(config.init) / TOKENIZER
        elif world.first and not (begun and self.tokenizer_file.exists()):
            texts = (text for source in sources for text in _texts(source))
            train_tokenizer(texts, config.model.text.vocab_size, self.tokenizer_file)
        world.wait()
        self.tokenizer = TextTokenizer.from_file(self.tokenizer_file, config.model.text.max_length)
        self.maker = BatchMaker(sources, shares, config.model, self.tokenizer)


def pool_names(config: TrainConfig) -> dict[str, str]:
    """Kind of pool -> its folder under `out/pools`: named by all that it is made from, photos by
    what they hold (`photos_digest`), so that runs can share pools and none takes another's. The
    kind of a directory of photos has its number: photos.0, photos.1.

    Raises:
        InputError: there are no photos to read.
    """
    sizes = f"{config.model.query_size}-{config.model.item_size}"
    names = {}
    made = f"{config.photo_crops}-{config.photo_collages}-{config.product_seed}"
    for number, photos in enumerate(config.photos):  # first: what is wrong is told at once
        held = f"{photos.resolve().name}-{photos_digest(photos)}"
        names[f"photos.{number}"] = f"photos-{held}-{config.photos_split}-{made}-{sizes}"
    if config.shards is None:
        names["rendered"] = f"rendered-{config.products}-{config.product_seed}-{sizes}"
    names["held_out"] = f"held_out-{_held_out(config)}-{_held_out_seed(config)}-{sizes}"
    return names


def _held_out(config: TrainConfig) -> int:
    return min(config.products, HELD_OUT)


def _held_out_seed(config: TrainConfig) -> int:
    return config.product_seed + 1000


def _pool_makers(config: TrainConfig) -> dict[str, Callable[..., Pool]]:
    """Kind of pool -> how it is made, given `scratch` (see `make_pool`). The run's own seed is in
    none: a study shares its pools."""
    sizes = (config.model.query_size, config.model.item_size)
    workers = config.threads or len(os.sched_getaffinity(0))
    photos = {
        f"photos.{number}": partial(
            photo_pool,
            directory,
            config.photos_split,
            *sizes,
            seed=config.product_seed,
            crops_per_photo=config.photo_crops,
            collages=config.photo_collages,
        )
        for number, directory in enumerate(config.photos)
    }
    return {
        **photos,
        "rendered": partial(
            rendered_pool, config.products, config.product_seed, *sizes, workers=workers
        ),
        "held_out": partial(
            rendered_pool,
            _held_out(config),
            _held_out_seed(config),
            *sizes,
            views=1,
            cluttered=1,
            workers=workers,
        ),
    }


def _prepare(folder: Path, make: Callable[..., Pool]) -> None:
    """Make the pool where it is missing; another process may be making it too."""
    if folder.exists():
        return
    log.info("preparing training pictures: %s", folder.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        make(scratch=folder.parent).save(folder)
    except OSError as error:
        if not folder.exists():  # else the other one was first, and its pool is the same
            raise InputError(
                f"out: {folder} cannot be written: {error}; while they are made, pictures take "
                "twice the space that they need in the end"
            ) from error


def _texts(source: Source) -> Iterator[str]:
    """Texts to train the tokenizer on."""
    if isinstance(source, Pool):
        yield from (text for variants in source.texts for text in variants)
    else:
        drawn = source.draw(TOKENIZER_TEXTS, np.random.default_rng(0))
        for start in range(0, TOKENIZER_TEXTS, AT_ONCE):
            yield from drawn[start : start + AT_ONCE].texts()
