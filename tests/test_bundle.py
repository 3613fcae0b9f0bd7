"""Bundles: opening, what they say about themselves, and every way to be broken."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tigerfg import bundle as module
from tigerfg.bundle import Bundle
from tigerfg.bundle_files import BundleFiles
from tigerfg.errors import BundleError
from tigerfg.files import sha256_file
from tigerfg.images import Preprocessing

PREPROCESSING = Preprocessing(64, 128, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def folder(tmp_path):
    """A bundle of two towers in two precisions whose "models" are a few bytes each."""
    path = tmp_path / "model"
    path.mkdir()

    def entry(file: str, content: bytes) -> dict:
        (path / file).write_bytes(content)
        return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    towers = {
        tower: {
            "fp32": entry(f"{tower}.onnx", f"{tower} in fp32".encode()),
            "int8": entry(f"{tower}.int8.onnx", f"{tower} in int8".encode()),
        }
        for tower in ("query", "item")
    }
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "shoe": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    manifest = {
        "format": 1,
        "name": "small",
        "fingerprint": "ab" * 32,
        "embedding_dim": 256,
        "max_text_length": 3,
        "vocab_size": 3,
        "preprocessing": PREPROCESSING.to_dict(),
        "towers": towers,
        "tokenizer": entry("tokenizer.json", tokenizer.to_str().encode()),
        "parity": {},
        "tools": {"onnx": "1"},
        "created": "2026-01-01T00:00:00Z",
        "model": {"width": 96},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def change(folder, **fields) -> None:
    """Replace top-level fields of the manifest; None removes one."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(fields)
    manifest = {key: value for key, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def assert_refused(folder, *parts: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_open(folder):
    for path in (folder, str(folder)):
        bundle = Bundle.open(path)
        assert bundle.path == folder
        assert bundle.name == "small"
        assert bundle.fingerprint == "ab" * 32
        assert (bundle.embedding_dim, bundle.max_text_length) == (256, 3)
        assert bundle.preprocessing == PREPROCESSING
        assert bundle.precisions == ["fp32", "int8"]
        assert bundle.manifest["model"] == {"width": 96}
        assert bundle.onnx("query", "fp32").read_bytes() == b"query in fp32"
        assert bundle.onnx("item", "int8").read_bytes() == b"item in int8"
        bundle.verify()


def test_tokenizer_has_the_models_length(folder):
    tokenizer = Bundle.open(folder).tokenizer
    token_ids, _ = tokenizer(["shoe shoe shoe shoe", "boot"])
    assert token_ids.tolist() == [[2, 2, 2], [1, 0, 0]]


def test_precisions_are_those_of_both_towers(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["towers"]["item"]["int8"]
    change(folder, towers=manifest["towers"])
    bundle = Bundle.open(folder)
    assert bundle.precisions == ["fp32"]
    with pytest.raises(BundleError, match="item tower has no precision 'int8': choose fp32"):
        bundle.onnx("item", "int8")


def test_unknown_tower(folder):
    with pytest.raises(BundleError, match="no tower 'text': choose query or item"):
        Bundle.open(folder).onnx("text", "fp32")


def test_a_shipped_name_comes_before_a_directory_of_that_name(folder, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    shutil.copytree(folder, shipped / "lite")
    (shipped / "__pycache__").mkdir()
    monkeypatch.setattr(module, "_SHIPPED", shipped)
    monkeypatch.chdir(tmp_path)
    assert Bundle.open().path == shipped / "lite"
    with pytest.raises(BundleError, match=r"huge: no such bundle .*\(shipped: lite\)"):
        Bundle.open("huge")
    with pytest.raises(BundleError, match="no such bundle directory"):
        Bundle.open("../shipped/../gone")
    shutil.copytree(folder, tmp_path / "lite")
    # a directory that happens to be called so must not take over every catalogue made with "lite"
    assert Bundle.open("lite").path == shipped / "lite"
    assert Bundle.open("./lite").path.resolve() == tmp_path / "lite"
    assert Bundle.open(Path("./lite")).path.resolve() == tmp_path / "lite"  # a path, not a name


def test_not_a_bundle(tmp_path):
    assert_refused(tmp_path, "not a bundle, it has no manifest.json")
    (tmp_path / "a.onnx").touch()
    assert_refused(tmp_path / "a.onnx", "a bundle is a directory")
    assert_refused(tmp_path / "gone", "gone: no such bundle directory")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\0", b"[" * 200_000])
def test_manifest_is_no_json(folder, content):
    (folder / "manifest.json").write_bytes(content)
    assert_refused(folder, "manifest.json: not valid JSON")


@pytest.mark.parametrize("content", [b"[]", b"3", b"{}", b'{"format": "1"}', b'{"format": true}'])
def test_manifest_without_format(folder, content):
    (folder / "manifest.json").write_bytes(content)
    assert_refused(folder, "not a manifest, it has no format number")


def test_newer_format_asks_for_an_upgrade(folder):
    change(folder, format=3, towers={"new": "layout"})
    assert_refused(folder, "format 3 is newer than 2", "upgrade tigerfg")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("name", None, "name is missing or no str"),
        ("fingerprint", 7, "fingerprint is missing or no str"),
        ("embedding_dim", "256", "embedding_dim is missing or no int"),
        ("max_text_length", True, "max_text_length is missing or no int"),
        ("vocab_size", None, "vocab_size is missing or no int"),
        ("preprocessing", None, "preprocessing is missing or no dict"),
        ("preprocessing", {"patch": 8}, "preprocessing: "),
        ("preprocessing", {**PREPROCESSING.to_dict(), "patch": 7}, "no multiple of the patch"),
        ("towers", [], "towers is missing or no dict"),
        ("towers", {"query": {}}, "towers.query is missing or empty"),
        ("towers", {"query": {"fp32": "query.onnx"}}, "towers.query.fp32.file is missing"),
        ("towers", {"query": {"fp32": {"file": "a", "bytes": 1}}}, "fp32.sha256 is missing"),
        ("tokenizer", None, "tokenizer is missing or no dict"),
        ("tokenizer", {"file": "tokenizer.json"}, "tokenizer.sha256 is missing"),
    ],
)
def test_manifest_with_a_wrong_field(folder, field, value, reason):
    change(folder, **{field: value})
    assert_refused(folder, "manifest.json: ", reason)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b.onnx", "..", "", "a\0b"])
def test_files_outside_the_bundle_are_refused(folder, name):
    towers = json.loads((folder / "manifest.json").read_text())["towers"]
    towers["query"]["fp32"]["file"] = name
    change(folder, towers=towers)
    assert_refused(folder, "towers.query.fp32.file", "is not a plain file name")


@pytest.mark.parametrize("file", ["query.onnx", "item.int8.onnx", "tokenizer.json"])
def test_missing_file(folder, file):
    (folder / file).unlink()
    assert_refused(folder, f"{file}: missing from the bundle: copy or export")


def test_file_of_another_size_is_seen_on_open(folder):
    (folder / "item.onnx").write_bytes(b"item")
    assert_refused(folder, "item.onnx: 4 bytes, the manifest says 12: copy or export")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A copy of the shipped bundle that has every kind of file."""
    copy = tmp_path_factory.mktemp("damaged") / "tiny"
    return shutil.copytree(Bundle.open("tiny").path, copy)


@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("query.onnx", lambda bundle: bundle.onnx("query", "fp32")),
        ("item.int8.onnx", lambda bundle: bundle.onnx("item", "int8")),
        ("weights.bin", lambda bundle: bundle.onnx("item", "fp32")),
        ("weights.bin", lambda bundle: bundle.gpu.graph("query", "fp16", "tower")),
        ("item.backbone.fp16.onnx", lambda bundle: bundle.gpu.graph("item", "fp16", "backbone")),
        ("tokenizer.json", lambda bundle: bundle.tokenizer),
        ("tail.npz", lambda bundle: bundle.gpu.tail_weights()),
        ("check.npz", lambda bundle: bundle.gpu.check()),
        ("kernels.json", lambda bundle: bundle.gpu.kernels()),
        ("tail_whole_fp16_d160_h32_e256.sm_90.cubin", lambda bundle: bundle.gpu.kernels()),
    ],
)
def test_a_flipped_bit_is_seen_before_a_file_is_used(tiny, file, use):
    """In the weights it would otherwise only make every vector a little worse."""
    use(Bundle.open(tiny))
    place = (tiny / file).stat().st_size // 2
    with open(tiny / file, "r+b") as stream:
        stream.seek(place)
        [value] = stream.read(1)
        stream.seek(place)
        stream.write(bytes([value ^ 1]))
        stream.flush()
        bundle = Bundle.open(tiny)  # reads the manifest and sizes only
        for call in (use, Bundle.verify):
            with pytest.raises(BundleError, match=re.escape(f"{file}: damaged, its SHA-256")):
                call(bundle)
        stream.seek(place)
        stream.write(bytes([value]))
    use(bundle)


def test_a_kernel_that_the_manifest_lacks_is_named(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "tiny")
    manifest = json.loads((copy / "manifest.json").read_text())
    name = next(iter(manifest["gpu"]["kernels"]["files"]))
    del manifest["gpu"]["kernels"]["files"][name]
    change(copy, gpu=manifest["gpu"])
    with pytest.raises(BundleError, match=f"kernels.files lacks {name}, which kernels.json names"):
        Bundle.open(copy).gpu.kernels()


def test_a_file_is_read_once_for_all_its_uses(folder, monkeypatch):
    bundle, read = Bundle.open(folder), []
    monkeypatch.setattr(
        "tigerfg.bundle_files.sha256_file", lambda file: read.append(file.name) or sha256_file(file)
    )
    for tower in ("query", "item", "query"):
        bundle.onnx(tower, "fp32")
    assert read == ["query.onnx", "item.onnx"]
    bundle.verify()
    assert sorted(read[2:]) == sorted(
        file.name for file in folder.glob("*.*") if file.name != "manifest.json"
    )


def test_a_file_is_compared_with_each_of_its_records(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    right = {"file": "file", "sha256": hashlib.sha256(b"abc").hexdigest(), "bytes": 3}
    files = BundleFiles(tmp_path)
    assert files.whole(right) == tmp_path / "file"
    with pytest.raises(BundleError, match="damaged"):
        files.whole({**right, "sha256": "0" * 64})


def test_a_tokenizer_that_was_recorded_broken(folder):
    content = b"no tokenizer"
    (folder / "tokenizer.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    change(folder, tokenizer={"file": "tokenizer.json", "sha256": digest, "bytes": len(content)})
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a readable tokenizer"):
        _ = Bundle.open(folder).tokenizer
