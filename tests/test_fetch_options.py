"""The commands' options for pictures behind addresses, and rejects that are tried again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeBundle, FakeEngine
from picture_server import Server
from typer.testing import CliRunner, Result

from tigerfg.bundle import Bundle
from tigerfg.cli import app as cli
from tigerfg.searcher import Searcher

pa = pytest.importorskip("pyarrow", reason="bulk encoding needs the extra scale")
from pyarrow import parquet  # noqa: E402

Command = Callable[..., Result]


@pytest.fixture(params=["index", "encode"])
def command(request: pytest.FixtureRequest, server: Server, tmp_path: Path, monkeypatch) -> Command:
    """``command(paths, *options)`` takes pictures at the paths of the server, with a fake model."""
    monkeypatch.setattr(Bundle, "open", classmethod(lambda cls, name=None: FakeBundle()))
    monkeypatch.setattr("tigerfg.engines.open_engine", lambda *a, **k: FakeEngine())

    def run(paths: list[str], *options: str) -> Result:
        rows = [
            {"item_id": f"i{n}", "image": server.address(path), "title": f"thing {n}"}
            for n, path in enumerate(paths)
        ]
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
        items, out = str(tmp_path / "items.parquet"), str(tmp_path / "out")
        places = ["--items", items, "--catalog", out] if index else [items, "--out", out]
        return CliRunner().invoke(cli.app, [request.param, *places, *options])

    index = request.param == "index"
    return run


@pytest.mark.parametrize("attempts", [1, 2])
def test_attempts(command: Command, server: Server, attempts: int) -> None:
    done = command(["/after/3/9", "/ok/1"], "--attempts", str(attempts))
    assert done.exit_code == 0, done.output
    assert "/after/3/9: HTTP 503" in done.stderr
    assert server.asked["/after/3/9"] == attempts


def test_connections(command: Command, server: Server) -> None:
    done = command([f"/slow/{n}" for n in range(20)], "--connections", "2")
    assert done.exit_code == 0, done.output
    assert server.most == 2


@pytest.mark.parametrize(
    ("option", "words"), [("--deadline", "not there after 0.04 s"), ("--timeout", "Timeout")]
)
def test_slow_servers(command: Command, option: str, words: str) -> None:
    done = command(["/drip", "/drip"], option, "0.04", "--attempts", "1")
    assert done.exit_code == 1
    assert words in done.stderr


@pytest.mark.parametrize("option", ["--deadline", "--timeout"])
def test_wrong_limits_are_one_line(command: Command, server: Server, option: str) -> None:
    done = command(["/ok/1"], option, "0")
    assert done.exit_code != 0
    assert f"{option[2:]}: 0.0; give a number above 0" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not server.asked


@pytest.mark.parametrize("command", ["index"], indirect=True)
def test_index_without_fetching_again(command: Command, server: Server, tmp_path: Path) -> None:
    assert "3 added" in command(["/ok/1", "/ok/2", "/ok/3"]).stdout
    done = command(["/ok/1", "/ok/4", "/ok/3"], "--no-refetch", "--upsert")
    assert "1 replaced, 2 unchanged" in done.stdout
    assert server.asked == {f"/ok/{n}": 1 for n in (1, 2, 3, 4)}
    command(["/ok/1", "/ok/4", "/ok/3"], "--upsert")
    assert server.asked["/ok/4"] == 2


@pytest.mark.parametrize("command", ["encode"], indirect=True)
def test_encode_tries_rejects_again(command: Command, server: Server, tmp_path: Path) -> None:
    paths = [*(f"/ok/{n}" for n in range(4)), "/after/4/2", *(f"/ok/{n}" for n in range(5, 9))]
    small = ["--unit-rows", "3", "--attempts", "1"]
    first = command(paths, *small)
    assert "8 vectors" in first.stdout
    assert "--retry-rejects encodes" in first.stderr
    assert "0 of 3 units done now" in command(paths, *small).stdout
    again = command(paths, *small, "--retry-rejects")
    assert (again.exit_code, again.stdout[:10]) == (0, "3 vectors "), again.output
    assert "1 of 3 units done now" in again.stdout
    assert server.asked["/ok/1"] == 1
    assert not list((tmp_path / "out").glob("*.rejects.jsonl"))
    with Searcher.create(tmp_path / "shop", FakeBundle(), engine=FakeEngine()) as searcher:
        assert searcher.load(tmp_path / "out").added == 9


@pytest.mark.parametrize("command", ["encode"], indirect=True)
def test_a_retry_makes_nothing_worse(command: Command, server: Server, tmp_path: Path) -> None:
    (tmp_path / "20.png").write_bytes((tmp_path / "1.png").read_bytes())
    paths, options = ["/ok/20", "/ok/2", "/404"], ["--retry-rejects", "--attempts", "1"]
    assert "2 vectors" in command(paths).stdout
    [rejects] = (tmp_path / "out").glob("*.rejects.jsonl")
    [vectors] = (tmp_path / "out").glob("*.vectors.parquet")
    before = rejects.read_bytes(), vectors.read_bytes()
    (tmp_path / "20.png").unlink()  # the server breaks off, and so for more items than before
    worse = command(paths, *options)
    assert worse.stdout.startswith("1 vectors ")
    assert "2 rejected" in worse.stdout
    assert "1 kept as they were" in worse.stdout
    assert (rejects.read_bytes(), vectors.read_bytes()) == before
    assert [json.loads(line)["item_id"] for line in before[0].splitlines()] == ["i2"]
