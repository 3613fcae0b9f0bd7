"""Worker processes that are killed, that never began, and whose parent is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tigerfg.benchmark.render.catalog import write_catalog
from tigerfg.benchmark.workers import Workers
from tigerfg.errors import TigerfgError

MAKERS = {
    "catalogue": """
        from tigerfg.benchmark.render.catalog import write_catalog as make
        given = dict(n=4000, seed=3, image_size=64, workers=2)
        place = [sys.argv[1] + "/rendered"]
    """,
    "training pool": """
        from tigerfg.training.prepare import rendered_pool as make
        given = dict(n=4000, seed=3, query_size=32, item_size=64, workers=2)
        place = []
    """,
}


def script(folder: Path, maker: str, guard: str) -> subprocess.Popen[str]:
    file = folder / "make.py"
    body = textwrap.dedent(MAKERS[maker])
    file.write_text(f"import sys\n{body}\n{guard}:\n    make(*place, **given)\n")
    return subprocess.Popen(
        [sys.executable, str(file), str(folder)], stderr=subprocess.PIPE, text=True
    )


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes that have begun to work: multiprocessing's resource tracker is none."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    told = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return [pid for pid, command in told.items() if b"spawn_main" in command]


def end(when: bool) -> bool:
    if when:
        os.kill(os.getpid(), signal.SIGKILL)
    return when


@pytest.mark.parametrize("tasks", [4, 50_000])
def test_a_killed_worker_is_an_error_not_a_wait(tasks: int) -> None:
    """However many tasks are left; and no process stays, which the end would wait for."""
    killed = [number == 2 for number in range(tasks)]
    with pytest.raises(TigerfgError, match="killed, perhaps for want of memory"), Workers(2) as two:
        list(two.map(end, killed, chunk=1))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 4])
def test_results_come_in_the_order_of_the_tasks(count: int, chunk: int) -> None:
    for tasks in (range(0), range(1), range(41)):
        with Workers(count) as workers:
            assert list(workers.map(str, tasks, chunk=chunk)) == [str(task) for task in tasks]


def test_a_catalogue_whose_worker_is_killed_is_an_error(tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == 3:
            multiprocessing.active_children()[0].kill()

    with pytest.raises(TigerfgError, match="killed, perhaps for want of memory"):
        write_catalog(tmp_path, 2000, 3, image_size=64, workers=2, progress=kill)
    assert not list(tmp_path.rglob("items.jsonl"))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_script_without_a_guard_is_told_so(tmp_path: Path, maker: str) -> None:
    process = script(tmp_path, maker, "if True")
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "begun by a script without `if __name__ == '__main__':`" in told


@pytest.mark.parametrize("maker", MAKERS)
def test_workers_end_with_a_killed_parent(tmp_path: Path, maker: str) -> None:
    process = script(tmp_path, maker, "if __name__ == '__main__'")
    deadline = time.monotonic() + 100  # a busy machine takes its time
    while len(alive := workers_of(process)) < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2)  # until they are at work, on an idle machine; at any moment they must end
    process.kill()
    process.communicate()
    while left := [pid for pid in alive if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"{left} outlived their parent"
        time.sleep(0.05)
