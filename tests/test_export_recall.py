"""What a precision costs in Recall@1: `tiny` on rendered products and on real photos."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tigerfg.bundle import TOWERS, Bundle
from tigerfg.engines.onnx import OnnxRunner
from tigerfg.errors import EngineError
from tigerfg.export.bundle import CALIBRATION
from tigerfg.export.emulate import EmulatedRunner
from tigerfg.export.parity import check_recall, encode_in_batches, measure_recall
from tigerfg.export.precision import typed_graph
from tigerfg.export.quantize import gpu_int8_graph
from tigerfg.export.samples import load_samples

PICTURES = 400


@pytest.fixture(scope="module")
def tiny():
    return Bundle.open("tiny")


@pytest.fixture(scope="module")
def graphs(tiny):
    """(tower, precision) -> typed graph of `tiny`, calibrated on rendered pictures."""
    calibration = load_samples(tiny.preprocessing, tiny.tokenizer, CALIBRATION, None)
    made = {}
    for tower in TOWERS:
        proto = onnx.load(tiny.onnx(tower, "fp32"))
        feeds = getattr(calibration, tower)
        made[tower, "fp16"] = typed_graph(proto, "fp16")
        made[tower, "bf16"] = typed_graph(proto, "bf16")
        made[tower, "int8"] = typed_graph(gpu_int8_graph(proto, feeds), "fp16")
    return made


@pytest.fixture(scope="module")
def rendered(tiny):
    """Rendered pictures that were not calibrated on, and what float32 gives for them."""
    made = load_samples(tiny.preprocessing, tiny.tokenizer, PICTURES + CALIBRATION, None)
    return with_reference(tiny, made.part(slice(CALIBRATION, None)))


@pytest.fixture(scope="module")
def grocery(tiny, shared_data):
    """Real photos, and what float32 gives for them."""
    folder = shared_data / "grocery" / "standard"
    return with_reference(tiny, load_samples(tiny.preprocessing, tiny.tokenizer, PICTURES, folder))


def with_reference(tiny, samples):
    return samples, {
        tower: encode_in_batches(
            OnnxRunner(tiny.onnx(tower, "fp32"), tower, "fp32", 2).run, getattr(samples, tower), 16
        )
        for tower in TOWERS
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precisions"),
    [
        ("rendered", ("fp16", "bf16", "int8")),
        pytest.param("grocery", ("int8",), marks=pytest.mark.data),  # which loses most
    ],
)
def test_recall_stays(kind, precisions, graphs, request):
    samples, expected = request.getfixturevalue(kind)
    for precision in precisions:
        found = {
            tower: encode_in_batches(
                EmulatedRunner(graphs[tower, precision]).run, getattr(samples, tower), 16
            )
            for tower in TOWERS
        }
        recall = measure_recall(samples, expected, found)
        print(f"{kind} {precision}: {recall}")
        assert recall["queries"] >= 200
        check_recall(precision, recall)


@pytest.mark.slow
def test_a_coarse_quantisation_is_refused(rendered):
    """The same check on the same pictures, a query's embedding in steps of its largest value."""
    samples, expected = rendered
    steps = np.abs(expected["query"]["embedding"]).max()
    coarse = np.round(expected["query"]["embedding"] / steps) * steps
    recall = measure_recall(samples, expected, {**expected, "query": {"embedding": coarse}})
    with pytest.raises(EngineError, match="points of Recall@1"):
        check_recall("coarse", recall)


@pytest.mark.parametrize(
    ("lost", "gained", "refused"),
    [(0, 0, False), (7, 2, False), (12, 1, True), (40, 40, False), (60, 40, False), (70, 40, True)],
)
def test_a_loss_is_told_from_chance(lost, gained, refused):
    """400 queries: half a point is 2 of them, chance two deviations of those that changed."""
    result = {
        "queries": 400,
        "lost": lost,
        "gained": gained,
        "reference": 0.8,
        "found": 0.8 - (lost - gained) / 400,
    }
    if refused:
        with pytest.raises(EngineError, match=f"{lost} lost, {gained} gained"):
            check_recall("int8", result)
    else:
        check_recall("int8", result)
