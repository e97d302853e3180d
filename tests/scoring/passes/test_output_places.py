"""Outputs where they cannot be, without locks, on other disks, and on disks that are full."""

import errno
import fcntl
import os

import pyarrow
import pytest
import torch
from long_run import LONG
from scoring_lines import Stop, absolute, scored, values

from flowdata import FlowDataError, FlowDataWarning, LossTable, TableFileError
from flowdata.scoring.parts.folder import Parts
from flowdata.table.part_file import read_part

RESULT = list(range(50))


@pytest.mark.parametrize(
    "code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY]
)
def test_a_file_system_without_locks_is_scored_on_with_a_warning(tmp_path, monkeypatch, code):
    def none(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", none)
    with pytest.warns(FlowDataWarning, match="has no locks.*take care that no other call"):
        assert scored(tmp_path / "losses.parquet").losses.tolist() == RESULT
    assert [path.name for path in tmp_path.iterdir()] == ["losses.parquet"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EROFS])
def test_a_lock_that_cannot_be_taken_is_an_error_that_says_why(tmp_path, monkeypatch, code):
    def failing(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", failing)
    with pytest.raises(TableFileError, match=f"cannot write .*{os.strerror(code)}"):
        scored(tmp_path / "losses.parquet")


@pytest.mark.parametrize("output", ["", ".", "/", "a\0b.parquet"])
def test_an_output_that_is_no_name_is_refused(output):
    with pytest.raises(TableFileError, match=r"is no path|is a folder"):
        scored(output)


def test_what_the_system_says_is_told_without_the_words_of_a_library(tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    LossTable.from_losses([1.0, 0.5]).save(path)

    def refused(*arguments):
        # As pyarrow 26 has it.
        raise PermissionError(errno.EACCES, f"Failed to open local file '{path}'. Detail: ...")

    monkeypatch.setattr(pyarrow, "OSFile", refused)
    with pytest.raises(TableFileError, match=r"table.parquet: Permission denied; that does not"):
        LossTable.load(path)


def test_parts_on_another_disk_become_a_table_on_this_one(tmp_path, monkeypatch):
    output, elsewhere = tmp_path / "losses.parquet", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "losses.parquet.parts").symlink_to(elsewhere)
    replace = os.replace

    def on_one_disk(source, target):
        if os.path.dirname(os.path.realpath(source)) != os.path.dirname(os.path.realpath(target)):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target)

    monkeypatch.setattr(os, "replace", on_one_disk)
    with pytest.raises(Stop):
        scored(output, most=20)
    assert scored(output).losses.tolist() == RESULT
    assert absolute.rows == 30
    assert list(elsewhere.iterdir()) == []
    assert output.is_file()


def test_a_link_for_an_output_is_followed_and_stays_one(tmp_path):
    output, target = tmp_path / "losses.parquet", tmp_path / "disk" / "real.parquet"
    output.symlink_to(target)
    with pytest.raises(TableFileError, match=r"cannot write .*No such file"):
        scored(output)
    assert absolute.rows == 0
    target.parent.mkdir()
    assert scored(output).losses.tolist() == RESULT
    assert output.is_symlink()
    assert target.is_file()
    assert scored(output).losses.tolist() == RESULT


def make_nothing(path):
    return path / "none" / "x.parquet"


def make_folder(path):
    (path / "x.parquet").mkdir()
    return path / "x.parquet"


def make_file_for_folder(path):
    (path / "file").write_text("")
    return path / "file" / "x.parquet"


def make_parts_file(path):
    (path / "x.parquet.parts").write_text("")
    return path / "x.parquet"


def make_dangling_parts(path):
    (path / "x.parquet.parts").symlink_to(path / "none" / "none")
    return path / "x.parquet"


def make_pipe(path):
    os.mkfifo(path / "x.parquet")
    return path / "x.parquet"


def make_lock_folder(path):
    (path / "x.parquet.parts" / "lock").mkdir(parents=True)
    return path / "x.parquet"


def make_loop(path):
    (path / "x.parquet").symlink_to(path / "x.parquet")
    return path / "x.parquet"


def make_long_name(path):
    return path / ("x" * 252 + ".p")


MAKE = [make_nothing, make_folder, make_file_for_folder, make_parts_file, make_dangling_parts]
MAKE += [make_pipe, make_lock_folder, make_loop, make_long_name]


@pytest.mark.parametrize("make", MAKE)
def test_an_output_that_is_no_place_for_a_table_is_refused_before_scoring(tmp_path, make):
    output = make(tmp_path)
    with pytest.raises(TableFileError, match=output.name[:50]):
        scored(output)
    assert absolute.rows == 0


def test_a_url_of_a_file_is_its_path(tmp_path):
    output = tmp_path / "losses.parquet"
    assert scored(f"file://{output}").losses.tolist() == RESULT
    assert LossTable.load(output.as_uri()).losses.tolist() == RESULT
    assert list(tmp_path.iterdir()) == [output]


# Disks that become full, at every write


def test_a_disk_that_is_full_at_any_write_loses_nothing_saved(tmp_path, monkeypatch):
    sync, calls = os.fsync, []
    for full_at in range(30) if LONG else (0, 1, 2, 4, 9):
        output = tmp_path / f"{full_at}.parquet"

        def full(handle, full_at=full_at):
            calls.append(handle)
            if len(calls) > full_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        calls.clear()
        data = [torch.tensor(float(row)) for row in range(20)]
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                scored(output, data)
            except FlowDataError as error:
                text = str(error)
                assert "No space left" in text
            # The folder alone cannot be synced: the table is there.
        kept = sum(len(read_part(path).scores) for path in Parts(output).folder.glob("*.parquet"))
        done = output.exists()
        assert scored(output, values(20)).losses.tolist() == list(range(20))
        assert absolute.rows == (0 if done else 20 - kept)
        assert not Parts(output).folder.exists()
