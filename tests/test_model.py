"""The reference model: its mathematics, its invariances, its checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import (
    BERT_SMALL,
    CONV,
    DINOV3_SMALL,
    HF,
    build,
    inputs,
    tensors,
    tokenizer_file,
)
from torch import Tensor

from tigerfg.errors import InputError
from tigerfg.kernels import (
    grounding_reference,
    masked_mean_reference,
    project_values_reference,
)
from tigerfg.model import (
    ModelConfig,
    TigerFG,
    count_parameters,
    load_checkpoint,
    preset,
    save_checkpoint,
)
from tigerfg.model.backbones import build_backbone
from tigerfg.model.checkpoint import fingerprint
from tigerfg.model.config import GroundingConfig, TextConfig, VisionConfig
from tigerfg.model.grounding import TextGuidedGrounding
from tigerfg.model.towers import PatchPool

# float32: a few hundred sums of order 1 at 6e-8 each
ATOL = 5e-6


def projected_grounding(
    module: TextGuidedGrounding, patches: Tensor, patch_mask: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor]:
    """The usual form: every patch is projected to a key and a value of each head.

    patches (B, N, D), texts (B, M, D) -> g (B, D), map (B, N).
    """
    heads, width = module.heads, module.width
    d = width // heads
    keys = torch.layer_norm(patches, (width,), eps=1e-6) @ module.w_k.weight.T
    values = patches @ module.w_v.T
    queries = module.w_q(texts)
    pooled, maps = [], []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        logits = queries[:, :, part] @ keys[:, :, part].transpose(1, 2) / d**0.5  # [B, M, N]
        a = logits.masked_fill(~patch_mask[:, None], -torch.inf).softmax(dim=-1)
        maps.append(a)
        pooled.append((a @ values[:, :, part]).mean(dim=1))
    return torch.cat(pooled, dim=-1) @ module.w_o.T, torch.cat(maps, dim=1).mean(dim=1)


@st.composite
def grounding_cases(draw):
    heads = draw(st.sampled_from([1, 2, 3, 5]))
    return {
        "heads": heads,
        "width": heads * draw(st.integers(1, 9)),
        "queries_per_head": draw(st.integers(1, 3)),
        "batch": draw(st.integers(1, 3)),
        "patches": draw(st.sampled_from([1, 2, 7, 64, 196, 257])),
        "length": draw(st.sampled_from([1, 2, 13, 63, 77])),
        "seed": draw(st.integers(0, 2**16)),
        "scale": draw(st.sampled_from([0.1, 1.0, 10.0])),
    }


@settings(max_examples=60, derandomize=True)
@given(grounding_cases())
def test_absorbed_form_is_the_usual_form(case):
    torch.manual_seed(case["seed"])
    text_width, width = 6, case["width"]
    config = GroundingConfig(case["heads"], case["queries_per_head"])
    module = TextGuidedGrounding(width, text_width, config)
    module = module.double().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(torch.randn_like(parameter) / width**0.5)
    patches = case["scale"] * torch.randn(case["batch"], case["patches"], width).double()
    patch_mask = torch.rand(case["batch"], case["patches"]) < 0.7
    patch_mask[:, 0] = True
    tokens = torch.randn(case["batch"], case["length"], text_width).double()
    token_mask = torch.rand(case["batch"], case["length"]) < 0.7
    token_mask[:, -1] = True
    found = module(tokens, token_mask)
    pooled, maps = grounding_reference(found.queries, patches, patch_mask)
    pooled = project_values_reference(pooled, module.w_v, module.w_o, module.heads)
    found_map = maps.mean(dim=1)
    weights, _, texts = module.token_features(tokens, token_mask)
    g, grounding_map = projected_grounding(module, patches, patch_mask, texts)
    size = max(1.0, float(patches.abs().max()))  # float64, relative to the patches
    torch.testing.assert_close(pooled, g, rtol=0, atol=1e-12 * size)
    torch.testing.assert_close(found_map, grounding_map, rtol=0, atol=1e-12)
    ones = torch.ones(case["batch"]).double()
    torch.testing.assert_close(found_map.sum(dim=1), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.token_weights.sum(dim=1), ones, rtol=0, atol=1e-12)
    assert (found_map[~patch_mask] == 0).all()
    assert (weights.mean(dim=1)[~token_mask] == 0).all()


def test_affine_key_norm_is_absorbed_into_the_query():
    torch.manual_seed(0)
    v = torch.randn(2, 11, 6).double()
    x = torch.randn(2, 4, 6).double()
    gamma, beta = torch.randn(6).double(), torch.randn(6).double()
    keys = torch.layer_norm(v, (6,), gamma, beta, 1e-6)
    expected = (x @ keys.transpose(1, 2)).softmax(dim=-1)
    _, found = grounding_reference(x * gamma, v)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_without_a_valid_patch_everything_is_zero():
    v, mask = torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool)
    mask[1] = True
    p, a = grounding_reference(torch.randn(2, 3, 4), v, mask)
    assert not p[0].any()
    assert not a[0].any()
    assert a[1].sum() == pytest.approx(3, abs=1e-6)
    mean = masked_mean_reference(v, mask)
    assert not mean[0].any()
    torch.testing.assert_close(mean[1], v[1].mean(dim=0), rtol=0, atol=1e-6)


def test_at_the_start_values_and_outputs_pass_through():
    torch.manual_seed(1)
    module = TextGuidedGrounding(12, 5, GroundingConfig(heads=3, queries_per_head=2)).double()
    patches, tokens = torch.randn(2, 9, 12).double(), torch.randn(2, 4, 5).double()
    patch_mask = torch.ones(2, 9, dtype=torch.bool)
    token_mask = torch.ones(2, 4, dtype=torch.bool)
    _, _, texts = module.token_features(tokens, token_mask)
    pooled, _ = grounding_reference(module.absorbed_queries(texts), patches, patch_mask)
    heads = pooled.view(2, 3, 2, 12).mean(dim=2)  # [B, H, D]: the two queries of a head averaged
    expected = torch.cat([heads[:, h, 4 * h : 4 * h + 4] for h in range(3)], dim=-1)
    found = project_values_reference(pooled, module.w_v, module.w_o, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_before_training_the_true_map_gives_the_region_embedding():
    torch.manual_seed(2)
    model = TigerFG(CONV).double().eval().requires_grad_(False)
    feeds = inputs(CONV, "item", 2)
    pixels, patch_mask, token_ids, token_mask = tensors(feeds)
    patches = model.vision(pixels.double())
    region = torch.rand(2, patches.shape[1]).double() * patch_mask
    region /= region.sum(dim=1, keepdim=True)

    def forced(x, v, mask, **_):
        maps = region[:, None].expand(-1, x.shape[1], -1)
        return maps @ v, maps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tigerfg.kernels.embedding.grounding_reference", forced)
        found = model.ground(patches, patch_mask, token_ids, token_mask)
    torch.testing.assert_close(
        found.embedding, model.encode_region(patches, region), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(found.grounding_map, region, rtol=0, atol=1e-12)


def test_query_is_the_region_of_the_whole_picture():
    model = build(CONV)
    pixels, patch_mask = tensors(inputs(CONV, "query"))
    patches = model.vision(pixels)
    torch.testing.assert_close(
        model.encode_query(pixels, patch_mask),
        model.encode_region(patches, patch_mask.float()),
        rtol=0,
        atol=ATOL,
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "attention"}, {"item_tower": "global"}],
    ids=["grounded", "attention-pool", "global"],
)
@pytest.mark.parametrize("config", [CONV, HF], ids=["conv", "dinov3-bert"])
def test_outputs_are_normalised(config, changes):
    model = build(config, **changes)
    query = model.encode_query(*tensors(inputs(config, "query")))
    item = model.encode_item(*tensors(inputs(config, "item")))
    ones = torch.ones(3)
    for embedding in (query, item.embedding):
        assert embedding.shape == (3, 32)
        torch.testing.assert_close(embedding.norm(dim=1), ones, rtol=0, atol=1e-6)
    for weights in (item.grounding_map, item.token_weights):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=1), ones, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_masked_patches_and_tokens_do_not_count(pool):
    model = build(CONV, pool=pool)
    torch.manual_seed(3)
    pixels, patch_mask, token_ids, token_mask = tensors(inputs(CONV, "item", seed=4))
    assert (~patch_mask).any()
    assert (~token_mask).any()
    patches = model.vision(pixels)
    other = torch.where(patch_mask[..., None], patches, 9 * torch.randn_like(patches))
    other_ids = torch.where(token_mask, token_ids, (token_ids + 1) % 120)
    found = model.ground(other, patch_mask, other_ids, token_mask)
    expected = model.ground(patches, patch_mask, token_ids, token_mask)
    for one, another in zip(found, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=ATOL)
    # and the mask matters at all
    whole = model.ground(patches, torch.ones_like(patch_mask), token_ids, token_mask)
    assert (whole.embedding - expected.embedding).abs().max() > 1e-3


def test_padding_a_text_changes_nothing():
    model = build(CONV)
    pixels, patch_mask, token_ids, token_mask = tensors(inputs(CONV, "item", 2, 5))
    more = torch.nn.functional.pad(token_ids, (0, 7), value=3)
    found = model.encode_item(pixels, patch_mask, more, torch.nn.functional.pad(token_mask, (0, 7)))
    expected = model.encode_item(pixels, patch_mask, token_ids, token_mask)
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=0, atol=ATOL)
    torch.testing.assert_close(
        found.token_weights[:, :5], expected.token_weights, rtol=0, atol=ATOL
    )


def test_an_empty_batch_gives_empty_outputs():
    for changes in ({}, {"pool": "attention"}, {"item_tower": "global"}):
        model = build(CONV, **changes)
        nothing = [value[:0] for value in tensors(inputs(CONV, "item", 1))]
        assert [len(value) for value in model.encode_item(*nothing)] == [0, 0, 0]
        assert model.encode_query(*nothing[:2]).shape == (0, 32)


def test_an_item_does_not_depend_on_its_neighbours_in_the_batch():
    model = build(CONV)
    feeds = inputs(CONV, "item", 4)
    together = model.encode_item(*tensors(feeds))
    for row in range(4):
        alone = model.encode_item(*(value[row : row + 1] for value in tensors(feeds)))
        torch.testing.assert_close(alone.embedding[0], together.embedding[row], rtol=0, atol=ATOL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_towers_run_under_autocast(pool, dtype):
    model = build(CONV, pool=pool)
    with torch.autocast("cpu", dtype):
        item = model.encode_item(*tensors(inputs(CONV, "item", 2)))
        query = model.encode_query(*tensors(inputs(CONV, "query", 2)))
    for embedding in (item.embedding, query):
        norms = embedding.float().norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(2), rtol=0, atol=1e-2)


def test_attention_pool_starts_as_the_mean_and_learns_to_weigh():
    pool, patches = PatchPool(4, "attention"), torch.randn(2, 6, 4)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    torch.testing.assert_close(
        pool(patches, mask), masked_mean_reference(patches, mask), rtol=0, atol=1e-6
    )
    with torch.no_grad():
        pool.query.copy_(torch.tensor([1.0, 0, 0, 0]))
    keys = torch.layer_norm(patches, (4,), eps=1e-6)
    weights = torch.exp(keys[..., 0]) * mask
    expected = (weights / weights.sum(dim=1, keepdim=True))[:, None] @ patches
    torch.testing.assert_close(pool(patches, mask), expected[:, 0], rtol=0, atol=1e-6)


def test_base_has_the_query_side_of_the_paper():
    with torch.device("meta"):
        model = TigerFG(preset("base"))
    assert count_parameters(model.vision) == 85_660_416
    assert sum(map(count_parameters, (model.pool, model.head))) == 2 * 768 + 256 * 768
    assert round(count_parameters(model.vision) / 1e6, 1) == 85.7
    assert model.config.embedding_dim == 256
    assert model.config.query_size == 224


def test_tiny_is_small():
    model = TigerFG(preset("tiny"))
    assert count_parameters(model) < 4_000_000
    with pytest.raises(InputError, match="choose tiny, small, lite or base"):
        preset("huge")


def test_unsuitable_configurations_are_refused():
    with pytest.raises(InputError, match=r"grounding\.heads: 7"):
        replace(CONV, grounding=GroundingConfig(heads=7))
    with pytest.raises(InputError, match="query_size: 33"):
        replace(CONV, query_size=33)
    with pytest.raises(InputError, match="pool: 'max'; give mean or attention"):
        replace(CONV, pool="max")
    with pytest.raises(InputError, match="item_tower: 'local'"):
        replace(CONV, item_tower="local")
    for wrong in ({"heads": 0}, {"queries_per_head": 0}):
        with pytest.raises(
            InputError, match=f"^{next(iter(wrong))}: 0; give a whole number, 1 or more"
        ):
            GroundingConfig(**wrong)
    for wrong in ({"guidance": "none"}, {"token_pooling": "never"}):
        with pytest.raises(InputError, match=f"^{next(iter(wrong))}: '"):
            GroundingConfig(**wrong)
    with pytest.raises(InputError, match=r"^token_pooling: .* choose before"):
        GroundingConfig(guidance="learned", token_pooling="after")
    with pytest.raises(InputError, match=r"vision\.patch"):
        build_backbone(VisionConfig(patch=16))
    wrong = VisionConfig(type="hf", width=64, patch=16, hf_config=DINOV3_SMALL)
    with pytest.raises(InputError, match="width 48"):
        build_backbone(wrong)
    with pytest.raises(InputError, match=r"vision\.hf_config"):
        build_backbone(VisionConfig(type="hf"))


def test_hugging_face_models_load_from_local_directories(tmp_path):
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(5)
    sources = {}
    for name, source in (("vision", DINOV3_SMALL), ("text", BERT_SMALL)):
        kind = dict(source)
        model = AutoModel.from_config(AutoConfig.for_model(kind.pop("model_type"), **kind))
        model.save_pretrained(tmp_path / name)
        sources[name] = model.eval()
    config = replace(
        HF,
        vision=replace(HF.vision, name=str(tmp_path / "vision"), hf_config=None),
        text=replace(HF.text, name=str(tmp_path / "text"), hf_config=None),
    )
    model = TigerFG(config, pretrained=True).eval()
    pixels, _, token_ids, token_mask = tensors(inputs(HF, "item"))
    with torch.inference_mode():
        hidden = sources["vision"](pixel_values=pixels).last_hidden_state
        # CLS and four registers come first
        torch.testing.assert_close(model.vision(pixels), hidden[:, 5:], rtol=0, atol=ATOL)
        words = sources["text"](input_ids=token_ids, attention_mask=token_mask.long())
        torch.testing.assert_close(
            model.text(token_ids, token_mask)[token_mask],
            words.last_hidden_state[token_mask],
            rtol=0,
            atol=ATOL,
        )
    checkpoint = save_checkpoint(model, tokenizer_file(tmp_path / "t.json"), tmp_path / "ckpt")
    shutil.rmtree(tmp_path / "vision")
    again = load_checkpoint(checkpoint)  # needs no source directory any more
    feeds = tensors(inputs(HF, "query"))
    torch.testing.assert_close(
        again.encode_query(*feeds), model.encode_query(*feeds), rtol=0, atol=0
    )


@pytest.mark.parametrize("config", [CONV, HF], ids=["conv", "dinov3-bert"])
def test_checkpoint_round_trip(config, tmp_path):
    model = build(config)
    tokenizer = tokenizer_file(tmp_path / "tokenizer.json")
    checkpoint = save_checkpoint(model, tokenizer, tmp_path / "ckpt")
    again = load_checkpoint(checkpoint)
    assert again.config == config
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    feeds = tensors(inputs(config, "item"))
    for one, other in zip(again.encode_item(*feeds), model.encode_item(*feeds), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "tokenizer.json"]
    first = fingerprint(checkpoint)
    save_checkpoint(build(config, seed=1), tokenizer, checkpoint)  # replaces it
    assert fingerprint(checkpoint) != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "tokenizer.json"]


def test_a_checkpoint_stays_where_its_replacement_is_interrupted(tmp_path, monkeypatch):
    tokenizer = tokenizer_file(tmp_path / "tokenizer.json")
    checkpoint = save_checkpoint(build(CONV), tokenizer, tmp_path / "ckpt")
    first, rename, renamed = fingerprint(checkpoint), os.rename, []

    def interrupted(source, target):
        renamed.append(target)
        if len(renamed) == 2:  # the old one is away, the new one not there yet
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(build(CONV, seed=1), tokenizer, checkpoint)
    assert fingerprint(checkpoint) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "tokenizer.json"]


def test_damaged_checkpoints_are_named(small_checkpoint, tmp_path):
    def refuse(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            load_checkpoint(broken)
        assert len(str(caught.value).splitlines()) == 1

    broken = tmp_path / "missing"
    refuse("missing is no directory; give .* shipped model, .*tiny")
    broken = tmp_path
    refuse("has no config.json")
    broken = shutil.copytree(small_checkpoint, tmp_path / "broken")
    weights, config = broken / "model.safetensors", broken / "config.json"
    whole = weights.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        refuse("damaged")
    weights.write_bytes(whole)
    state = load_file(weights)
    state["gate_pool"] = torch.zeros(3)
    save_file(state, weights)
    refuse("does not fit.*gate_pool")
    del state["gate_pool"]
    save_file(state, weights)
    refuse("does not fit.*gate_pool")
    weights.write_bytes(whole)
    settings = json.loads(config.read_text())
    for content in (b"{", b'{"name": "\xff"}', b"[" * 200_000):
        config.write_bytes(content)
        refuse("config.json cannot be read as JSON")
    config.write_text(json.dumps({**settings, "colour": 1}))
    refuse("colour")
    config.write_text(json.dumps({key: settings[key] for key in settings if key != "text"}))
    refuse("text")
    config.write_text(json.dumps(settings))
    assert load_checkpoint(broken).config == CONV
    (broken / "tokenizer.json").unlink()
    refuse("has no tokenizer.json")


def test_config_survives_json():
    for config in (CONV, HF, preset("tiny"), preset("lite"), preset("base")):
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig().text == TextConfig()
    older = ModelConfig().to_dict()  # as the first checkpoints were written
    del older["grounding"]["guidance"], older["grounding"]["token_pooling"], older["item_levels"]
    assert ModelConfig.from_dict(older) == ModelConfig()


def test_training_reaches_every_part():
    """Gradients of query-item scores reach both towers, the grounding and the gates."""
    model = build(CONV, pool="attention").train().requires_grad_(True)
    query = model.encode_query(*tensors(inputs(CONV, "query")))
    item = model.encode_item(*tensors(inputs(CONV, "item")))
    torch.nn.functional.cross_entropy(10 * query @ item.embedding.T, torch.arange(3)).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []
    assert np.isfinite([float(p.grad.norm()) for p in model.parameters()]).all()
