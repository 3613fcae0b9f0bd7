"""The training loop in one process, on random pictures: files, resume, options, bad numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_run
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import MODEL, STAGES, config
from torch import Tensor, nn

from tigerfg.errors import InputError, TigerfgError
from tigerfg.model import ModelConfig, load_checkpoint
from tigerfg.model.checkpoint import TOKENIZER
from tigerfg.model.towers import TigerFG
from tigerfg.training import batches, inputs, loop
from tigerfg.training.config import LossWeights, Stage
from tigerfg.training.inputs import pool_names
from tigerfg.training.loop import train
from tigerfg.training.optimizer import layer_rates, make_optimizer, set_rate
from tigerfg.training.pool import Pool
from tigerfg.training.precision import cast_encoders, resolve
from tigerfg.training.stages import Trainee
from tigerfg.training.state import STATE, load_progress, load_state
from tigerfg.training.teacher import Teacher

CPU = torch.device("cpu")
OPTIONS = {  # every option that has state of its own
    "plain": {},
    "all": {"precision": "bf16", "micro_batch": 3, "teacher": "ema", "layer_decay": 0.8},
}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pools")
    tiny_run.write_pools(out)
    return out / "pools"


@pytest.fixture
def out(tmp_path: Path, pools: Path) -> Path:
    return fresh(tmp_path, pools)


def fresh(folder: Path, pools: Path) -> Path:
    made = folder / "run"
    made.mkdir(parents=True)
    (made / "pools").symlink_to(pools)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pools: Path) -> dict[str, Path]:
    """Runs that nobody disturbed, by their options."""
    runs = {}
    for name, options in OPTIONS.items():
        runs[name] = fresh(tmp_path_factory.mktemp(name), pools)
        train(config(runs[name], **options), show_progress=False)
    return runs


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def log(run: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "s"} for row in rows]


def assert_same_run(run: Path, other: Path) -> None:
    for name, value in weights(other).items():
        assert torch.equal(value, weights(run)[name]), name
    assert log(run) == log(other)


def test_run_leaves_checkpoint_log_card_and_events(finished: dict[str, Path]) -> None:
    run = finished["all"]
    assert load_checkpoint(run / "checkpoint").config == MODEL
    rows = log(run)
    assert [row["stage"] for row in rows if "standard_r1" in row] == [s.kind for s in STAGES]
    assert {"nce", "region", "dense", "map", "relation"} <= set().union(*rows)
    card = (run / "checkpoint" / "MODEL_CARD.md").read_text()
    for said in ("bf16", "3 rows at once", "decay 0.99", "decay 0.8", "No real photos", "none."):
        assert said in card
    assert (run / "checkpoint" / "training_log.jsonl").is_file()


def test_events_are_the_log(finished: dict[str, Path]) -> None:
    assert_events_are_the_log(finished["plain"])


def assert_events_are_the_log(run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    told = {
        (f"{row['stage']}/{name}", number * STAGES[0].steps + row["step"]): value
        for row in log(run)
        for number in [[s.kind for s in STAGES].index(row["stage"])]
        for name, value in row.items()
        if name not in ("stage", "step")
    }
    found = {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    assert found == pytest.approx(told, rel=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "stop_at", [2, 4, 6, 10, 14], ids=["crops", "end", "regions", "map", "joint"]
)
def test_interrupted_run_resumes_to_the_bit(
    finished: dict[str, Path],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    options: str,
) -> None:
    settings = config(out, **OPTIONS[options])
    saves = 0

    def interrupt(*args: object) -> None:
        nonlocal saves
        original(*args)
        saves += 1
        if saves == stop_at:
            with open(out / "training_log.jsonl", "a") as file:
                file.write('{"stage": "cro')  # killed while writing
            raise KeyboardInterrupt

    original = loop.save_state
    monkeypatch.setattr(loop, "save_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(settings, show_progress=False)
    monkeypatch.undo()
    # what "auto" means elsewhere does not matter: a run keeps its precision
    monkeypatch.setattr(loop, "resolve", lambda *args: "fp32")
    train(dataclasses.replace(settings, precision="auto"), resume=True, show_progress=False)
    assert_same_run(out, finished[options])
    assert_events_are_the_log(out)


@pytest.mark.parametrize("options", OPTIONS)
def test_batches_made_ahead_by_other_processes_are_the_same(
    finished: dict[str, Path], out: Path, options: str
) -> None:
    train(config(out, workers=2, **OPTIONS[options]), show_progress=False)
    assert_same_run(out, finished[options])


def test_resume_in_another_precision_is_refused(finished: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="precision: the run was in fp32"):
        train(config(finished["plain"], precision="bf16"), resume=True, show_progress=False)


def test_finished_run_resumed_is_the_same(
    finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(finished["plain"]), log(finished["plain"])
    monkeypatch.setattr(inputs, "train_tokenizer", None)  # it keeps its own
    train(config(finished["plain"]), resume=True, show_progress=False)
    for name, value in weights(finished["plain"]).items():
        assert torch.equal(value, before[0][name])
    assert log(finished["plain"]) == before[1]
    assert_events_are_the_log(finished["plain"])


def test_a_run_that_ended_before_its_first_save_leaves_nothing_to_the_next(
    finished: dict[str, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "step_gradients", interrupt)
    fewer_words = dataclasses.replace(MODEL, text=dataclasses.replace(MODEL.text, vocab_size=260))
    with pytest.raises(KeyboardInterrupt):
        train(config(out, model=fewer_words), show_progress=False)
    monkeypatch.undo()
    train(config(out), show_progress=False)
    assert_same_run(out, finished["plain"])
    words = [(run / "checkpoint" / TOKENIZER).read_bytes() for run in (out, finished["plain"])]
    assert words[0] == words[1]


def test_every_part_of_the_model_is_trained(finished: dict[str, Path]) -> None:
    torch.manual_seed(0)
    start = loop.start_model(config(finished["plain"])).state_dict()
    same = [n for n, value in weights(finished["plain"]).items() if torch.equal(value, start[n])]
    assert same == []


def test_existing_run_is_not_overwritten_and_nothing_is_not_resumed(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="add --resume"):
        train(config(finished["plain"]), show_progress=False)
    with pytest.raises(InputError, match="no state to resume"):
        train(config(tmp_path / "none"), resume=True, show_progress=False)
    for name in ("checkpoint", "checkpoint-0-crops"):  # of a run whose state was removed
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(InputError, match=f"holds {name}; name another directory"):
            train(config(tmp_path / name), show_progress=False)


def test_damaged_state_is_an_input_error(out: Path) -> None:
    (out / STATE).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="holds no training state"):
        train(config(out), resume=True, show_progress=False)


def test_state_of_another_model_is_an_input_error(out: Path) -> None:
    train(config(out, stages=STAGES[:1]), show_progress=False)
    other = Trainee(TigerFG(dataclasses.replace(MODEL, embedding_dim=64)))
    with pytest.raises(InputError, match="another model"):
        load_state(out / STATE, other, make_optimizer(other, STAGES[0]), None)


def test_joint_stage_alone_needs_a_teacher() -> None:
    with pytest.raises(InputError, match="teacher"):
        config(Path("nowhere"), stages=STAGES[3:])


def test_clip_baseline_trains_from_a_checkpoint(finished: dict[str, Path], out: Path) -> None:
    model = dataclasses.replace(MODEL, item_tower="global")
    init = finished["plain"] / "checkpoint-1-regions"
    trained = train(config(out, model=model, stages=STAGES[3:], init=init), show_progress=False)
    assert load_checkpoint(trained).config.item_tower == "global"
    assert set(log(out)[0]) == {"stage", "step", "nce", "relation"}


def test_a_bundle_is_trained_further(small_bundle: Path, out: Path) -> None:
    start = load_checkpoint(small_bundle)
    settings = config(out, model=start.config, stages=STAGES[3:], init=small_bundle, seed=1)
    trained = train(settings, show_progress=False)
    tokenizers = [(folder / "tokenizer.json").read_bytes() for folder in (trained, small_bundle)]
    assert tokenizers[0] == tokenizers[1]
    now = load_checkpoint(trained)
    pairs = zip(now.parameters(), start.parameters(), strict=True)
    moved = [(one - other).abs().max().item() for one, other in pairs]
    assert 0.0 < max(moved) < 0.2  # four steps from there, not a start from random numbers


def test_a_model_is_trained_further_on_larger_pictures(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    """The teacher of the joint stage sees them as well."""
    model = dataclasses.replace(MODEL, query_size=48, item_size=96)
    tiny_run.write_pools(tmp_path, model)
    init = finished["plain"] / "checkpoint-2-map"
    settings = config(tmp_path, model=model, stages=STAGES[3:], init=init)
    trained = load_checkpoint(train(settings, show_progress=False))
    assert (trained.config.query_size, trained.config.item_size) == (48, 96)


def test_losses_of_weight_zero_are_not_in_the_log(finished: dict[str, Path], out: Path) -> None:
    none = LossWeights(region=0.0, dense=0.0, map=0.0, relation=0.0)
    init = finished["plain"] / "checkpoint-2-map"
    train(config(out, stages=STAGES[3:], init=init, weights=none), show_progress=False)
    assert set(log(out)[0]) == {"stage", "step", "nce"}


@pytest.mark.parametrize("first", [True, False], ids=["first stage", "later stage"])
def test_a_run_that_diverges_says_which_run_does_not(
    out: Path, tmp_path: Path, pools: Path, first: bool
) -> None:
    wild = Stage("regions", 8, 10, 1e18, matrix_lr=1e18)
    before = () if first else STAGES[:1]
    with pytest.raises(TigerfgError, match=r"stage regions, step \d: \w+ is (nan|inf)") as caught:
        train(config(out, stages=(*before, wild)), show_progress=False)
    assert load_progress(out / STATE).stage == len(before)
    advice = str(caught.value).partition(": begin a run in another directory with ")[2]
    assert advice.startswith("a lr below 1e+18 and a matrix_lr below 1e+18")
    init = re.search(r"--init (\S+) ", advice)
    assert (init is None) == first
    assert "fp32" not in advice  # which it is in already
    tame = dataclasses.replace(wild, lr=1e-3, matrix_lr=0.01)
    start = {} if init is None else {"init": Path(init[1])}
    other = fresh(tmp_path / "other", pools)
    train(config(other, stages=(tame,), **start), show_progress=False)
    assert all(torch.isfinite(value).all() for value in weights(other).values())


def test_a_run_that_diverges_in_bf16_is_told_of_fp32(out: Path) -> None:
    wild = Stage("crops", 8, 10, 1e18, matrix_lr=1e18)
    with pytest.raises(TigerfgError, match="or with precision fp32"):
        train(config(out, stages=(wild,), precision="bf16"), show_progress=False)


def test_gradient_that_is_not_finite_ends_the_run(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.step_gradients

    def spoiled(trainee: Trainee, *rest: object) -> dict[str, Tensor]:
        losses = original(trainee, *rest)
        trainee.model.head.projection.weight.grad[0, 0] = float("nan")
        return losses

    monkeypatch.setattr(loop, "step_gradients", spoiled)
    with pytest.raises(TigerfgError, match="stage crops, step 0: gradient is nan"):
        train(config(out), show_progress=False)
    assert not (out / STATE).exists()


NOT_FINITE = torch.full((10, 3, 32, 32), torch.nan)


def test_a_stage_whose_every_row_was_left_out_is_an_error(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "augment", lambda *_, **__: NOT_FINITE.clone())
    settings = config(out, stages=STAGES[:1])
    wrong = "stage crops: it learnt nothing, .*: {} × numbers that are not finite; "
    with pytest.raises(TigerfgError, match=wrong.format(40)):
        train(settings, show_progress=False)
    with pytest.raises(TigerfgError, match=wrong.format(r"\d+")):
        train(settings, resume=True, show_progress=False)
    assert not (out / "checkpoint").exists()


def test_a_stage_that_learnt_may_end_with_rows_left_out(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_and_spoil(*args: object) -> None:
        original(*args)
        monkeypatch.setattr(batches, "augment", lambda *_, **__: NOT_FINITE.clone())
        raise KeyboardInterrupt

    original = loop.save_state
    settings = config(out, stages=STAGES[:1])
    monkeypatch.setattr(loop, "save_state", save_and_spoil)
    with pytest.raises(KeyboardInterrupt):
        train(settings, show_progress=False)
    monkeypatch.setattr(loop, "save_state", original)
    train(settings, resume=True, show_progress=False)
    assert load_progress(out / STATE).skipped == {"numbers that are not finite": 30}


def test_a_batch_of_one_crop_teaches_nothing(out: Path) -> None:
    with pytest.raises(TigerfgError, match=r"stage crops: .* left out: none; .* two products"):
        train(config(out, stages=(Stage("crops", 2, 1, 1e-3),)), show_progress=False)


def test_what_was_skipped_is_counted_in_the_card(tmp_path: Path) -> None:
    out = tmp_path / "run"
    tiny_run.write_pools(out)
    pool = tiny_run.pool()
    pool.skipped = Counter({"image: cannot be decoded": 3})
    rendered = out / "pools" / pool_names(config(out))["rendered"]
    rendered.rename(tmp_path / "old")
    pool.save(rendered)
    train(config(out, stages=STAGES[:1]), show_progress=False)
    assert load_progress(out / STATE).skipped == {"image: cannot be decoded": 3}
    card = (out / "checkpoint" / "MODEL_CARD.md").read_text()
    assert "image: cannot be decoded: 3" in card


def test_products_of_one_view_are_told_in_the_card_but_not_as_left_out(
    out: Path, tmp_path: Path, make_image: Callable[..., Image.Image]
) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    make_image(60, 40).save(shop / "red mug.png")
    train(config(out, stages=STAGES[:1], photos=[shop]), show_progress=False)
    assert not load_progress(out / STATE).skipped
    card = (out / "checkpoint" / "MODEL_CARD.md").read_text()
    assert "Left out because they cannot be used: none." in card
    assert "Products with one view, whose pairs are crops of that: 1." in card


def test_run_on_two_directories_of_photos_tells_both_and_resumes_to_the_bit(
    tmp_path: Path,
    pools: Path,
    make_image: Callable[..., Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shops = [tmp_path / "mugs", tmp_path / "tins"]
    for shop in shops:
        shop.mkdir()
        for number in range(3):
            make_image(60, 40, seed=number).save(shop / f"{shop.name} {number}.png")
    options = {"stages": STAGES[:2], "photos": shops, "photo_share": [0.4, 0.125]}
    options["photo_collages"] = 4
    whole, killed = (fresh(tmp_path / name, pools) for name in ("whole", "killed"))
    train(config(whole, **options), show_progress=False)

    def interrupt(*args: object) -> None:
        original(*args)
        raise KeyboardInterrupt

    original = loop.save_state
    monkeypatch.setattr(loop, "save_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config(killed, **options), show_progress=False)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"resume: photos.0 is tins with data .*, and was mugs "):
        train(config(killed, **{**options, "photos": shops[::-1]}), True, show_progress=False)
    train(config(killed, **options), resume=True, show_progress=False)
    assert_same_run(killed, whole)
    card = (whole / "checkpoint" / "MODEL_CARD.md").read_text()
    assert "Real photos, split `train`, of every batch 40% `mugs`, 12.5% `tins`: " in card
    assert "Products with one view, whose pairs are crops of that: 6." in card


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_skipped_while_training_are_logged_and_counted_once(
    out: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    drawn = Pool.draw

    def draw(pool: Pool, *args: object) -> object:
        pool.skipped["query_image: gone"] += 1
        return drawn(pool, *args)

    monkeypatch.setattr(Pool, "draw", draw)
    stages = (Stage("crops", 12, 4, 1e-3), Stage("regions", 3, 4, 1e-3))
    train(config(out, stages=stages, workers=workers), show_progress=False)
    told = [row["skipped"]["query_image: gone"] for row in log(out) if "skipped" in row]
    assert told == [1, 11, 12, 13, 15]  # steps 1, 11, 12; then 1 and 3 of the second stage
    assert load_progress(out / STATE).skipped == {"query_image: gone": 15}


@pytest.mark.parametrize("saves", [1, 4, 9, 10, 11, 12])
def test_what_was_skipped_before_a_save_is_counted_after_it(
    out: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """At every step between two rows of the log, which are those of a run that was not killed."""
    drawn, save, left = Pool.draw, loop.save_state, iter(range(saves))

    def draw(pool: Pool, *args: object) -> object:
        pool.skipped["query_image: gone"] += 1
        return drawn(pool, *args)

    def interrupt(*args: object) -> None:
        save(*args)
        if next(left, None) == saves - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Pool, "draw", draw)
    monkeypatch.setattr(loop, "save_state", interrupt)
    settings = config(out, stages=(Stage("crops", 12, 4, 1e-3),))
    with pytest.raises(KeyboardInterrupt):
        train(settings, show_progress=False)
    assert load_progress(out / STATE).skipped == {"query_image: gone": saves}
    train(settings, resume=True, show_progress=False)
    told = [row["skipped"]["query_image: gone"] for row in log(out) if "skipped" in row]
    assert told == [1, 11, 12]
    assert load_progress(out / STATE).skipped == {"query_image: gone": 12}


def test_batch_of_one_and_more_rows_than_products(out: Path) -> None:
    # of one row the regions stage learns only what tells it from another product beside it
    sizes = [(1, 50), (6, 1), (1, 50), (1, 1)]
    stages = tuple(Stage(s.kind, *size, 1e-3) for s, size in zip(STAGES, sizes, strict=True))
    train(config(out, stages=stages, micro_batch=7), show_progress=False)
    assert all(torch.isfinite(value).all() for value in weights(out).values())


def test_no_picture_with_a_box_is_an_input_error_of_the_map_stage(tmp_path: Path) -> None:
    out = tmp_path / "run"
    tiny_run.write_pools(out)
    pool = tiny_run.pool()
    pool.scene_boxes[:] = 0.0
    rendered = out / "pools" / pool_names(config(out))["rendered"]
    rendered.rename(tmp_path / "old")
    pool.save(rendered)
    with pytest.raises(InputError, match="no training picture has a box"):
        train(config(out, stages=STAGES[2:3]), show_progress=False)


@pytest.mark.slow
def test_trains_on_the_shards_of_a_suite(tmp_path: Path, pools: Path) -> None:
    pytest.importorskip("pyarrow")
    from tigerfg.benchmark.suite import Settings, build

    suite = tmp_path / "suite"
    build(suite, Settings(pairs=64, eval_products=2, query_size=32, item_size=64), workers=1)
    out = fresh(tmp_path, pools)
    train(config(out, shards=suite, micro_batch=4), show_progress=False)
    card = (out / "checkpoint" / "MODEL_CARD.md").read_text()
    assert "training shards of the suite `suite`" in card
    assert {"nce", "region", "dense", "map", "relation"} <= set().union(*log(out))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"teacher": "strict"}, "teacher"),
        ({"device": "tpu"}, "device"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"workers": -1}, "workers"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": float("nan")}, "layer_decay"),
        ({"teacher_decay": 1.0}, "teacher_decay"),
        ({"photo_share": -0.1}, "photo_share"),
        ({"photo_crops": 0}, "photo_crops"),
        ({"photo_collages": -1}, "photo_collages"),
        ({"validate_every": 0}, "validate_every"),
    ],
)
def test_wrong_settings_name_the_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: "):
        config(Path("nowhere"), **change)


@pytest.mark.parametrize("values", [("crop", 1, 1), ("crops", 0, 1), ("map", 1, 0)])
def test_wrong_stages_are_refused(values: tuple[str, int, int]) -> None:
    with pytest.raises(InputError, match=r"^(kind|steps|batch): .*; give "):
        Stage(*values, lr=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(out: Path) -> None:
    with pytest.raises(InputError, match="device: cuda"):
        train(config(out, device="cuda"), show_progress=False)


def test_encoders_run_in_bfloat16_and_the_rest_in_float32() -> None:
    torch.manual_seed(0)
    plain, cast = TigerFG(MODEL).eval(), TigerFG(MODEL).eval()
    cast.load_state_dict(plain.state_dict())
    cast_encoders(cast, "bf16", CPU)
    pixels, mask = torch.randn(3, 3, 32, 32), torch.ones(3, 16, dtype=torch.bool)
    inside = []
    cast.vision.blocks[0].up.register_forward_hook(lambda m, i, o: inside.append(o.dtype))
    with torch.no_grad():
        found, expected = cast.encode_query(pixels, mask), plain.encode_query(pixels, mask)
    assert inside == [torch.bfloat16]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)
    assert 0 < float((found - expected).abs().max()) < 0.02  # a few times 2^-8 of norm 1
    assert resolve("fp32", CPU) == "fp32"
    assert resolve("auto", CPU) in ("fp32", "bf16")


def test_ema_teacher_follows_and_frozen_one_does_not() -> None:
    torch.manual_seed(0)
    start, trained = TigerFG(MODEL), TigerFG(MODEL)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    frozen = Teacher(start, None)
    frozen.follow(trained)
    assert frozen.state() == {}
    assert all(torch.equal(v, before[n]) for n, v in start.state_dict().items())
    following = Teacher(start, 0.75)
    following.follow(trained)
    for name, value in following.state().items():
        expected = before[name]
        if name.split(".")[0] in ("vision", "pool", "head"):  # the query tower
            expected = 0.75 * before[name] + 0.25 * trained.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("model", [MODEL, tiny_run.TRANSFORMER], ids=["conv", "dinov3"])
def test_layers_learn_slower_the_deeper_they_lie(model: object) -> None:
    encoder = TigerFG(model).vision
    rates = layer_rates(encoder, 0.5)
    assert rates.keys() == dict(encoder.named_parameters()).keys()
    blocks = [n for n, m in encoder.named_modules() if isinstance(m, nn.ModuleList)]
    for name, rate in rates.items():
        if name.startswith(f"{blocks[0]}."):
            expected = 0.5 ** (2 - int(name.removeprefix(f"{blocks[0]}.").split(".")[0]))
        elif name.startswith(("stem", "model.embeddings")):
            expected = 0.5**3
        else:
            assert "norm" in name
            expected = 1.0
        assert rate == expected, name


@pytest.mark.parametrize("model", [MODEL, tiny_run.TRANSFORMER], ids=["conv", "dinov3"])
def test_muon_takes_the_matrices_that_start_from_random_numbers(model: ModelConfig) -> None:
    trainee, stage = Trainee(TigerFG(model)), Stage("joint", 9, 8, 1e-3, backbone_rate=0.5)
    names = {parameter: name for name, parameter in trainee.named_parameters()}
    taken = {}
    for group in make_optimizer(trainee, stage).param_groups:
        for parameter in group["params"] if "ns_steps" in group else ():
            taken[names[parameter].removeprefix("model.")] = group["base"]
    text = ("qkv", "out", "up", "down")
    expected = {f"text.blocks.0.{name}.weight": 0.07 for name in text}
    expected |= {f"grounding.{name}.weight": 0.07 for name in ("project_text", "w_q", "w_k")}
    if model is MODEL:
        expected |= {f"vision.blocks.{n}.{m}.weight": 0.035 for n in (0, 1) for m in ("up", "down")}
    assert taken == expected


def test_every_rate_warms_up_and_falls_to_two_percent() -> None:
    trainee, stage = Trainee(TigerFG(MODEL)), Stage("joint", 100, 8, 1e-3, backbone_rate=0.5)
    optimizer = make_optimizer(trainee, stage, 0.5)
    rates = []
    for step in range(stage.steps):
        set_rate(optimizer, stage, step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    first, top, last = rates[0], rates[4], rates[-1]
    assert [r / t for r, t in zip(first, top, strict=True)] == pytest.approx([0.2] * len(top))
    assert all(max(column) == t for column, t in zip(zip(*rates, strict=True), top, strict=True))
    assert all(0.019 < a / t < 0.021 for a, t in zip(last, top, strict=True))
    trained = sum(len(group["params"]) for group in optimizer.param_groups)
    assert trained == len(list(trainee.parameters()))
