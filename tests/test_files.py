"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tigerfg.files import naming, publish, whole_file, write_whole


def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path):
    file = tmp_path / "results.json"
    file.write_text("old")
    with (  # noqa: PT012
        pytest.raises(OSError, match=r"No space left on device: '.*results\.json'"),
        whole_file(file) as part,
    ):
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert file.read_text() == "old"
    with whole_file(file) as part:
        part.write_text("new")
    assert file.read_text() == "new"


def test_an_error_names_the_file_and_not_its_part(tmp_path):
    for path in (tmp_path / "gone" / "hits.html", tmp_path / "folder"):
        with (  # noqa: PT012
            pytest.raises(OSError, match=r"hits\.html'$|folder'$") as caught,
            whole_file(path) as part,
        ):
            part.write_text("page")
            (tmp_path / "folder").mkdir()  # since it began
        assert caught.value.filename == str(path)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interrupted_file_leaves_the_old_one(tmp_path, interruption):
    file = tmp_path / "file"
    write_whole(file, b"old")

    def interrupted() -> None:
        with whole_file(file) as part:
            part.write_bytes(b"half")
            raise interruption

    with pytest.raises(interruption):
        interrupted()
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    write_whole(file, "größer")
    assert file.read_bytes() == "größer".encode()


def test_an_error_that_names_a_file_keeps_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path):
        (tmp_path / "gone").read_text()
    assert caught.value.filename == str(tmp_path / "gone")


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "gone", out, tmp_path / "away")
    assert [path.name for path in out.iterdir()] == ["old"]


def test_a_link_to_a_folder_is_put_back(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    (tmp_path / "temp").mkdir()
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "gone", tmp_path / "out", tmp_path / "temp" / "old")
    assert (tmp_path / "out").readlink() == Path("disk")


@pytest.mark.parametrize("interrupted", [1, 2])
def test_ctrl_c_in_between_leaves_one_of_the_folders(tmp_path, monkeypatch, interrupted):
    """Just after the first rename, or the second."""
    staged, out = tmp_path / "new", tmp_path / "out"
    for folder in (staged, out):
        folder.mkdir()
        (folder / folder.name).touch()
    rename, calls = os.rename, []

    def renamed(source, target):
        rename(source, target)
        calls.append(target)
        if len(calls) == interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", renamed)
    with pytest.raises(KeyboardInterrupt):
        publish(staged, out, tmp_path / "away")
    assert [path.name for path in out.iterdir()] == [["out"], ["new"]][interrupted - 1]
