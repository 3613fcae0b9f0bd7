"""`refetch=False`: an address stands for its picture, which is not fetched again."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from fakes import FakeBundle, FakeEngine, save_picture
from picture_server import Server

from tigerfg.fetch_limits import FetchLimits
from tigerfg.index.stored import Known
from tigerfg.prepare import as_stored
from tigerfg.records import Item
from tigerfg.searcher import Searcher

QUICK = FetchLimits(connections=4, ahead=8, timeout=2.0, attempts=1)
KNOWN = {"limits": QUICK, "refetch": False}


def item(server: Server, number: int, path: str = "", **fields: object) -> dict:
    address = server.address(path or f"/ok/{number}")
    return {"item_id": f"u{number}", "image": address, "title": f"thing {number}", **fields}


def counts(report) -> tuple[int, int, int, int, list[str | None]]:
    """added, replaced, updated, unchanged, and the ids of the rejected."""
    rejected = [one.item_id for one in report.rejected]
    return report.added, report.replaced, report.updated, report.unchanged, rejected


def kept(searcher: Searcher) -> dict:
    return searcher._collection.known(one.item_id for one in searcher)


def test_what_is_stored_and_unchanged_is_not_asked_for(searcher, engine, server) -> None:
    items = [item(server, n) for n in range(10)]
    assert counts(searcher.add(items, **KNOWN)) == (10, 0, 0, 0, [])
    before = server.asked.copy()
    for put in (searcher.add, searcher.upsert):
        assert counts(put(items, **KNOWN)) == (0, 0, 0, 10, [])
    assert server.asked == before
    assert counts(searcher.add(items, limits=QUICK)) == (0, 0, 0, 10, [])
    assert sum(server.asked.values()) == 2 * sum(before.values())
    assert engine.items_encoded == 10


def test_another_picture_at_the_address_is_not_seen(searcher, server, tmp_path) -> None:
    items = [item(server, n) for n in range(3)]
    searcher.add(items, limits=QUICK)
    save_picture(tmp_path / "1.png", 99)
    assert counts(searcher.upsert(items, **KNOWN)) == (0, 0, 0, 3, [])
    assert counts(searcher.upsert(items, limits=QUICK)) == (0, 1, 0, 2, [])


def test_other_fields_are_stored_without_the_picture(searcher, engine, server, tmp_path) -> None:
    searcher.add([item(server, n, price=1) for n in range(6)], limits=QUICK)
    before, asked = kept(searcher), server.asked.copy()
    changed = [item(server, n, price=2) for n in range(6)]
    report = searcher.add(changed, **KNOWN)
    assert counts(report) == (0, 0, 0, 0, [f"u{n}" for n in range(6)])
    assert "the id is taken by another item" in report.rejected[0].reason
    assert kept(searcher) == before
    assert counts(searcher.upsert(changed, **KNOWN)) == (0, 0, 6, 0, [])
    assert server.asked == asked
    assert engine.items_encoded == 6
    assert [one.extra["price"] for one in searcher] == [2] * 6
    after = kept(searcher)
    assert [after[name].content_hash for name in after] == [
        before[name].content_hash for name in after
    ]
    assert counts(searcher.upsert(changed, limits=QUICK)) == (0, 0, 0, 6, [])
    assert searcher.search(tmp_path / "4.png", k=1)[0].item_id == "u4"


def test_what_differs_is_fetched(searcher, engine, server, tmp_path) -> None:
    searcher.add([item(server, n) for n in range(4)], limits=QUICK)
    asked = server.asked.copy()
    mixed = [
        item(server, 0),
        item(server, 1, "/ok/11"),  # another address
        item(server, 2, title="another thing"),  # another text
        item(server, 3, attributes={"size": 3}),
        item(server, 4),  # new
        item(server, 5, "/404"),
    ]
    assert counts(searcher.upsert(mixed, **KNOWN)) == (1, 3, 0, 1, ["u5"])
    assert server.asked - asked == {
        f"/{path}": 1 for path in ("ok/11", "ok/2", "ok/3", "ok/4", "404")
    }
    assert engine.items_encoded == 8
    assert searcher.search(tmp_path / "11.png", k=1)[0].item_id == "u1"


def test_entries_of_one_item_stay_in_their_order(searcher, server, tmp_path, monkeypatch) -> None:
    """The last one has the stored address, and its picture is there no more when it counts."""
    monkeypatch.setattr("tigerfg.download.PATIENCE", 0.001)
    for name in ("u7", 7):  # ids that are numbers are the same as their text
        stored = {**item(server, 7), "item_id": name}
        searcher.upsert([stored], limits=QUICK)
        entries = [
            {**stored, "image": server.address("/slow/8")},
            {**stored, "item_id": str(name), "price": 2},
            {**stored, "item_id": str(name), "price": 3},
        ]
        others = [item(server, n) for n in (1, 2, 3)]
        report = searcher.upsert([*entries, *others], **KNOWN)
        assert (report.replaced, report.updated, report.rejected) == (2, 1, [])
        assert searcher.get(str(name)).extra == {"price": 3}
        [hit] = searcher.search(tmp_path / "7.png", k=1)
        assert (hit.item_id, hit.score) == (str(name), pytest.approx(1, abs=1e-5))
        searcher.delete(str(name))


def test_an_entry_far_before_changes_what_a_later_one_was_taken_for(searcher, server) -> None:
    searcher.add([item(server, 7)], limits=QUICK)
    others = [item(server, 100 + n, f"/ok/{n}") for n in range(20)]
    entries = [item(server, 7, "/ok/8"), *others, item(server, 7, price=2)]
    limits = replace(QUICK, ahead=64)  # the last is recognised before the first is stored
    report = searcher.upsert(entries, batch_size=1, limits=limits, refetch=False)
    assert counts(report) == (20, 2, 0, 0, [])
    assert server.asked["/ok/7"] == 3  # at first, of another item, at last


@pytest.mark.parametrize(
    "change",
    [{"title": 5}, {"attributes": [1]}, {"image": None}, {"item_id": None}, None],
    ids=str,
)
def test_a_damaged_record_stands_for_no_picture(server, change) -> None:
    entry = Item.from_dict(item(server, 1))
    text = json.dumps({**entry.to_dict(), **change} if change else [1])
    assert as_stored(entry, Known(b"hash", text)) is None
    assert as_stored(entry, Known(b"hash", json.dumps(entry.to_dict()))).content_hash == b"hash"


@pytest.mark.parametrize("gone", [True, False])
def test_what_others_write_meanwhile_counts(searcher, server, monkeypatch, gone) -> None:
    """After an item was recognised it is deleted, or another picture takes its place."""
    searcher.add([item(server, n) for n in range(3)], limits=QUICK)
    collection, known, calls = searcher._collection, searcher._collection.known, []

    def and_then(item_ids):
        found = known(item_ids)
        calls.append(found)
        if len(calls) == 1:
            if gone:
                collection.delete(["u1"])
            else:
                searcher.upsert([item(server, 1, "/ok/9")], limits=QUICK)
        return found

    monkeypatch.setattr(collection, "known", and_then)
    asked = server.asked.copy()
    entries = [item(server, n) for n in range(3)]
    report = searcher.upsert([*entries, item(server, 1, "/ok/5")], **KNOWN)
    assert counts(report) == ((1, 1, 0, 2, []) if gone else (0, 2, 0, 2, []))
    assert (server.asked - asked)["/ok/1"] == 1
    assert searcher.get("u1").image == server.address("/ok/5"), "the last one counts"


def test_bad_entries_cost_the_others_nothing(searcher, server) -> None:
    items = [item(server, n) for n in range(4)]
    searcher.add(items, limits=QUICK)
    bad = [
        {**items[0], "title": 5},
        {**items[0], "item_id": "\ud800"},
        {**items[0], "item_id": ["u0"]},
        {**items[0], "item_id": 10**5000},
        {"image": items[0]["image"]},
        7,
    ]
    mixed = [bad[0], items[0], *bad[1:], *items[1:]]
    plain = searcher.upsert(mixed, limits=QUICK)
    report = searcher.upsert(mixed, **KNOWN)
    assert (report.unchanged, len(report.rejected)) == (4, 6)
    assert sorted(map(str, report.rejected)) == sorted(map(str, plain.rejected))


def test_items_are_looked_up_in_batches_and_read_as_needed(searcher, server, monkeypatch) -> None:
    items = [item(server, n, f"/ok/{n % 20}") for n in range(120)]
    searcher.add(items, limits=QUICK)
    calls, read, most = [], 0, 0
    known = searcher._collection.known

    def counted(item_ids):
        calls.append(list(item_ids))
        return known(calls[-1])

    def given():
        nonlocal read, most
        for one in items:
            read += 1
            # decided: all that were looked up a second time
            most = max(most, read - sum(map(len, calls[1::2])))
            yield one

    monkeypatch.setattr(searcher._collection, "known", counted)
    assert searcher.add(given(), batch_size=10, **KNOWN).unchanged == 120
    assert len(calls) == 2 * 12
    assert most <= QUICK.ahead + 6 * 10


@pytest.mark.parametrize("seed", range(4))
def test_it_ends_as_if_everything_had_been_fetched(server, tmp_path, monkeypatch, seed) -> None:
    """Random calls on two catalogues, many entries of few items; pictures do not change."""
    monkeypatch.setattr("tigerfg.download.PATIENCE", 0.001)
    rng = random.Random(seed)
    catalogues = [
        Searcher.create(tmp_path / name, FakeBundle(), engine=FakeEngine()) for name in "ab"
    ]
    fetched = []
    for _ in range(8):
        entries = [
            item(
                server,
                rng.randrange(5),
                f"/{rng.choice(['ok', 'slow'])}/{rng.randrange(3)}",
                title=rng.choice("xy"),
                price=rng.randrange(2),
            )
            for _ in range(rng.randrange(1, 15))
        ]
        name, size = rng.choice(["add", "upsert", "upsert"]), rng.randrange(1, 6)
        reports = []
        for searcher, refetch in zip(catalogues, (True, False), strict=True):
            before = sum(server.asked.values())
            put = getattr(searcher, name)
            limits = replace(QUICK, ahead=rng.choice([2, 8]))
            reports.append(put(entries, batch_size=size, limits=limits, refetch=refetch))
            fetched.append(sum(server.asked.values()) - before)
        with_all, with_few = (counts(report) for report in reports)
        assert with_few[:4] == with_all[:4]
        assert sorted(with_few[4]) == sorted(with_all[4])
        assert kept(catalogues[0]) == kept(catalogues[1])
    assert sum(fetched[1::2]) < sum(fetched[::2])
    for searcher in catalogues:
        searcher.close()
