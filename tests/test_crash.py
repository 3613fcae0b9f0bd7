"""kill -9, a full disk and missing permissions: what was acknowledged stays, nothing is half."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fakes import DIM, FakeBundle, FakeEngine, picture

from tigerfg.errors import CatalogError
from tigerfg.index.store import Store
from tigerfg.searcher import Searcher

LISTS = "IVF2,SQfp16"  # two lists, both probed: exact, but with all files of an approximate index
WRITER = """
    import itertools, os, sys
    sys.path.insert(0, sys.argv[1])
    from fakes import FakeBundle, FakeEngine, picture
    from tigerfg.searcher import Searcher

    def say(kind, first, last):
        os.write(1, f"{kind} {first} {last}\\n".encode())  # one write: never half a line

    start = int(sys.argv[3])
    with Searcher.create(
        sys.argv[2], FakeBundle(), engine=FakeEngine(), exist_ok=True, index=sys.argv[4],
        target_recall=0.999,
    ) as searcher:
        say("open", start, start)
        # One add that runs until the kill; every batch is acknowledged through progress. Now and
        # then the oldest items of this run are deleted or replaced, and the index file rewritten.
        done, oldest = start, start
        def item(n, **fields):
            return {"item_id": f"i{n}", "image": picture(n), "title": f"item {n}", **fields}
        def items():
            for n in itertools.count(start):
                yield item(n)
        def acknowledged(report):
            global done, oldest
            last = start + report.added
            say("added", done, last)
            done = last
            if report.added % 24 == 0:
                say("deleting", oldest, oldest + 3)
                assert searcher.delete(f"i{n}" for n in range(oldest, oldest + 3)) == 3
                say("deleted", oldest, oldest + 3)
                oldest += 3
                searcher.flush()
            elif report.added % 24 == 16:  # other fields of the newest items, nothing encoded
                say("updating", last - 3, last)
                changed = searcher.upsert(item(n, stock=1) for n in range(last - 3, last))
                assert changed.updated == 3
                say("updated", last - 3, last)
        searcher.add(items(), batch_size=8, progress=acknowledged)
"""


def kill_writer(
    path: Path, start: int, rng: random.Random, index: str
) -> list[tuple[str, int, int]]:
    """Run the writer, kill it some lines and some milliseconds later, return what it said."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(WRITER),
            str(Path(__file__).parent),
            str(path),
            str(start),
            index,
        ],
        stdout=subprocess.PIPE,
    )
    first = b"".join(process.stdout.readline() for _ in range(rng.randint(1, 12)))
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    assert process.wait() == -signal.SIGKILL, "the writer ended by itself"
    said = (first + rest).decode().splitlines()
    return [(kind, int(a), int(b)) for kind, a, b in (line.split() for line in said)]


def check_after_kill(
    path: Path, stored: set[int], gone: set[int], maybe: set[int], updated: set[int]
) -> int:
    """Everything acknowledged is there and found, everything deleted is gone; returns the count."""
    store = Store.open(path, read_only=True)
    assert store.check() == []
    store.close()
    with Searcher.open(path, FakeBundle(), engine=FakeEngine()) as searcher:
        present = {int(item.item_id[1:]) for item in searcher}
        assert stored - maybe <= present
        assert not gone & present
        for n in sorted(stored - maybe):
            assert searcher.get(f"i{n}").title == f"item {n}"
        for n in updated & present:
            assert searcher.get(f"i{n}").extra == {"stock": 1}
        marked = searcher.search(picture(0), k=len(present) + 1, where={"stock": 1})
        assert updated & present <= {int(hit.item_id[1:]) for hit in marked}
        numbers = sorted(present)
        hits = searcher.search_batch([picture(n) for n in numbers], k=1)
        for n, [hit] in zip(numbers, hits, strict=True):
            assert hit.item_id == f"i{n}"
            # The stored vector is fp16: 64 components, each rounded by at most 2**-11 of itself.
            assert hit.score == pytest.approx(1, abs=1e-5)
            assert hit.grounding_map.shape == (4, 4)
        everything = searcher.search(picture(0), k=len(present) + 10)
        assert {int(hit.item_id[1:]) for hit in everything} == present
        return len(present)


def storm(path: Path, kills: int, seed: int, index: str = "auto") -> tuple[int, int]:
    """Kill an ingest again and again at random moments; returns items acknowledged and present."""
    rng = random.Random(seed)
    stored: set[int] = set()
    gone: set[int] = set()
    updated: set[int] = set()
    start = present = 0
    for _ in range(kills):
        said = kill_writer(path, start, rng, index)
        added = [(a, b) for kind, a, b in said if kind == "added"]
        for a, b in added:
            stored.update(range(a, b))
        deleted = {n for kind, a, b in said if kind == "deleted" for n in range(a, b)}
        begun = {n for kind, a, b in said if kind == "deleting" for n in range(a, b)}
        gone |= deleted
        updated |= {n for kind, a, b in said if kind == "updated" for n in range(a, b)}
        present = check_after_kill(path, stored - deleted, gone, begun - deleted, updated)
        # From here on what is there counts: the batch in flight is in or out as a whole.
        with Searcher.open(path, FakeBundle(), read_only=True) as searcher:
            there = {int(item.item_id[1:]) for item in searcher}
        last = added[-1][1] if added else start
        beyond = {n for n in there if n >= last}
        assert beyond in (set(), set(range(last, last + 8))), "half a batch"
        unsure = begun - deleted
        assert unsure & there in (set(), unsure), "half a deletion"
        stored = there
        gone |= unsure - there
        start = max(there | {start}) + 1
    return len(stored | gone), present


@pytest.mark.parametrize("index", ["auto", LISTS])
def test_kill_at_random_moments(tmp_path, index):
    acknowledged, _ = storm(tmp_path / "cat", kills=4, seed=4, index=index)
    assert acknowledged > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("index", "seed", "kills"),
    [("auto", 30, 30), *((LISTS, seed, 25) for seed in range(30, 34))],  # a hundred with lists
)
def test_kill_at_many_random_moments(tmp_path, capsys, index, seed, kills):
    acknowledged, present = storm(tmp_path / "cat", kills, seed, index)
    with Searcher.open(tmp_path / "cat", FakeBundle(), read_only=True) as searcher:
        kind = searcher.stats().kind
    assert kind == ("flat" if index == "auto" else index)
    with capsys.disabled():
        print(
            f"\n{kills} kills, index {kind}: {acknowledged} items acknowledged, all accounted "
            f"for; {present} stored, all found by id and by search, the rest deleted; no "
            "half-written item"
        )
    assert acknowledged > kills


def fill_until_error(path: Path) -> tuple[int, CatalogError]:
    with Searcher.create(path, FakeBundle(), engine=FakeEngine(), exist_ok=True) as searcher:
        acknowledged = 0

        def note(report):
            nonlocal acknowledged
            acknowledged = report.added

        items = ({"item_id": f"i{n}", "image": picture(n)} for n in range(20_000))
        with pytest.raises(CatalogError) as caught:
            searcher.add(items, batch_size=16, progress=note)
        assert acknowledged == len(searcher), "the searcher goes on working"
        assert searcher.search(picture(0), k=1)[0].item_id == "i0"
    return acknowledged, caught.value


def test_full_disk_keeps_what_was_acknowledged(tmp_path, monkeypatch):
    path = tmp_path / "cat"
    real_open = Store.open.__func__

    def small_open(cls, *arguments, **options):
        store = real_open(cls, *arguments, **options)
        store._db.execute("PRAGMA max_page_count = 60")
        return store

    Searcher.create(path, FakeBundle(), engine=FakeEngine()).close()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "open", classmethod(small_open))
        acknowledged, error = fill_until_error(path)
    assert "the disk is full" in str(error)
    assert "\n" not in str(error)
    assert acknowledged > 0
    with Searcher.open(path, FakeBundle(), engine=FakeEngine()) as searcher:
        assert len(searcher) == acknowledged
        assert searcher.add([{"item_id": "later", "image": picture(1)}]).added == 1


def test_file_size_limit_keeps_what_was_acknowledged(tmp_path):
    """A quota as the kernel enforces it: no file may grow past 300 kB."""
    path = tmp_path / "cat"
    code = """
        import resource, sys
        sys.path.insert(0, sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        from pathlib import Path
        from test_crash import fill_until_error
        acknowledged, error = fill_until_error(Path(sys.argv[2]))
        print(acknowledged, error)
    """
    output = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent), str(path)],
        text=True,
    )
    acknowledged, message = output.strip().split(" ", 1)
    assert message.startswith("cannot store items in")
    with Searcher.open(path, FakeBundle(), engine=FakeEngine()) as searcher:
        assert len(searcher) == int(acknowledged) > 0
        store = Store.open(path, read_only=True)
        assert store.check() == []
        store.close()


VISITOR = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    from fakes import FakeBundle, FakeEngine, picture
    from tigerfg.errors import CatalogError
    from tigerfg.searcher import Searcher

    with Searcher.create(sys.argv[3], FakeBundle(), engine=FakeEngine()) as searcher:
        searcher.add([{"item_id": "a", "image": picture(1)}])
        searcher.search(picture(1))  # imports everything while the packages can be read for sure
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
    for attempt in (Searcher.open, Searcher.create):
        try:
            attempt(sys.argv[2] + "/new" * (attempt == Searcher.create), FakeBundle())
        except CatalogError as error:
            print(error)
    with Searcher.open(sys.argv[2], FakeBundle(), read_only=True, engine=FakeEngine()) as searcher:
        print(searcher.search(picture(1), k=1)[0].item_id)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user without permission")
def test_directory_without_permission_to_write(tmp_path):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        os.chmod(folder, 0o755)
        path = Path(folder) / "cat"
        with Searcher.create(path, FakeBundle(), engine=FakeEngine()) as searcher:
            searcher.add([{"item_id": "a", "image": picture(1)}])
        before = sorted(os.listdir(path))
        output = subprocess.check_output(
            [
                sys.executable,
                "-c",
                textwrap.dedent(VISITOR),
                str(Path(__file__).parent),
                str(path),
                str(tmp_path / "own"),
            ],
            text=True,
        )
        refused, not_made, found = output.splitlines()
        assert refused == (
            f"cannot write to {path}: Permission denied; to search only, open it read-only"
        )
        assert not_made == f"cannot create a catalogue in {path}/new: Permission denied"
        assert found == "a"
        assert sorted(os.listdir(path)) == before


def test_store_rounds_vectors_within_fp16(tmp_path):
    with Searcher.create(tmp_path / "cat", FakeBundle(), engine=FakeEngine()) as searcher:
        searcher.add([{"item_id": "a", "image": picture(1)}])
        exact = searcher.encode_query(picture(1))
    store = Store.open(tmp_path / "cat", read_only=True)
    [(_, stored)] = list(store.vectors_since(0))
    store.close()
    assert stored.shape == (1, DIM)
    np.testing.assert_allclose(stored[0], exact, rtol=2**-11, atol=2**-25)


READER = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    from fakes import FakeBundle, FakeEngine, picture
    from tigerfg.searcher import Searcher

    with Searcher.open(sys.argv[3], FakeBundle(), read_only=True, engine=FakeEngine()) as searcher:
        searcher.search(picture(1))  # imports everything while the packages can be read for sure
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
    with Searcher.open(sys.argv[2], FakeBundle(), read_only=True, engine=FakeEngine()) as searcher:
        for _ in sys.stdin:
            hits = searcher.search(picture(1), k=1000)
            print(len(searcher), len(hits), hits[0].item_id, flush=True)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user without permission")
def test_a_reader_without_permission_sees_a_writer_that_comes_later(tmp_path):
    def items(first, last):
        return [{"item_id": f"i{n}", "image": picture(n)} for n in range(first, last)]

    def opened():
        return Searcher.open(path, FakeBundle(), engine=FakeEngine())

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "cat"
        with Searcher.create(path, FakeBundle(), engine=FakeEngine()) as searcher:
            searcher.add(items(0, 3))
        arguments = [str(Path(__file__).parent), str(path), str(path)]
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(READER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as reader:

            def seen() -> str:
                reader.stdin.write("\n")
                reader.stdin.flush()
                return reader.stdout.readline().strip()

            assert seen() == "3 3 i1"
            with opened() as writer:
                writer.add(items(3, 400))
                assert seen() == "400 400 i1"
                writer.delete(["i1"])
                assert seen().startswith("399 399 i")
            with opened() as writer:
                writer.add(items(1, 2))
            assert seen() == "400 400 i1"
            with opened() as writer:
                writer.delete([f"i{n}" for n in range(2, 400)])
            assert seen() == "2 2 i1"
            reader.stdin.close()


def test_a_catalogue_that_was_removed_or_replaced_takes_no_items(tmp_path):
    path = tmp_path / "cat"
    with Searcher.create(path, FakeBundle(), engine=FakeEngine()) as searcher:
        searcher.add([{"item_id": "a", "image": picture(1)}])
        path.rename(tmp_path / "away")
        for _ in range(2):
            with pytest.raises(CatalogError, match="was removed, or replaced"):
                searcher.add([{"item_id": "b", "image": picture(2)}])
            with pytest.raises(CatalogError, match="was removed, or replaced"):
                searcher.delete("a")
            path.mkdir(exist_ok=True)
            (path / "catalog.sqlite").touch()
    with Searcher.open(tmp_path / "away", FakeBundle(), engine=FakeEngine()) as searcher:
        assert [item.item_id for item in searcher] == ["a"]


FORKED = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    from fakes import FakeBundle, FakeEngine, picture
    from tigerfg.errors import CatalogError
    from tigerfg.searcher import Searcher

    searcher = Searcher.create(sys.argv[2], FakeBundle(), engine=FakeEngine())
    searcher.add([{"item_id": "a", "image": picture(1)}])
    if (child := os.fork()) == 0:
        calls = (
            lambda: searcher.search(picture(1)),
            lambda: searcher.search_batch([picture(1)] * 2),
            lambda: searcher.add([{"item_id": "b", "image": picture(2)}]),
            lambda: searcher.delete("a"),
            lambda: searcher.update([{"item_id": "a", "price": 1}]),
            lambda: searcher.get("a"),
        )
        for call in calls:
            try:
                call()
            except CatalogError as error:
                assert "open it again after a fork" in str(error)
            else:
                os._exit(1)
        searcher.close()
        with Searcher.open(sys.argv[2], FakeBundle(), read_only=True, engine=FakeEngine()) as own:
            os._exit(0 if own.search(picture(1))[0].item_id == "a" else 2)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    searcher.add([{"item_id": "c", "image": picture(3)}])
    searcher.close()
"""


def test_a_forked_process_is_told_to_open_the_catalogue_itself(tmp_path):
    path = tmp_path / "cat"
    output = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(FORKED), str(Path(__file__).parent), str(path)],
        text=True,
        timeout=60,
    )
    assert output.strip() == "0"
    with Searcher.open(path, FakeBundle(), engine=FakeEngine()) as searcher:
        assert [item.item_id for item in searcher] == ["a", "c"]
        assert searcher.verify(0).ok
