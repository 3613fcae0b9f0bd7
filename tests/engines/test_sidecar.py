"""Engine sidecars: what is written is read, what cannot be used is a reason and never a crash."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from tigerfg.engines.sidecar import Sidecar, file_name, path_of, read, unfit, write
from tigerfg.errors import EngineError

SIDECAR = Sidecar(
    builder="tensorrt-rtx",
    version="1.7.1.116",
    sms=(80, 89),
    driver=None,
    onnx_sha256="a" * 64,
    tower="item",
    precision="fp16",
    cut="backbone",
    profiles=((1, 1, 1), (2, 8, 32)),
    max_text_length=64,
    sha256="b" * 64,
    bytes=9,
    seconds=1.25,
    workspace=None,
)
HERE = {
    "builder": "tensorrt-rtx",
    "version": "1.7.1.116",
    "sm": 89,
    "onnx_sha256": "a" * 64,
    "tower": "item",
    "precision": "fp16",
    "cut": "backbone",
    "profiles": SIDECAR.profiles,
    "max_text_length": SIDECAR.max_text_length,
    "engine_bytes": 9,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"driver": "CUDA 13.0", "workspace": 1 << 30, "seconds": 3},
        {"parity": {"cosine": 0.9999, "gpu": "L4", "runs": [1, 2]}},
    ],
    ids=["plain", "built-on-gpu", "with-parity"],
)
def test_what_is_written_is_read(tmp_path, changes):
    sidecar = dataclasses.replace(SIDECAR, **changes)
    engine = tmp_path / "new" / "x.engine"
    write(engine, sidecar)
    assert read(engine) == sidecar
    assert os.listdir(engine.parent) == ["x.engine.json"]


def test_writing_again_replaces(tmp_path):
    engine = tmp_path / "x.engine"
    write(engine, SIDECAR)
    checked = dataclasses.replace(SIDECAR, parity={"cosine": 1.0})
    write(engine, checked)
    assert read(engine) == checked


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("query", "fp16", "backbone", (89,)), "query.backbone.fp16.sm89."),
        (("item", "fp32", "tower", (90,)), "item.fp32.sm90."),
        (("item", "int8", "tower", (80, 89, 120)), "item.int8.sm80-89-120."),
    ],
)
def test_file_names(arguments, name):
    found = file_name(*arguments, "tensorrt-rtx", "1.7.1.116")
    assert found == f"{name}tensorrt-rtx-1.7.1.116.engine"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "x.engine.json is missing"),
        (b"", "x.engine.json is damaged: not JSON"),
        (b"\xff\xfe{}", "x.engine.json is damaged: not JSON"),
        (b"[" * 100_000, "x.engine.json is damaged: not JSON"),
        (b"[1]", "x.engine.json is damaged: no JSON object"),
        (b"{}", "x.engine.json has format None, this version reads 1"),
        (b'{"format": 2}', "x.engine.json has format 2, this version reads 1"),
    ],
)
def test_unreadable_sidecars_are_reasons(tmp_path, content, reason):
    engine = tmp_path / "x.engine"
    if content is not None:
        path_of(engine).write_bytes(content)
    assert read(engine) == reason
    assert unfit(read(engine), **HERE) == reason


def test_a_sidecar_that_is_a_folder_is_a_reason(tmp_path):
    path_of(tmp_path / "x.engine").mkdir()
    assert read(tmp_path / "x.engine") == "x.engine.json cannot be read: Is a directory"


WRONG = {
    "builder": ["", 5, None],
    "version": [1.7, None],
    "sms": [[], "89", [89, "90"], [0], [True], 89, None],
    "driver": [580, ""],
    "onnx_sha256": [None],
    "tower": [None],
    "precision": [16],
    "cut": [None],
    "profiles": [[], [[1, 1]], [[3, 2, 1]], [1, 1, 1], [[1, 1, None]], None],
    "max_text_length": [0, -1, 1.5, True, None],
    "sha256": [None],
    "bytes": ["9", None],
    "seconds": [-1, "1", None],
    "workspace": [-5, "all"],
    "parity": [[], 1.0],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_wrong_field_is_named(tmp_path, field, value):
    engine = tmp_path / "x.engine"
    write(engine, SIDECAR)
    content = json.loads(path_of(engine).read_bytes())
    path_of(engine).write_text(json.dumps({**content, field: value}))
    assert read(engine) == f"x.engine.json is damaged: {field}"


def test_every_field_is_checked(tmp_path):
    assert set(WRONG) == {field.name for field in dataclasses.fields(Sidecar)}
    engine = tmp_path / "x.engine"
    path_of(engine).write_text('{"format": 1}')
    may_miss = {"driver", "workspace", "parity"}
    missing = [field.name for field in dataclasses.fields(Sidecar) if field.name not in may_miss]
    assert read(engine) == f"x.engine.json is damaged: {', '.join(missing)}"


def test_a_field_of_a_later_version_is_ignored(tmp_path):
    engine = tmp_path / "x.engine"
    write(engine, SIDECAR)
    content = json.loads(path_of(engine).read_bytes())
    path_of(engine).write_text(json.dumps({**content, "new": 1}))
    assert read(engine) == SIDECAR


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        ({}, None),
        ({"sm": 80}, None),
        ({"engine_bytes": None}, "the engine file is missing"),
        ({"engine_bytes": 8}, "the engine file has 8 bytes, it was written with 9"),
        (
            {"version": "1.7.2"},
            "built by tensorrt-rtx 1.7.1.116, this is tensorrt-rtx 1.7.2",
        ),
        ({"builder": "tensorrt"}, "built by tensorrt-rtx 1.7.1.116, this is tensorrt 1.7.1.116"),
        ({"sm": 90}, "built for sm 80, 89, this GPU has sm 90"),
        ({"tower": "query"}, "built from the graph item fp16 backbone, wanted query fp16 backbone"),
        (
            {"precision": "bf16"},
            "built from the graph item fp16 backbone, wanted item bf16 backbone",
        ),
        ({"cut": "tower"}, "built from the graph item fp16 backbone, wanted item fp16 tower"),
        (
            {"onnx_sha256": "c" * 64},
            "built from another model (graph aaaaaaaaaaaa, this bundle has cccccccccccc)",
        ),
        (
            {"profiles": ((1, 2, 3),)},
            f"built for the batches {SIDECAR.profiles}, this bundle has ((1, 2, 3),)",
        ),
        (
            {"max_text_length": 512},
            f"built for texts of up to {SIDECAR.max_text_length} tokens, this bundle has 512",
        ),
    ],
)
def test_why_an_engine_does_not_fit(here, reason):
    assert unfit(SIDECAR, **{**HERE, **here}) == reason


def test_another_driver_fits():
    assert unfit(dataclasses.replace(SIDECAR, driver="CUDA 12.8"), **HERE) is None


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match=r"x\.engine\.json: cannot be written: No space left"):
        write(tmp_path / "x.engine", SIDECAR)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"file/x\.engine\.json: cannot be written"):
        write(tmp_path / "file" / "x.engine", SIDECAR)


def test_files_have_the_usual_permissions(tmp_path):
    Path(tmp_path / "usual").touch()
    write(tmp_path / "x.engine", SIDECAR)
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1
