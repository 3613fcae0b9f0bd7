"""The mean of models: as an oracle in float64 has it, and refused where it would mean nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import CONV, HF, LEVELS, build, tokenizer_file
from typer.testing import CliRunner

from tigerfg.attention_crop import AttentionCrop
from tigerfg.cli import app as cli
from tigerfg.errors import InputError
from tigerfg.model import load_checkpoint, save_checkpoint
from tigerfg.model.average import average_checkpoints
from tigerfg.model.checkpoint import fingerprint, load_config


@pytest.fixture
def saved(tmp_path: Path):
    """Makes a random model's checkpoint of a name, configuration and seed."""
    words = tokenizer_file(tmp_path / "words.json")

    def save(name: str, seed: int, config=CONV, tokenizer: Path = words) -> Path:
        return save_checkpoint(build(config, seed), tokenizer, tmp_path / name)

    return save


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).state_dict()


@pytest.mark.parametrize("config", [CONV, LEVELS, HF], ids=lambda config: config.name)
def test_the_mean_is_that_of_an_oracle_in_float64(saved, tmp_path, config):
    paths = [saved(f"m{seed}", seed, config) for seed in range(3)]
    out = average_checkpoints(paths, tmp_path / "mean", [1, 2, 5])
    models = [parameters(path) for path in paths]
    mean = parameters(out)
    assert mean.keys() == models[0].keys()
    for name, value in mean.items():
        oracle = sum(
            w / 8 * model[name].double() for w, model in zip((1, 2, 5), models, strict=True)
        )
        assert value.dtype == models[0][name].dtype
        assert torch.allclose(value.double(), oracle, rtol=1e-7, atol=1e-12)  # one rounding
    changed = [n for n in mean if not torch.equal(mean[n], models[2][n])]
    assert len(changed) > len(mean) / 2


def test_a_model_with_itself_stays_to_the_bit_and_its_start_is_found_by_name(saved, tmp_path):
    start = saved("start", 3)
    out = average_checkpoints([start, start], tmp_path / "new" / "mean")
    assert fingerprint(out) == fingerprint(start)
    shipped = average_checkpoints(["tiny", "tiny"], tmp_path / "tiny-mean", [3, 1])
    assert fingerprint(shipped) == fingerprint("tiny")
    card = (shipped / "MODEL_CARD.md").read_text()
    assert card.startswith("# Model card: tiny\n")
    assert f"| 0.75 | tiny | {fingerprint('tiny')[:12]} |" in card
    assert f"| 0.25 | tiny | {fingerprint('tiny')[:12]} |" in card
    assert card.count("\n## Model card: tiny\n") == 1  # the sources' own card, once
    assert "\n### What it can't do\n" in card


def test_weights_of_any_size_are_shares(saved, tmp_path):
    paths = [saved("a", 1), saved("b", 2)]
    same = fingerprint(average_checkpoints(paths, tmp_path / "same"))
    for number, weight in enumerate((1e-300, 1e308)):
        out = average_checkpoints(paths, tmp_path / str(number), [weight, weight])
        assert fingerprint(out) == same


def test_a_source_that_is_broken_is_named(saved, tmp_path):
    good, bad = saved("good", 1), tmp_path / "bad"
    model = build(CONV, 2)
    with torch.no_grad():
        model.gate_text[3] = float("nan")
    save_checkpoint(model, tmp_path / "words.json", bad)
    with pytest.raises(InputError, match=r"gate_text of .*bad is not finite"):
        average_checkpoints([good, bad], tmp_path / "mean")
    (bad / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"bad has no tokenizer\.json"):
        average_checkpoints([bad, good], tmp_path / "mean")
    with pytest.raises(InputError, match=r"bad has no tokenizer\.json"):
        average_checkpoints([good, bad], tmp_path / "mean")
    (bad / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"bad: config\.json: vision is missing"):
        average_checkpoints([bad, good], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_picture_sizes_are_those_of_the_last(saved, tmp_path):
    small = saved("small", 1)
    large = saved("large", 2, replace(CONV, name="large", query_size=48, item_size=96))
    config = load_config(average_checkpoints([small, large], tmp_path / "mean"))
    assert (config.name, config.query_size, config.item_size) == ("large", 48, 96)
    config = load_config(average_checkpoints([large, small], tmp_path / "other"))
    assert (config.name, config.query_size, config.item_size) == ("small", 32, 64)


def test_the_attention_crop_is_that_of_the_last_and_in_the_card(saved, tmp_path):
    crop = AttentionCrop(0.5, 1.0)
    once, twice = saved("once", 1), saved("twice", 2, replace(CONV, attention_crop=crop))
    for sources, kept, told in (
        ([once, twice], crop, "threshold 0.5, weight 1"),
        ([twice, once], None, "none"),
    ):
        out = average_checkpoints(sources, tmp_path / f"mean-{told}")
        assert load_config(out).attention_crop == kept
        assert f"Attention crop: {told}." in (out / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1.0], "1 of them for 2 models"),
        ([0.0, 1.0], "0.0 is no positive number"),
        ([1.0, -0.5], "-0.5 is no positive number"),
        ([1.0, float("nan")], "nan is no positive number"),
        ([float("inf"), 1.0], "inf is no positive number"),
    ],
)
def test_wrong_weights_are_named(saved, tmp_path, weights, says):
    paths = [saved("a", 1), saved("b", 2)]
    with pytest.raises(InputError, match=says):
        average_checkpoints(paths, tmp_path / "mean", weights)
    assert not (tmp_path / "mean").exists()


def test_models_that_differ_are_refused(saved, tmp_path):
    first = saved("first", 1)
    wider = saved("wider", 1, replace(CONV, embedding_dim=48))
    with pytest.raises(InputError, match=r"embedding_dim is 32 in .*first and 48 in .*wider"):
        average_checkpoints([first, wider], tmp_path / "mean")
    told = HF.vision.hf_config | {"layer_norm_eps": 0.1}
    more = saved("more", 1, replace(HF, vision=replace(HF.vision, hf_config=told)))
    plain = saved("plain", 1, HF)
    for pair in ([plain, more], [more, plain]):  # whichever knows the setting
        with pytest.raises(InputError, match=r"hf_config\.layer_norm_eps is"):
            average_checkpoints(pair, tmp_path / "mean")
    words = tokenizer_file(tmp_path / "fewer.json", 40)
    with pytest.raises(InputError, match="other tokenizers"):
        average_checkpoints([first, saved("words", 1, tokenizer=words)], tmp_path / "mean")
    with pytest.raises(InputError, match="name two models or more"):
        average_checkpoints([first], tmp_path / "mean")
    with pytest.raises(InputError, match="no directory"):
        average_checkpoints([first, tmp_path / "gone"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_nothing_is_replaced(saved, tmp_path, monkeypatch):
    paths = [saved("a", 1), saved("b", 2)]
    before = fingerprint(paths[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for out in (paths[0], tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="neither new nor empty"):
            average_checkpoints(paths, out)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(InputError, match="is a link"):
        average_checkpoints(paths, tmp_path / "link")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="the current directory"):
        average_checkpoints(paths, ".")
    monkeypatch.chdir(tmp_path)
    assert fingerprint(paths[0]) == before
    assert fingerprint(average_checkpoints(paths, tmp_path / "empty")) != before


def test_the_command(saved, tmp_path):
    paths = [str(saved("a", 1)), str(saved("b", 2))]
    out = tmp_path / "mean"
    given = ["average", *paths, "--weight", "1", "--weight", "3", "--out", str(out)]
    result = CliRunner().invoke(cli.app, given)
    assert result.exit_code == 0, result.output
    same = average_checkpoints(paths, tmp_path / "same", [0.25, 0.75])
    assert fingerprint(out) == fingerprint(same)
    again = CliRunner().invoke(cli.app, given)
    assert again.exit_code == 1
    assert again.stderr.startswith("error: out: ")
