"""Items whose pictures lie behind addresses: a local server that misbehaves in every way."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeBundle, FakeEngine, save_picture
from picture_server import Server

from tigerfg.decoding import describe_source
from tigerfg.download import Fetcher, is_address
from tigerfg.errors import InputError
from tigerfg.fetch_limits import FetchLimits
from tigerfg.records import Item
from tigerfg.searcher import Searcher

QUICK = FetchLimits(connections=4, ahead=8, timeout=2.0, max_bytes=100_000, longest_wait=0.02)


def fetch(server: Server, *paths: str) -> list[bytes | str]:
    with Fetcher(QUICK) as fetcher:
        found = fetcher.ahead(paths, lambda path: server.address(path))
        return [
            str(content) if isinstance(content, InputError) else content for _, content in found
        ]


def test_pictures_come_in_order_and_never_too_many_at_once(server: Server, tmp_path: Path) -> None:
    numbers = [*range(20)] * 3
    found = fetch(server, *(f"/slow/{n}" for n in numbers))
    assert found == [(tmp_path / f"{n}.png").read_bytes() for n in numbers]
    assert 2 <= server.most <= QUICK.connections


def test_what_may_pass_is_tried_again(server: Server, tmp_path: Path) -> None:
    picture = (tmp_path / "3.png").read_bytes()
    assert fetch(server, "/after/3/2", "/after/3/4", "/moved/ok/3") == [picture] * 3
    [gone] = fetch(server, "/after/3/9")
    assert gone.endswith("HTTP 503 Service Unavailable")
    assert server.asked["/after/3/9"] == QUICK.attempts
    [dropped] = fetch(server, "/drop")
    assert "/drop: " in dropped
    assert server.asked["/drop"] == QUICK.attempts


def test_what_is_refused_for_good_is_not(server: Server) -> None:
    found = fetch(server, "/404", "/403", "/big", "/endless", "/moved/moved/moved/moved/moved/404")
    reasons = (
        "HTTP 404",
        "HTTP 403",
        "more than 100000 bytes",
        "more than 100000 bytes",
        "HTTP 404",
    )
    for text, reason in zip(found, reasons, strict=True):
        assert reason in text
    assert server.asked["/404"] == 2  # asked for, and once by the redirections
    assert server.asked["/big"] == server.asked["/endless"] == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://[",
        "http://no.such.host.invalid/x.png",
        "http://127.0.0.1:99999/x.png",
        "http://xn--a/x.png",
        "http://127.0.0.1:80/\ud800",
    ],
)
def test_a_bad_address_is_one_line(url: str) -> None:
    with Fetcher(QUICK) as fetcher:
        [(_, found)] = fetcher.ahead([url], lambda value: value)
    assert isinstance(found, InputError)
    assert str(found).startswith(describe_source(url))
    assert "\n" not in str(found)


def test_a_server_that_is_not_there_is_told_as_such() -> None:
    with Fetcher(replace(QUICK, attempts=1)) as fetcher:
        [(_, found)] = fetcher.ahead(["http://127.0.0.1:9/x.png"], str)
    assert str(found).startswith("http://127.0.0.1:9/x.png: [Errno 111] ")


def test_an_answer_that_only_drips_ends_at_the_deadline(server: Server) -> None:
    limits = replace(QUICK, deadline=0.3, connections=1)
    with Fetcher(limits) as fetcher:
        paths = ("/drip", "/slow/1", "/drip", "/slow/2")  # one after the other
        dripped, one, _, two = (
            found for _, found in fetcher.ahead(paths, lambda path: server.address(path))
        )
    assert str(dripped).endswith("not there after 0.3 s")
    assert isinstance(one, bytes)
    assert isinstance(two, bytes)


def test_values_without_an_address_start_nothing() -> None:
    with Fetcher(QUICK) as fetcher:
        assert list(fetcher.ahead(range(5), lambda _: None)) == [(n, None) for n in range(5)]
        assert fetcher._loop is None


def test_an_abandoned_iteration_stops_fetching(server: Server) -> None:
    with Fetcher(QUICK) as fetcher:
        found = fetcher.ahead(range(1000), lambda n: server.address(f"/slow/{n % 20}"))
        next(found)
        found.close()
    assert sum(server.asked.values()) <= QUICK.ahead + QUICK.connections


def test_a_catalogue_of_addresses(server: Server, tmp_path: Path) -> None:
    def items() -> list[Item | dict]:
        mixed: list[Item | dict] = [
            {"item_id": f"u{n}", "image": server.address(f"/ok/{n}"), "title": "behind an address"}
            for n in range(10)
        ]
        mixed.insert(3, Item("local", tmp_path / "15.png", title="on the disk"))
        mixed.append({"item_id": "404", "image": server.address("/404"), "title": "x"})
        mixed.append({"item_id": "text", "image": server.address("/text"), "title": "x"})
        return mixed

    engine = FakeEngine()
    with Searcher.create(tmp_path / "cat", FakeBundle(), engine=engine) as searcher:
        report = searcher.add(items(), limits=QUICK)
        assert report.added == 11
        reasons = {reject.item_id: reject.reason for reject in report.rejected}
        assert reasons.keys() == {"404", "text"}
        assert "HTTP 404" in reasons["404"]
        assert reasons["text"].startswith(f"{server.address('/text')}: <image of ")
        [hit] = searcher.search(tmp_path / "7.png", k=1)
        assert hit.item_id == "u7"
        assert hit.item.image == server.address("/ok/7")
        assert [one.item_id for one in searcher][3] == "local"
        again = searcher.add(items(), limits=QUICK)
        assert (again.added, again.unchanged) == (0, 11)
        assert engine.items_encoded == 11
        save_picture(tmp_path / "7.png", 99)  # the same address, another picture
        assert searcher.upsert(items(), limits=QUICK).replaced == 1
        assert searcher.verify().skipped == {"picture behind an address": 10}


@pytest.mark.parametrize(
    "field", ["connections", "ahead", "timeout", "deadline", "max_bytes", "attempts"]
)
def test_limits_are_checked(field: str) -> None:
    with pytest.raises(InputError, match=f"{field}: 0; give "):
        FetchLimits(**{field: 0})


def test_what_an_address_is() -> None:
    assert is_address("https://shop/x.jpg")
    assert is_address("HTTP://shop/x.jpg")
    assert not any(
        map(is_address, ["ftp://x", "file:///etc/passwd", "x.jpg", "", None, b"http://"])
    )


def test_a_slow_picture_is_overtaken_but_not_by_the_same_item(server: Server, monkeypatch) -> None:
    monkeypatch.setattr("tigerfg.download.PATIENCE", 0.05)
    values = [
        ("a", "/drip"),
        ("b", "/ok/1"),
        ("a", "/ok/2"),
        *((f"c{n}", "/ok/3") for n in range(20)),
    ]
    limits = replace(QUICK, deadline=1.0, attempts=1)
    with Fetcher(limits) as fetcher:
        started = time.monotonic()
        found = fetcher.ahead(values, lambda v: server.address(v[1]), same=lambda v: v[0])
        first = [next(found)[0] for _ in range(15)]
        assert time.monotonic() - started < 0.9
        assert first == [values[1], *values[3:17]]
        rest = [value for value, _ in found]
    assert sorted(rest) == sorted([values[0], values[2], *values[17:]])
    assert rest.index(values[0]) < rest.index(values[2])


def test_all_connections_are_used(server: Server) -> None:
    with Fetcher(replace(QUICK, connections=12, ahead=1)) as fetcher:
        found = fetcher.ahead(range(60), lambda n: server.address(f"/slow/{n % 20}"))
        assert all(isinstance(content, bytes) for _, content in found)
    assert server.most > 2
