"""Bulk encoding: units, resuming, the same files whoever makes them, loading; and Ray."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tigerfg.errors import CatalogError, InputError
from tigerfg.searcher import Searcher

pa = pytest.importorskip("pyarrow", reason="bulk encoding needs the extra scale")
from pyarrow import parquet  # noqa: E402

from tigerfg.bulk.digest import DIGEST, records_digest  # noqa: E402
from tigerfg.bulk.encode import encode  # noqa: E402
from tigerfg.bulk.job import MANIFEST, plan_job  # noqa: E402
from tigerfg.bulk.load import _batches  # noqa: E402
from tigerfg.bulk.storage import Storage  # noqa: E402

ENGINE = {"engine": "onnx", "precision": "fp32", "threads": 1}
CLI = [sys.executable, "-m", "tigerfg.cli"]


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def plain(colour: str) -> bytes:
    """A picture that a model tells from one of another colour, which it does not of noise."""
    Image.new("RGB", (24, 24), colour).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def write_items(folder: Path, counts: list[int], group: int = 7) -> Path:
    folder.mkdir()
    first = 0
    for number, count in enumerate(counts):
        ids = range(first, first + count)
        table = pa.table(
            {
                "item_id": pa.array([f"i{n}" for n in ids], pa.string()),
                "image": pa.array([png(n) if n % 10 != 9 else b"no picture" for n in ids]),
                "title": pa.array([f"Item {n}" for n in ids], pa.string()),
                "attributes": pa.array([json.dumps({"n": n}) for n in ids], pa.string()),
            }
        )
        parquet.write_table(table, folder / f"{number}.parquet", row_group_size=group)
        first += count
    return folder


def hashes(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_items(tmp_path_factory.mktemp("bulk") / "items", [23, 0, 12])


@pytest.fixture(scope="module")
def vectors(items: Path) -> Path:
    out = items.parent / "vectors"
    report = encode(items, out, unit_rows=5, **ENGINE)
    assert (report.units, report.done, report.vectors, report.rejected) == (8, 8, 32, 3)
    assert set(report.stages) == {"read", "check", "decode", "encode", "store"}
    return out


def test_units_cover_all_rows_once(items, tmp_path):
    job = plan_job([items], tmp_path / "out", unit_rows=5)
    assert [(unit.start, unit.rows) for unit in job.units] == [
        *((start, min(5, 23 - start)) for start in range(0, 23, 5)),
        (0, 5),
        (5, 5),
        (10, 2),
    ]
    assert len({unit.name for unit in job.units}) == 8
    assert job.to_do() == job.units


def test_vectors_are_those_of_a_catalogue(items, vectors, tmp_path):
    with Searcher.create(tmp_path / "direct", **ENGINE) as direct:
        rows = parquet.read_table(items).to_pylist()
        for row in rows:
            row["attributes"] = json.loads(row["attributes"])
        assert direct.add(rows, batch_size=5).added == 32
        with Searcher.create(tmp_path / "loaded", **ENGINE) as loaded:
            report = loaded.load(vectors)
            assert (report.added, report.rejected) == (32, [])
            assert [one.to_dict() for one in loaded] == [one.to_dict() for one in direct]
            for n in (0, 13, 34):
                found, wanted = (s.search(png(n), k=5) for s in (loaded, direct))
                assert [hit.item_id for hit in found] == [hit.item_id for hit in wanted]
                for a, b in zip(found, wanted, strict=True):
                    # the last batch of a file has other sizes in the two ways: rounding
                    assert a.score == pytest.approx(b.score, abs=2e-3)
                    np.testing.assert_allclose(a.grounding_map, b.grounding_map, atol=2e-3)
            again = loaded.load(vectors)
            assert (again.added, again.unchanged) == (0, 32)
            # the record of an item added by hand is the same to the hash
            assert loaded.add([rows[0]]).unchanged == 1


def test_a_rerun_makes_what_is_missing_and_only_that(items, vectors, tmp_path):
    out = tmp_path / "out"
    encode(items, out, unit_rows=5, **ENGINE)
    whole = hashes(out)
    assert whole == hashes(vectors)
    lost = sorted(out.glob("*.vectors.parquet"))[2:5]
    for file in lost:
        file.unlink()
    (out / f".{lost[0].name}.0123.part").write_bytes(b"a write that was killed")
    report = encode(items, out, unit_rows=5, **ENGINE)
    assert report.done == 3
    assert {name: digest for name, digest in hashes(out).items() if ".part" not in name} == whole
    assert encode(items, out, unit_rows=5, **ENGINE).done == 0


def test_rejects_are_written_beside_the_vectors(vectors):
    lines = [
        json.loads(line)
        for file in sorted(vectors.glob("*.rejects.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert [line["item_id"] for line in lines] == ["i9", "i19", "i29"]
    assert all("picture" in line["reason"] or "image" in line["reason"] for line in lines)


def test_another_job_is_refused(items, vectors, tmp_path):
    with pytest.raises(InputError, match="its unit_rows is 5, now 6"):
        encode(items, vectors, unit_rows=6, **ENGINE)
    other = write_items(tmp_path / "other", [3])
    with pytest.raises(InputError, match="its inputs is"):
        encode(other, vectors, unit_rows=5, **ENGINE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda folder: encode([], folder / "o"), "no parquet file"),
        (lambda folder: encode(folder / "empty", folder / "o"), "no parquet file"),
        (lambda folder: encode(folder / "a.parquet", folder / "o"), "a.parquet: no such file or"),
        (lambda folder: encode(folder / "bad.parquet", folder / "o"), "not a readable parquet"),
        (lambda folder: encode("nope://a/b", folder / "o"), "nope://a/b"),
        (lambda folder: encode(folder, folder / "o", unit_rows=0), "unit_rows 0"),
        (lambda folder: encode(folder, folder / "o", batch_size="x"), "batch_size 'x'"),
    ],
)
def test_bad_calls_are_refused(tmp_path, call, words):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 is not enough")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=words) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "{}/../link", "{}/."])
def test_results_among_the_items_are_refused_at_once(items, tmp_path, form):
    """The job could never go on: they would be items of it."""
    folder = write_items(tmp_path / "items", [3])
    (tmp_path / "link").symlink_to(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=r"out .*the items are read from there"):
        encode([items, folder], form.format(folder), **ENGINE)
    assert sorted(folder.iterdir()) == before
    assert encode(folder, folder / "vectors", **ENGINE).done == 1
    assert encode(folder, folder / "vectors", **ENGINE).done == 0


def test_a_unit_that_cannot_be_read_fails_alone(items, tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    for file in items.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray((folder / "2.parquet").read_bytes())
    content[4:60] = b"\0" * 56  # the first column's page header: the footer still opens
    (folder / "2.parquet").write_bytes(content)
    report = encode(folder, tmp_path / "out", unit_rows=5, **ENGINE)
    assert report.done + len(report.failed) == 8
    assert report.done >= 5
    assert all("2.parquet" in reason for reason in report.failed.values())
    assert report.failed


def test_loading_refuses_what_does_not_belong(vectors, tmp_path):
    from fakes import FakeBundle, FakeEngine

    with (
        Searcher.create(tmp_path / "fake", FakeBundle(), engine=FakeEngine()) as searcher,
        pytest.raises(CatalogError, match="was encoded by the model"),
    ):
        searcher.load(vectors)
    with Searcher.create(tmp_path / "cat", **ENGINE) as searcher:
        with pytest.raises(InputError, match=MANIFEST):
            searcher.load(tmp_path)
        broken = tmp_path / "broken"
        broken.mkdir()
        for file in vectors.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        last = sorted(broken.glob("*.vectors.parquet"))[-1]
        last.write_bytes(last.read_bytes()[:-30])
        with pytest.raises(InputError, match=f"{last.name} is damaged"):
            searcher.load(broken)
        stored = len(searcher)
        assert 0 < stored < 32, "the files before it are stored"
        report = searcher.load(vectors)
        assert (report.unchanged, report.added) == (stored, 32 - stored)


def test_flipped_bits_of_vectors_are_never_loaded(vectors, tmp_path):
    """Parquet's pages carry checksums; its footer has none, and says how many rows there are."""

    def loaded() -> list:
        batches = list(_batches(Storage(str(tmp_path)), [name], 256))
        records = (record for batch in batches for record in batch)
        return [[v.tolist() if isinstance(v, np.ndarray) else v for v in r] for r in records]

    name = sorted(vectors.glob("*.vectors.parquet"))[0].name
    content = (vectors / name).read_bytes()
    (tmp_path / name).write_bytes(content)
    right, refused = loaded(), 0
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    places = [*range(0, footer, 41), *range(footer, len(content))]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        (tmp_path / name).write_bytes(changed)
        try:
            assert loaded() == right, place
        except InputError:
            refused += 1
    assert refused > len(places) / 2


def test_a_job_that_is_not_complete_is_told(vectors, tmp_path):
    part = shutil.copytree(vectors, tmp_path / "vectors")
    sorted(part.glob("*.vectors.parquet"))[1].unlink()
    (part / "part-00099-0000000000.vectors.parquet").write_bytes(b"of nobody's job")
    with Searcher.create(tmp_path / "shop", **ENGINE) as searcher:
        with pytest.raises(InputError, match="not complete: 1 of 8 units are missing, such as par"):
            searcher.load(part)
        assert len(searcher) == 0
        assert 0 < searcher.load(part, partial=True).added < 32
        searcher.load(vectors)
        assert len(searcher) == 32


def test_an_input_that_changed_is_another_job(tmp_path):
    file = tmp_path / "items.parquet"
    for price in (1.5, 2.5):
        rows = [{"item_id": f"i{n}", "image": png(n), "price": price} for n in range(3)]
        parquet.write_table(pa.Table.from_pylist(rows), file)
        if price == 1.5:
            assert encode(file, tmp_path / "out", **ENGINE).vectors == 3
    with pytest.raises(InputError, match="holds the results of another job: its inputs is"):
        encode(file, tmp_path / "out", **ENGINE)


def test_relative_pictures_are_found_as_read_items_finds_them(tmp_path):
    folder = tmp_path / "standard"
    folder.mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(1))
    rows = [{"item_id": "a", "image": "images/a.png"}, {"item_id": "b", "image": "images/b.png"}]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
    report = encode(folder, tmp_path / "out", **ENGINE)
    assert (report.vectors, report.rejected) == (1, 1)
    [shown], row = report.shown, f"{folder / 'items.parquet'}:2"
    assert shown == f"{row}: item_id 'b': {folder / 'images/b.png'}: no such file"
    parquet.write_table(pa.Table.from_pylist(rows[1:]), folder / "items.parquet")
    wanted = ["encode", str(folder), "--out", str(tmp_path / "none"), "--threads", "1"]
    done = subprocess.run([*CLI, *wanted], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "items.parquet:1: item_id 'b': " in done.stderr
    assert "none/*.rejects.jsonl; --retry-rejects" in done.stderr


def test_loading_decides_by_what_is_stored(tmp_path):
    """One file with an id of which there are several records, loaded as `add` and as `upsert`."""
    rows = [
        {"item_id": "a", "image": plain("navy"), "price": 1},
        {"item_id": "b", "image": plain("gold"), "price": 1},
        {"item_id": "a", "image": plain("navy"), "price": 2},  # another price of what was encoded
        {"item_id": "b", "image": plain("red"), "price": 2},  # another picture
        {"item_id": "a", "image": plain("navy"), "price": 2},
    ]
    (tmp_path / "items").mkdir()
    for number, row in enumerate(rows):
        table = pa.Table.from_pylist([row])
        parquet.write_table(table, tmp_path / "items" / f"{number}.parquet")
    out = tmp_path / "vectors"
    encode(tmp_path / "items", out, **ENGINE)
    files = sorted(out.glob("*.vectors.parquet"))
    encoded = pa.concat_tables([parquet.read_table(file) for file in files])
    assert encoded.column("item_id").to_pylist() == [row["item_id"] for row in rows]
    batches = _batches(Storage(str(out)), [file.name for file in files], 256)
    digest = records_digest(record for batch in batches for record in batch)
    encoded = encoded.replace_schema_metadata({DIGEST: digest})
    for file in files[1:]:
        file.unlink()
    parquet.write_table(encoded, files[0])

    def prices(searcher: Searcher) -> dict[str, int]:
        return {item.item_id: item.extra["price"] for item in searcher}

    with Searcher.create(tmp_path / "shop", **ENGINE) as searcher:
        report = searcher.load(out, partial=True)
        assert (report.added, report.unchanged) == (2, 0)
        assert [one.item_id for one in report.rejected] == ["a", "b", "a"]
        assert {one.reason for one in report.rejected} == {
            "the id is taken by another item of this catalogue: upsert replaces it"
        }
        lines = report.rejects_file.read_text().splitlines()
        assert [json.loads(line)["item_id"] for line in lines] == ["a", "b", "a"]
        assert prices(searcher) == {"a": 1, "b": 1}
        before = {hit.item_id: hit.score for hit in searcher.search(plain("red"), k=2)}
        report = searcher.load(out, replace=True, partial=True)
        assert (report.added, report.replaced, report.updated) == (0, 1, 1)
        assert (report.unchanged, report.rejected) == (2, [])
        assert prices(searcher) == {"a": 2, "b": 2}
        after = {hit.item_id: hit.score for hit in searcher.search(plain("red"), k=2)}
        assert after["a"] == before["a"]
        assert after["b"] > before["b"] + 0.01  # its picture is the query's now
        report = searcher.load(out, replace=True, partial=True)
        assert (report.replaced, report.updated, report.unchanged) == (0, 0, 3)
    with Searcher.create(tmp_path / "new", **ENGINE) as searcher:
        report = searcher.load(out, replace=True, partial=True)
        assert (report.added, report.replaced, report.updated) == (2, 0, 0)
        assert prices(searcher) == {"a": 2, "b": 2}


def test_commands(items, tmp_path):
    out, catalog = str(tmp_path / "vectors"), str(tmp_path / "shop")
    wanted = ["encode", str(items), "--out", out, "--unit-rows", "20", "--threads", "1"]
    first = subprocess.run([*CLI, *wanted], capture_output=True, text=True, check=True)
    assert first.stdout.startswith("32 vectors in ")
    assert "3 rejected; 3 of 3 units done now; " in first.stdout
    again = subprocess.run([*CLI, *wanted], capture_output=True, text=True, check=True)
    assert again.stdout.startswith("0 vectors in ")
    load = [*CLI, "load", out, "--catalog", catalog]
    loaded = subprocess.run(load, capture_output=True, text=True, check=True)
    assert loaded.stdout.startswith("32 added in ")
    assert "encoded" not in loaded.stdout
    assert loaded.stdout.rstrip().endswith("holds 32 items")
    repeated = subprocess.run(load, capture_output=True, text=True, check=True)
    assert "32 unchanged" in repeated.stdout


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    storage.write("a", b"old")

    def refuse(*paths: str) -> None:
        raise OSError("no space left on device")

    class Files:
        def __getattr__(self, name: str):
            return refuse if name == "move" else getattr(storage.files, name)

    broken = Storage(tmp_path)
    monkeypatch.setattr(broken, "_files", Files())
    with pytest.raises(InputError, match=r"cannot be written \(a\): no space left"):
        broken.write("a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert storage.read("a") == b"old"


def test_a_new_catalogue_takes_the_model_of_the_vectors(items, tmp_path):
    encode(items, tmp_path / "vectors", model="tiny", **ENGINE)
    shop = tmp_path / "shop"
    command = [*CLI, "load", str(tmp_path / "vectors"), "--catalog", str(shop)]
    for said in ("32 added", "32 unchanged"):
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, said in done.stdout) == (0, True), done
    with Searcher.open(shop, read_only=True) as searcher:
        assert searcher.model.name == "tiny"


def test_vectors_that_cannot_be_loaded_make_no_catalogue(vectors, tmp_path):
    part = shutil.copytree(vectors, tmp_path / "vectors")
    next(part.glob("*.vectors.parquet")).unlink()
    for args, words in (
        ([vectors, "--model", "tiny"], "was encoded by the model"),
        ([part], "is not complete: 1 of 8 units are missing"),
        ([tmp_path / "nowhere"], "holds no encode.json"),
    ):
        command = [*CLI, "load", *map(str, args), "--catalog", str(tmp_path / "shop")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, words in done.stderr) == (1, True), done
        assert not (tmp_path / "shop").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # 20 s on free cores; five processes of Ray start slowly on busy ones
def test_a_killed_node_costs_only_its_units(tmp_path, monkeypatch):
    """Four nodes, one of them killed at work: all units done, the files those of one process."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from tigerfg.bulk.cluster import Cluster

    items = write_items(tmp_path / "items", [150, 150])
    encode(items, tmp_path / "alone", unit_rows=10, **ENGINE)
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "10")
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
    workers = [nodes.add_node(num_cpus=1) for _ in range(3)]
    try:
        ray.init(address=nodes.address, log_to_driver=False)
        out = tmp_path / "cluster"
        killed = threading.Event()

        def kill() -> None:
            while len(list(out.glob("*.vectors.parquet"))) < 4:
                time.sleep(0.05)
            workers[0].kill_raylet()
            for process in _children(workers[0]):
                os.kill(process, signal.SIGKILL)
            killed.set()

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        report = encode(items, out, cluster=Cluster(actors=3), unit_rows=10, **ENGINE)
        assert killed.is_set()
        assert not report.failed
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert hashes(out) == hashes(tmp_path / "alone")
    # Ray's collector of usage would outlive the job, and break `ast` in this process (cluster.py)
    assert "data-usage-metrics-poller" not in [thread.name for thread in threading.enumerate()]


def _children(node) -> list[int]:
    """Worker processes of a node: they name its raylet's socket in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if node.raylet_socket_name.encode() in arguments and b"default_worker" in arguments:
                found.append(int(entry.name))
    return found
