"""Ingest: pictures and texts from disk to embeddings, ours beside a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from tigerfg.catalog import read_items
from tigerfg.encoder import Encoder
from tigerfg.engines import open_engine
from tigerfg.engines.accuracy import cosines


@pytest.fixture(scope="module")
def items(catalog):
    return list(read_items(catalog))


@pytest.fixture(scope="module")
def expected(items, plain):
    return np.stack([plain.encode_item(item) for item in items])


def test_plain_loop(items, expected, plain, compare):
    def call() -> list[np.ndarray]:
        return [plain.encode_item(item) for item in items]

    compare("ingest", "plain loop", call, len(items), 1.0, rounds=3, warmup=0)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_encoder(precision, items, expected, bundle, threads, compare):
    engine = open_engine(bundle, precision=precision, threads=threads)
    encoder = Encoder(bundle, engine)

    def call() -> np.ndarray:
        return np.stack([result.embedding for result in encoder.encode_items(items)])

    agreement = float(cosines(call(), expected).mean())
    compare("ingest", f"tigerfg {precision}", call, len(items), agreement, rounds=3, warmup=0)
