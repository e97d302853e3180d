"""Atomic files: the final name has the old content or the new."""

import errno
import os
import stat
from pathlib import Path

import pytest

from flowdata.files import move_into_place, replacing


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "table.bin"
    path.write_text("old")
    return path


def names(path):
    return [entry.name for entry in path.parent.iterdir()]


def test_the_final_name_has_the_old_content_until_all_is_written(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path) == ["table.bin"]


def test_a_new_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new.bin"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_the_temporary_file_lies_hidden_beside_the_final_one(path):
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".table.bin.")


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
def test_an_error_while_writing_leaves_the_old_content_and_no_temporary_file(path, error):
    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert names(path) == ["table.bin"]


def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_end(path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(path.read_text()))
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert seen == []
    assert seen == ["old", "new"]


def test_a_folder_without_write_permission_keeps_its_file(path, monkeypatch):
    # Root may write anywhere, so that it has to be someone else for a moment; a relative path
    # needs no permission for the folders above.
    monkeypatch.chdir(path.parent)
    path.parent.chmod(0o555)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)
        with pytest.raises(PermissionError, match="Permission denied"):
            replacing(Path(path.name)).__enter__()
    finally:
        os.seteuid(user)
        path.parent.chmod(0o755)
    assert path.read_text() == "old"


def test_content_that_cannot_reach_the_disk_leaves_the_old_content(path, monkeypatch):
    def broken(descriptor):
        raise OSError("input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="input/output error"), replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert names(path) == ["table.bin"]


def test_a_folder_that_cannot_be_synced_is_no_reason_to_fail_with_the_new_content_in_place(
    path, monkeypatch
):
    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", only_files)
    failed = False
    try:
        with replacing(path) as temporary:
            temporary.write_text("new")
    except OSError:
        failed = True
    assert path.read_text() == ("old" if failed else "new")


def test_a_folder_in_the_place_of_the_file_is_left_alone(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(IsADirectoryError), replacing(folder) as temporary:
        temporary.write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("place", ["missing/table.bin", "table.bin/table.bin"])
def test_a_place_that_cannot_be_written_fails_before_anything_is_done(path, place):
    with pytest.raises(OSError, match=r"No such file|Not a directory"):
        replacing(path.parent / place).__enter__()
    assert path.read_text() == "old"
    assert names(path) == ["table.bin"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_permissions_the_umask_leaves(path, mask, mode):
    before = os.umask(mask)
    try:
        with replacing(path) as temporary:
            temporary.write_text("new")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_a_whole_file_is_given_its_final_name(path):
    made = path.with_name("made")
    made.write_text("new")
    move_into_place(made, path)
    assert path.read_text() == "new"
    assert names(path) == ["table.bin"]


def test_two_writers_do_not_meet_in_one_temporary_file(path):
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first"
    assert names(path) == ["table.bin"]
