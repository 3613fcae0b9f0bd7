"""Query encoding: our engine beside eager PyTorch and a default ONNX Runtime session."""

from __future__ import annotations

import pytest
from contenders import QueryModel, default_session

from tigerfg.engines import open_engine
from tigerfg.engines.accuracy import cosines

CONTENDERS = ("torch eager fp32", "onnxruntime default fp32", "tigerfg fp32", "tigerfg auto")


@pytest.fixture(scope="module", params=["tiny", pytest.param("base", marks=pytest.mark.slow)])
def model(request, tmp_path_factory, threads):
    return QueryModel(request.param, tmp_path_factory.mktemp(request.param), threads)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("batch", [1, 16])
def test_encode(model, batch, contender, threads, compare, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the choice is made here and now
    name, feeds = model.config.name, model.pixels(batch)
    label = contender
    if contender.startswith("torch"):
        call = lambda: model.eager(feeds)  # noqa: E731
    elif contender.startswith("onnxruntime"):
        session = default_session(model.bundle.onnx("query", "fp32"), threads)
        call = lambda: session.run(["embedding"], feeds)[0]  # noqa: E731
    else:
        precision = contender.split()[1]
        engine = open_engine(model.bundle, precision=precision, threads=threads)
        call = lambda: engine.encode_queries(**feeds)  # noqa: E731
        label = f"{contender} ({engine.info.name} {engine.info.precision})"
    agreement = float(cosines(call(), model.eager(feeds)).mean())
    assert agreement > 0.99
    rounds = {"tiny": 30, "base": 5}[name]
    compare(f"encode {name} batch {batch}", label, call, batch, agreement, rounds, warmup=2)
