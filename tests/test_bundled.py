"""A bundle serves as the checkpoint it was made of, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import CONV, HF, build, tokenizer_file

from tigerfg.bundle import MANIFEST_FILE, Bundle, shipped
from tigerfg.errors import BundleError
from tigerfg.export.graph import tower_graph
from tigerfg.export.weights import WEIGHTS, write_models
from tigerfg.model import load_checkpoint, preset
from tigerfg.model.bundled import bundle_weights
from tigerfg.model.checkpoint import find_checkpoint, fingerprint, load_config, parameters


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle, tmp_path / "bundle")


def change(folder: Path, **fields: object) -> None:
    """Write other values into the manifest; None removes one."""
    file = folder / MANIFEST_FILE
    content = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_bundle_gives_back_the_checkpoint(small_bundle: Path, small_checkpoint: Path) -> None:
    found, kept = load_checkpoint(small_bundle), load_checkpoint(small_checkpoint)
    assert found.config == kept.config == load_config(small_bundle)
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    weights = found.state_dict()
    assert weights.keys() == kept.state_dict().keys()
    for name, value in kept.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert fingerprint(small_bundle) == fingerprint(small_checkpoint)


def test_parameters_are_stored_only_where_graphs_do_not_hold_them(tmp_path: Path) -> None:
    model = build(HF)
    file = write_models({f"{t}.onnx": tower_graph(model, t) for t in ("query", "item")}, tmp_path)
    before = (tmp_path / WEIGHTS).stat().st_size
    arrays = {name: value.numpy() for name, value in parameters(model).items()}
    places = file.add_parameters(arrays)
    grown = (tmp_path / WEIGHTS).stat().st_size - before
    assert grown < 0.5 * sum(value.nbytes for value in arrays.values())
    assert places["transposed"]  # what the graphs multiply by is the linear layers' transpose
    for name, value in arrays.items():
        turned = name in places["transposed"]
        offset = places["transposed" if turned else "plain"][name]
        stored = np.fromfile(tmp_path / WEIGHTS, np.float32, value.size, offset=offset)
        np.testing.assert_array_equal(stored, (value.T if turned else value).ravel(), name)
    assert file.add_parameters(arrays) == places  # and nothing is written a second time
    assert (tmp_path / WEIGHTS).stat().st_size == before + grown


def test_a_bundle_without_parameters_says_how_to_get_them(bundle: Path) -> None:
    change(bundle, parameters=None)
    with pytest.raises(BundleError, match=r"no float32 parameters.*--fp32"):
        load_checkpoint(bundle)
    assert Bundle.open(bundle).name == "small"  # it still serves


def test_damage_is_named(bundle: Path) -> None:
    data = bytearray((bundle / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / WEIGHTS).write_bytes(data)
    with pytest.raises(BundleError, match=f"{WEIGHTS}: damaged"):
        load_checkpoint(bundle)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([], "parameters of the manifest"),
        ({"plain": {}, "transposed": {}}, "not those of the model"),
        ({"plain": {}}, "parameters of the manifest"),
    ],
)
def test_parameters_that_are_none_are_refused(bundle: Path, places: object, words: str) -> None:
    change(bundle, parameters=places)
    with pytest.raises(BundleError, match=words):
        load_checkpoint(bundle)


@pytest.mark.parametrize("offset", [-64, 10**12, "a", None, 1.5])
def test_offsets_outside_the_file_are_refused(bundle: Path, offset: object) -> None:
    places = json.loads((bundle / MANIFEST_FILE).read_text())["parameters"]
    places["plain"]["gate_pool"] = offset
    change(bundle, parameters=places)
    with pytest.raises(BundleError, match="parameters of the manifest"):
        load_checkpoint(bundle)


def test_a_shape_that_the_file_ends_before_is_refused(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    shapes = {name: tuple(value.shape) for name, value in build(CONV).state_dict().items()}
    shapes["gate_pool"] = (10**9,)
    with pytest.raises(BundleError, match="parameters of the manifest"):
        bundle_weights(bundle, shapes)


def test_no_model_in_the_manifest(bundle: Path) -> None:
    change(bundle, model=None)
    with pytest.raises(BundleError, match="manifest has no model"):
        load_checkpoint(bundle)


@pytest.mark.parametrize("name", shipped())
def test_shipped_models_can_be_trained_and_exported(name: str) -> None:
    assert load_checkpoint(name).config == preset(name)
    assert find_checkpoint(name) == Bundle.open(name).path


def test_what_is_there_goes_before_a_shipped_name(
    small_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(small_checkpoint, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny") == CONV
    assert load_config(tmp_path / "tiny") == CONV
    shutil.rmtree(tmp_path / "tiny")
    tokenizer_file(tmp_path / "tokenizer.json")
    assert load_config("tiny") == preset("tiny")
