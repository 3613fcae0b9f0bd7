"""Readers of public benchmarks in the layouts in which they are distributed.

Nothing is downloaded: the user has the directory. One module a dataset; its text says where the
data comes from, its licence as far as known, its layout and its standard protocol.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tigerfg.benchmark.datasets import (
    abo,
    grocery,
    inshop,
    product1m,
    products10k,
    shopee,
    sop,
)
from tigerfg.benchmark.datasets.source import EvalSet
from tigerfg.errors import InputError

__all__ = ["DATASETS", "Dataset", "EvalSet", "load_dataset"]


@dataclass(frozen=True)
class Dataset:
    """A benchmark that can be read.

    Attributes:
        title: for people.
        splits: what can be evaluated, the usual one first.
        download: what a user fetches from where.
        read: ``read(directory, split)``.
    """

    title: str
    splits: tuple[str, ...]
    download: str
    read: Callable[[Path, str], EvalSet]


DATASETS: dict[str, Dataset] = {
    name: Dataset(title, module.SPLITS, module.DOWNLOAD, module.read)
    for name, title, module in (
        ("sop", "Stanford Online Products", sop),
        ("inshop", "DeepFashion In-shop Clothes Retrieval", inshop),
        ("product1m", "Product1M", product1m),
        ("shopee", "Shopee product matching", shopee),
        ("abo", "Amazon Berkeley Objects", abo),
        ("products10k", "Products-10K", products10k),
        ("grocery", "GroceryStoreDataset", grocery),
    )
}


def load_dataset(name: str, directory: str | os.PathLike, split: str | None = None) -> EvalSet:
    """Read a public benchmark: its gallery, its queries and its right answers.

    Pictures are not opened, only looked for. Rows that cannot be used (broken, hostile, or of a
    picture that is not there) are listed in ``rejected``; the others are kept.

    Args:
        name: one of `DATASETS`.
        directory: where the dataset was unpacked.
        split: one of the dataset's splits; the usual one if None.

    Raises:
        InputError: unknown name or split, a file is missing (names it and what to download), or
            nothing is left to evaluate.
    """
    if name not in DATASETS:
        raise InputError(f"dataset {name!r} is none of {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    split = dataset.splits[0] if split is None else split
    if split not in dataset.splits:
        raise InputError(f"split {split!r} of {name} is none of {', '.join(dataset.splits)}")
    return dataset.read(Path(directory), split)
