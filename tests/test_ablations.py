"""The ablations of the grounding: each against plain loops, and what must not change with them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from small_models import CONV, build, expected, inputs, tensors, tokenizer_file
from torch import Tensor

from tigerfg.errors import InputError
from tigerfg.export.graph import tower_graph
from tigerfg.export.tail import unserved
from tigerfg.kernels import masked_mean_reference
from tigerfg.model import TigerFG, load_checkpoint, save_checkpoint
from tigerfg.model.config import GroundingConfig

ABLATIONS = {
    "learned": {"guidance": "learned"},
    "learned-4": {"guidance": "learned", "queries_per_head": 4},
    "after": {"token_pooling": "after"},
    "after-2": {"token_pooling": "after", "queries_per_head": 2},
    "four-queries": {"queries_per_head": 4},
}
each_ablation = pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)


def make(levels: int = 1, **changes: object) -> TigerFG:
    """A random float64 model with these fields of its grounding; nothing is neutral in it."""
    grounding = GroundingConfig(heads=5, **changes)
    return build(CONV, grounding=grounding, item_levels=levels).double()


def feeds(batch: int = 3, length: int = 9, seed: int = 0) -> list[Tensor]:
    pixels, *rest = tensors(inputs(CONV, "item", batch, length, seed))
    return [pixels.double(), *rest]


def after_backbone(model: TigerFG, given: list[Tensor]) -> list[Tensor]:
    """The arguments of `TigerFG.ground`."""
    return [model.item_patches(given[0]), *given[1:]]


def looped(
    model: TigerFG, patches: Tensor, patch_mask: Tensor, ids: Tensor, token_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Embedding (B, E) and map (B, N'), item by item, head by head, query by query."""
    patch_mask = model.item_mask(patch_mask)
    grounding, config = model.grounding, model.config.grounding
    heads, width = grounding.heads, grounding.width
    d = width // heads
    tokens = model.text(ids, token_mask)
    embeddings, maps = [], []
    for b in range(len(patches)):
        v, valid = patches[b], patch_mask[b]
        t = grounding.norm_text(grounding.project_text(tokens[b, token_mask[b]]))  # [l, D]
        w = torch.stack([(t @ u).softmax(dim=0) for u in grounding.token_query])  # [M, l]
        texts = w @ t
        keys = torch.layer_norm(v, (width,), eps=1e-6)
        parts, item_map = [], torch.zeros(len(v)).double()
        for h in range(heads):
            rows = slice(h * d, (h + 1) * d)
            if config.guidance == "learned":
                m = config.queries_per_head
                queries, shares = grounding.queries[h * m : (h + 1) * m], torch.ones(m) / m
            else:
                sources = t if config.token_pooling == "after" else texts
                shares = w.mean(dim=0) if config.token_pooling == "after" else torch.ones(len(w))
                shares = shares / shares.sum()
                q = sources @ grounding.w_q.weight[rows].T + grounding.w_q.bias[rows]
                queries = q @ grounding.w_k.weight[rows] / d**0.5
            head_map = torch.zeros(len(v)).double()
            for x, share in zip(queries, shares, strict=True):
                logits = (keys @ x).masked_fill(~valid, -torch.inf)
                head_map += share * logits.softmax(dim=0)
            parts.append(grounding.w_v[rows] @ (head_map @ v))
            item_map += head_map / heads
        fused = grounding.w_o @ torch.cat(parts)
        fused = fused + model.gate_pool * masked_mean_reference(v[None], valid[None])[0]
        embeddings.append(model.head((fused + model.gate_text * texts.mean(dim=0))[None])[0])
        maps.append(item_map)
    return torch.stack(embeddings), torch.stack(maps)


@each_ablation
@pytest.mark.parametrize(("batch", "length", "levels"), [(3, 9, 1), (1, 1, 1), (2, 24, 2)])
def test_every_ablation_is_its_loop(changes, batch, length, levels):
    model = make(levels, **changes)
    given = after_backbone(model, feeds(batch, length))
    found = model.ground(*given)
    embedding, grounding_map = looped(model, *given)
    torch.testing.assert_close(found.embedding, embedding, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.grounding_map, grounding_map, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.grounding_map(*given), grounding_map, rtol=0, atol=1e-12)
    ones = torch.ones(batch).double()
    torch.testing.assert_close(found.grounding_map.sum(dim=1), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.token_weights.sum(dim=1), ones, rtol=0, atol=1e-12)


def test_averaging_after_the_softmax_is_another_model():
    """And the same one where there is a single token: nothing is left to average."""
    before, after = make(), make(token_pooling="after")
    assert before.state_dict().keys() == after.state_dict().keys()
    given = after_backbone(before, feeds())
    difference = before.ground(*given).grounding_map - after.ground(*given).grounding_map
    assert difference.abs().max() > 1e-4
    given = after_backbone(before, feeds(length=1))
    for one, other in zip(before.ground(*given), after.ground(*given), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_learned_queries_see_the_text_through_its_gate_only():
    model = make(guidance="learned")
    patches, mask, ids, token_mask = after_backbone(model, feeds())
    other_ids = (ids + 7) % CONV.text.vocab_size
    one = model.ground(patches, mask, ids, token_mask)
    other = model.ground(patches, mask, other_ids, token_mask)
    torch.testing.assert_close(one.grounding_map, other.grounding_map, rtol=0, atol=0)
    assert (one.embedding - other.embedding).abs().max() > 1e-3
    model.gate_text.zero_()
    one = model.ground(patches, mask, ids, token_mask)
    other = model.ground(patches, mask, other_ids, token_mask)
    torch.testing.assert_close(one.embedding, other.embedding, rtol=0, atol=0)


@each_ablation
def test_padding_never_matters(changes):
    model = make(**changes)
    patches, mask, ids, token_mask = after_backbone(model, feeds(seed=4))
    assert (~mask).any()
    assert (~token_mask).any()
    found = model.ground(patches, mask, ids, token_mask)
    noise = torch.where(mask[..., None], patches, 9 * torch.randn_like(patches))
    more_ids = torch.nn.functional.pad(
        torch.where(token_mask, ids, (ids + 1) % 120), (0, 7), value=3
    )
    more_mask = torch.nn.functional.pad(token_mask, (0, 7))
    other = model.ground(noise, mask, more_ids, more_mask)
    torch.testing.assert_close(other.embedding, found.embedding, rtol=0, atol=1e-12)
    torch.testing.assert_close(other.grounding_map, found.grounding_map, rtol=0, atol=1e-12)
    assert (other.grounding_map[~mask] == 0).all()
    assert (other.token_weights[~more_mask] == 0).all()


@each_ablation
def test_one_patch_no_patch_and_nothing(changes):
    model = make(**changes)
    patches, mask, ids, token_mask = after_backbone(model, feeds())
    smallest = build(CONV, grounding=model.config.grounding, item_size=8, item_levels=1).double()
    one = smallest.ground(patches[:, :1], mask[:, :1], ids, token_mask)
    torch.testing.assert_close(one.grounding_map, torch.ones(3, 1).double(), rtol=0, atol=1e-14)
    blind = model.ground(patches, torch.zeros_like(mask), ids, token_mask)
    assert not blind.grounding_map.any()
    assert blind.embedding.isfinite().all()
    empty = model.ground(*(value[:0] for value in (patches, mask, ids, token_mask)))
    assert [tuple(value.shape) for value in empty] == [(0, 32), (0, 64), (0, 9)]
    assert model.grounding_map(patches[:0], mask[:0], ids[:0], token_mask[:0]).shape == (0, 64)


@each_ablation
def test_gradients_reach_every_parameter(changes):
    model = make(**changes).train().requires_grad_(True)
    item = model.encode_item(*feeds())
    pixels, mask = tensors(inputs(CONV, "query"))
    query = model.encode_query(pixels.double(), mask)
    target = torch.arange(3)
    loss = torch.nn.functional.cross_entropy(10 * query @ item.embedding.T, target)
    (loss - item.grounding_map[:, 0].clamp(min=1e-9).log().mean()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@each_ablation
def test_ablations_run_under_autocast_and_learn(changes):
    """A few steps of the map loss on frozen patches, in bfloat16, from a fresh start."""
    torch.manual_seed(0)
    model = TigerFG(replace(CONV, grounding=GroundingConfig(heads=5, **changes)))
    pixels, mask, ids, token_mask = tensors(inputs(CONV, "item"))
    patches = model.item_patches(pixels).detach()
    wanted = mask.int().argmax(dim=1)  # one place for all items: learned queries can do that too
    optimizer = torch.optim.Adam(model.grounding.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            grounding_map = model.grounding_map(patches, mask, ids, token_mask)
        loss = -grounding_map.gather(1, wanted[:, None]).clamp(min=1e-8).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_four_queries_a_head_read_different_words():
    """They do because they begin different: four equal ones stay equal through training."""
    torch.manual_seed(3)
    model = TigerFG(replace(CONV, grounding=GroundingConfig(heads=5, queries_per_head=4))).double()
    patches, mask, ids, token_mask = after_backbone(model.requires_grad_(False), feeds())
    query = model.grounding.requires_grad_(True).token_query

    def spread_after_training() -> tuple[float, float]:
        """How far the four token weightings are apart before and after a few steps."""
        optimizer = torch.optim.Adam(model.grounding.parameters(), lr=3e-2)
        spreads = []
        for _ in range(20):
            text = model.text(ids, token_mask)
            weights = model.grounding.token_features(text, token_mask)[0].detach()
            spreads.append(float((weights - weights.mean(dim=1, keepdim=True)).abs().max()))
            loss = -model.grounding_map(patches, mask, ids, token_mask)[:, 0].log().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return spreads[0], spreads[-1]

    first, last = spread_after_training()
    assert min(first, last) > 0.01
    query.data.copy_(query.data[:1].expand(4, -1))
    first, last = spread_after_training()
    assert max(first, last) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("changes", [ABLATIONS["learned-4"], ABLATIONS["after-2"]])
def test_checkpoints_and_exports_hold_ablations(changes, tmp_path):
    model = make(**changes).float()
    checkpoint = save_checkpoint(model, tokenizer_file(tmp_path / "t.json"), tmp_path / "ckpt")
    again = load_checkpoint(checkpoint)
    shutil.rmtree(checkpoint)
    assert again.config == model.config
    graph = tower_graph(again, "item").SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for batch, length in ((3, 9), (1, 1)):
        given = inputs(CONV, "item", batch, length)
        wanted = expected(model, "item", given).values()
        for one, other in zip(session.run(None, given), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)  # float32 sums


def test_the_fused_tail_refuses_what_it_does_not_compute():
    model = make(token_pooling="after")
    given = feeds()
    with pytest.raises(InputError, match=r"token_pooling.*export the whole tower"):
        model.tail_inputs(given[0], given[2], given[3])
    assert "ablation" in unserved(model, "float16", ())
    assert make(guidance="learned").tail_inputs(given[0], given[2], given[3]).queries.shape == (
        3,
        5,
        40,
    )


@each_ablation
def test_an_ablation_starts_from_the_towers_of_the_method(changes):
    method, model = build(CONV, seed=1), build(CONV, grounding=GroundingConfig(heads=5, **changes))
    own = {name: value.clone() for name, value in model.state_dict().items()}
    stayed = model.start_from(method)
    theirs, now = method.state_dict(), model.state_dict()
    assert set(stayed) == {n for n in own if n not in theirs or own[n].shape != theirs[n].shape}
    for name, value in now.items():
        assert torch.equal(value, own[name] if name in stayed else theirs[name])
    assert build(CONV).start_from(method) == []


def test_other_towers_are_no_start():
    other = build(CONV, vision=replace(CONV.vision, depth=3))
    with pytest.raises(InputError, match=r"init: vision\.blocks\.2\.\S+ differs"):
        build(CONV).start_from(other)
