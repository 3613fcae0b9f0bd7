"""The models that are shipped: whole, and as good as their cards say, on pictures made here."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tigerfg.benchmark.evaluate import Row, evaluate_rows
from tigerfg.benchmark.render.catalog import write_catalog
from tigerfg.bundle import _SHIPPED, DEFAULT_MODEL, MANIFEST_FILE, Bundle
from tigerfg.encoder import Encoder
from tigerfg.engines import open_engine

SHIPPED = sorted(file.parent.name for file in _SHIPPED.glob(f"*/{MANIFEST_FILE}"))
LEAST = {"lite": (0.68, 0.77), "tiny": (0.62, 0.74)}  # Recall@1, pointing accuracy
PRODUCTS, SEED = 200, 77_001  # a seed that no model was trained on


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    write_catalog(folder, PRODUCTS, SEED, image_size=256, workers=2)
    return folder


def test_the_default_is_shipped():
    assert DEFAULT_MODEL in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_file_is_what_the_manifest_says(name):
    bundle = Bundle.open(name)
    bundle.verify()
    assert bundle.name == name
    config = bundle.manifest["model"]
    assert bundle.manifest.get("attention_crop") == config.get("attention_crop")
    assert (bundle.attention_crop is not None) is (name == "lite")
    assert (bundle.path / "MODEL_CARD.md").read_text().startswith(f"# Model card: {name}\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_text_finds_the_product_in_a_cluttered_picture(rendered, name):
    """Of 200 products; the bounds are three standard errors below .77, .85 and .71, .82."""
    with closing(Encoder(Bundle.open(name), open_engine(name, "onnx", "fp32", 2))) as encoder:
        item, whole = evaluate_rows(rendered / "cluttered", encoder, [Row(), Row("global")])
    assert item.overall.recall[1] > LEAST[name][0]
    assert item.overall.recall[1] > whole.overall.recall[1] + 0.25  # the picture without its text
    assert item.grounding.pointing > LEAST[name][1] > 3 * item.grounding.chance
