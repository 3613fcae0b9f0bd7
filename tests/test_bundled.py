"""A bundle serves as the checkpoint it was made of, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import CONV, HF, build

from tigerfg.bundle import MANIFEST_FILE, Bundle, shipped
from tigerfg.errors import BundleError, InputError
from tigerfg.export.graph import tower_graph
from tigerfg.export.weights import WEIGHTS, write_models
from tigerfg.model import load_checkpoint, preset
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
    places = json.loads((bundle / MANIFEST_FILE).read_text())["parameters"]
    data = bytearray((bundle / WEIGHTS).read_bytes())
    data[places["plain"]["gate_pool"]] ^= 1
    (bundle / WEIGHTS).write_bytes(data)
    with pytest.raises(BundleError, match=r"do not belong together.*again"):
        load_checkpoint(bundle)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([], "parameters cannot be read"),
        ({"plain": {}, "transposed": {}, "sha256": ""}, "parameters are not those of the model"),
        ({"plain": {}}, "parameters cannot be read .*transposed"),
    ],
)
def test_parameters_that_are_none_are_refused(bundle: Path, places: object, words: str) -> None:
    change(bundle, parameters=places)
    with pytest.raises(BundleError, match=f"{MANIFEST_FILE}: {words}.*again"):
        load_checkpoint(bundle)


@pytest.mark.parametrize("offset", [-64, 0, 4, True, 10**12, 10**30, "a", None, 1.5])
def test_other_offsets_are_refused(bundle: Path, offset: object) -> None:
    places = json.loads((bundle / MANIFEST_FILE).read_text())["parameters"]
    places["plain"]["gate_pool"] = offset
    change(bundle, parameters=places)
    with pytest.raises(BundleError, match=f"{MANIFEST_FILE}: parameters .*again"):
        load_checkpoint(bundle)


def test_a_matrix_the_other_way_round_is_refused(bundle: Path) -> None:
    places = json.loads((bundle / MANIFEST_FILE).read_text())["parameters"]
    name = next(name for name in places["transposed"] if name.endswith("w_q.weight"))  # square
    places["plain"][name] = places["transposed"].pop(name)
    change(bundle, parameters=places)
    with pytest.raises(BundleError, match="do not belong together"):
        load_checkpoint(bundle)


def test_a_name_in_both_orders_is_refused(bundle: Path) -> None:
    places = json.loads((bundle / MANIFEST_FILE).read_text())["parameters"]
    places["transposed"]["gate_pool"] = places["plain"]["gate_pool"]
    change(bundle, parameters=places)
    with pytest.raises(BundleError, match="not those of the model"):
        load_checkpoint(bundle)


def test_no_model_in_the_manifest(bundle: Path) -> None:
    change(bundle, model=None)
    with pytest.raises(BundleError, match="model is missing or incomplete"):
        load_checkpoint(bundle)


@pytest.mark.parametrize("name", shipped())
def test_shipped_models_can_be_trained_and_exported(name: str) -> None:
    assert load_checkpoint(name).config == preset(name)
    assert find_checkpoint(name) == Bundle.open(name).path


def test_a_directory_goes_before_a_shipped_name(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny") == preset("tiny")
    for source in (small_checkpoint, small_bundle):
        shutil.copytree(source, tmp_path / "tiny")
        for name in ("tiny", "./tiny", tmp_path / "tiny"):
            assert load_config(name) == load_checkpoint(name).config == CONV
            assert fingerprint(name) == fingerprint(small_checkpoint)
            assert find_checkpoint(name) == tmp_path / "tiny"
        shutil.rmtree(tmp_path / "tiny")
    (tmp_path / "tiny" / "checkpoint").mkdir(parents=True)  # a run's directory, not its checkpoint
    with pytest.raises(InputError, match=r"tiny has no config.json or manifest.json; give .*lite"):
        find_checkpoint("tiny")
