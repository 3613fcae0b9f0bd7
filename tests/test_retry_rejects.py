"""Encoding pictures behind addresses in bulk: the same files, however the servers behaved."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fakes import FakeBundle, FakeEngine
from picture_server import Server

from tigerfg.bundle import Bundle
from tigerfg.errors import InputError
from tigerfg.fetch_limits import FetchLimits

pa = pytest.importorskip("pyarrow", reason="bulk encoding needs the extra scale")
from pyarrow import parquet  # noqa: E402

from tigerfg.bulk.encode import encode  # noqa: E402
from tigerfg.bulk.storage import Storage  # noqa: E402

ONCE = FetchLimits(connections=8, attempts=1)
PATHS = [f"/{'after' if n in (3, 4, 9) else 'ok'}/{n}/2" for n in range(12)]  # three at a 2nd try


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "open", classmethod(lambda cls, name=None: FakeBundle()))
    monkeypatch.setattr("tigerfg.engines.open_engine", lambda *a, **k: FakeEngine())


@pytest.fixture
def items(server: Server, tmp_path: Path) -> Path:
    rows = [
        {"item_id": f"i{n}", "image": server.address(path), "title": "thing" * n}
        for n, path in enumerate(PATHS)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    return tmp_path / "items.parquet"


def hashes(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}


def test_files_of_a_retry_are_those_of_a_job_without_rejects(
    fake_model, server: Server, items: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", {"unit_rows": 5, "batch_size": 2}
    report = encode(items, out, limits=ONCE, **settings)
    assert (report.done, report.vectors, report.rejected) == (3, 9, 3)
    rejects = sorted(file.name for file in out.glob("*.rejects.jsonl"))
    assert len(rejects) == 2
    for file in rejects[:1]:  # what was deleted by hand is done as well, and its rejects with it
        (out / file.replace(".rejects.jsonl", ".vectors.parquet")).unlink()
    report = encode(items, out, limits=ONCE, retry_rejects=True, **settings)
    assert (report.done, report.kept, report.vectors, report.rejected) == (2, 0, 10, 0)
    encode(items, tmp_path / "fresh", limits=ONCE, **settings)
    assert hashes(out) == hashes(tmp_path / "fresh")
    assert encode(items, out, limits=ONCE, retry_rejects=True, **settings).done == 0


def test_slow_pictures_keep_their_rows(
    fake_model, server: Server, items: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("tigerfg.download.PATIENCE", 0.001)
    for name in ("slow", "quick"):  # the second time all answer at once
        limits = FetchLimits(attempts=2, longest_wait=0.3)
        assert encode(items, tmp_path / name, limits=limits, batch_size=2).vectors == 12
    assert hashes(tmp_path / "slow") == hashes(tmp_path / "quick")
    [file] = (tmp_path / "slow").glob("*.vectors.parquet")
    assert parquet.read_table(file)["item_id"].to_pylist() == [f"i{n}" for n in range(12)]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_crash_between_two_files_forgets_no_rejects(
    fake_model, server: Server, items: Path, tmp_path: Path, monkeypatch, fresh, failing
) -> None:
    """Whichever write fails, a retry ends with the files of a job that nothing befell."""
    out = tmp_path / "out"
    if not fresh:
        assert encode(items, out, limits=ONCE).rejected == 3
        if failing:  # one of them is rejected again, so that there is a second file to write
            server.asked["/after/4/2"] = 0
    calls, write = [], Storage.write

    def refuse(self: Storage, name: str, content: bytes) -> None:
        if name.startswith("part-"):
            calls.append(name)
            if len(calls) == failing + 1:
                raise InputError("no space left")
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", refuse)
        report = encode(items, out, limits=ONCE, retry_rejects=True)
    assert list(report.failed.values()) == ["no space left"]
    assert encode(items, out, limits=ONCE, retry_rejects=True).vectors == 12
    encode(items, tmp_path / "whole", limits=ONCE)
    assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_cluster(server: Server, items: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    import ray

    from tigerfg.bulk.cluster import Cluster

    out, settings = tmp_path / "out", {"model": "tiny", "unit_rows": 3, "threads": 1}
    ray.init(num_cpus=1, log_to_driver=False)
    try:
        first = encode(items, out, cluster=Cluster(), limits=ONCE, **settings)
        assert (first.done, first.rejected) == (4, 3)
        assert server.asked["/after/3/2"] == 1
        again = encode(items, out, cluster=Cluster(), limits=ONCE, retry_rejects=True, **settings)
        assert (again.done, again.rejected) == (2, 0)
    finally:
        ray.shutdown()
    encode(items, tmp_path / "alone", limits=ONCE, **settings)
    assert hashes(out) == hashes(tmp_path / "alone")
