"""Going on with a pass that ended early, for whatever reason."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from scoring_lines import Stop, absolute, scored, values

from flowdata import (
    FlowDataWarning,
    InvalidLossError,
    LossTable,
    TableFileError,
    score,
)
from flowdata.scoring.parts.folder import Parts


def test_a_pass_that_failed_goes_on_after_the_last_batch(unfinished):
    table = scored(unfinished)
    assert absolute.rows == 30
    assert table.losses.tolist() == list(range(50))
    assert not Parts(unfinished).folder.exists()


def test_parts_are_written_as_often_as_asked(tmp_path):
    seldom, output = tmp_path / "seldom.parquet", tmp_path / "often.parquet"
    for path, every, parts in ((seldom, 3600.0, 1), (output, 0.0, 4)):
        with pytest.raises(Stop):
            scored(path, most=20, save_every=every)
        # What was not written yet is written when the pass fails.
        assert len(list(Parts(path).folder.glob("*.parquet"))) == parts
        assert scored(path).losses.tolist() == list(range(50))
        assert absolute.rows == 30


def test_a_finished_table_is_given_back_without_scoring(tmp_path):
    output = tmp_path / "losses.parquet"
    first = scored(output)
    again = scored(output)
    assert absolute.rows == 0
    assert again.losses.tolist() == first.losses.tolist()
    assert again.provenance == first.provenance


@pytest.mark.parametrize("left", [0, -10])
def test_a_damaged_part_is_named_once_and_scored_again(unfinished, left):
    part = sorted(Parts(unfinished).folder.glob("*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:left])
    with pytest.warns(FlowDataWarning, match=part.name), pytest.raises(Stop):
        scored(unfinished, most=0)
    table = scored(unfinished)
    assert absolute.rows == 35
    assert table.losses.tolist() == list(range(50))


def test_a_full_disk_loses_nothing_that_was_saved(unfinished, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TableFileError, match=r"No space left.*goes on from there"):
            scored(unfinished)
    assert scored(unfinished).losses.tolist() == list(range(50))
    assert absolute.rows == 30


def test_a_full_disk_at_the_start_is_refused_before_scoring(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    output = tmp_path / "losses.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TableFileError, match=r"cannot write .*No space left"):
            scored(output)
    assert absolute.rows == 0
    assert scored(output).losses.tolist() == list(range(50))


def test_a_merge_that_was_interrupted_is_finished(unfinished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "remove", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scored(unfinished)
    with monkeypatch.context() as patch:
        patch.setattr(LossTable, "save", lambda self, path: 1 / 0)
        assert scored(unfinished).losses.tolist() == list(range(50))
    assert absolute.rows == 0
    assert not Parts(unfinished).folder.exists()


def test_a_table_that_could_not_be_written_is_merged_by_the_next_call(unfinished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LossTable, "save", lambda self, path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scored(unfinished)
    assert scored(unfinished).losses.tolist() == list(range(50))
    assert absolute.rows == 0


def fails_at_the_end(monkeypatch, fail):
    """Lets parts reach the disk, and calls ``fail`` for the merged table."""
    sync = os.fsync

    def only_parts(handle):
        if "merged" in os.readlink(f"/proc/self/fd/{handle}"):
            fail()
        sync(handle)

    monkeypatch.setattr(os, "fsync", only_parts)


def test_a_full_disk_at_the_end_keeps_all_rows_for_the_next_call(tmp_path, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    output = tmp_path / "losses.parquet"
    with monkeypatch.context() as patch:
        fails_at_the_end(patch, full)
        with pytest.raises(
            TableFileError, match=r"parquet: No space left on device; all 50 rows are"
        ):
            scored(output)
    assert scored(output).losses.tolist() == list(range(50))
    assert absolute.rows == 0
    assert list(tmp_path.iterdir()) == [output]


def test_a_row_that_two_parts_hold_counts_once(unfinished):
    part = sorted(Parts(unfinished).folder.glob("*.parquet"))[0]
    part.with_name("again.parquet").write_bytes(part.read_bytes())
    assert scored(unfinished).losses.tolist() == list(range(50))
    assert absolute.rows == 30


def test_a_second_call_in_the_same_process_is_refused_and_does_no_harm(tmp_path):
    output, refused = tmp_path / "losses.parquet", []

    def asking(model, batch):
        with pytest.raises(TableFileError, match="another call in this process is scoring") as no:
            score(model, values(), asking, output=output, progress=False)
        refused.append(no)
        return absolute(model, batch)

    asked = scored(output, loss=asking, data=values(10))
    assert asked.losses.tolist() == list(range(10))
    assert len(refused) == 2
    # Whoever comes later is not refused.
    assert scored(tmp_path / "other.parquet").losses.tolist() == list(range(50))


def test_a_system_without_record_locks_scores_without_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert scored(tmp_path / "losses.parquet").losses.tolist() == list(range(50))


def test_a_lock_on_a_folder_that_is_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """As when the call before, which held the lock, finishes between opening and locking."""
    parts, lockf, locked = Parts(tmp_path / "losses.parquet"), fcntl.lockf, []

    def late(handle, operation):
        if not locked:
            shutil.rmtree(parts.folder)
        locked.append(handle)
        lockf(handle, operation)

    monkeypatch.setattr(fcntl, "lockf", late)
    before = open_files()
    with parts.locked():
        assert len(locked) == 2
        assert not can_lock(parts)
    assert can_lock(parts)
    assert open_files() == before


def test_a_lock_that_is_held_names_its_holder_and_leaves_no_file_open(tmp_path, monkeypatch):
    def held(handle, operation):
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "lockf", held)
    parts = Parts(tmp_path / "losses.parquet")
    before = open_files()
    for holder in ("another process", "process 7 on a node"):
        with pytest.raises(TableFileError, match=rf"^{holder} is scoring into .*parts now; wait"):
            parts.locked().__enter__()
        (parts.folder / "lock").write_text("process 7 on a node")
    assert open_files() == before


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_the_lock_names_its_holder_and_ends_with_the_pass(tmp_path):
    parts = Parts(tmp_path / "losses.parquet")
    parts.folder.mkdir()
    (parts.folder / "lock").write_text("process 1 on a machine of a long name " * 9)
    with parts.locked():
        assert not can_lock(parts)
    assert can_lock(parts)
    holder = (parts.folder / "lock").read_text()
    assert holder == f"process {os.getpid()} on {socket.gethostname()}"


def can_lock(parts):
    """Whether another process can; this one would lose its lock with any handle of the file."""
    command = [sys.executable, "-c", LOCKING, str(parts.folder / "lock")]
    return subprocess.run(command, timeout=60).returncode != 7


LOCKING = """
import fcntl, sys

try:
    fcntl.lockf(open(sys.argv[1], "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(7)
"""


def test_a_table_that_another_call_finished_while_this_one_waited_is_not_scored_again(
    tmp_path, monkeypatch
):
    output, locked = tmp_path / "losses.parquet", Parts.locked

    def late(parts, job=None):
        monkeypatch.setattr(Parts, "locked", locked)
        scored(output)
        absolute.rows = 0
        return locked(parts, job)

    monkeypatch.setattr(Parts, "locked", late)
    assert scored(output).losses.tolist() == list(range(50))
    assert absolute.rows == 0
    assert list(tmp_path.iterdir()) == [output]


def test_a_call_that_failed_before_its_first_part_leaves_room_for_the_right_one(tmp_path):
    output = tmp_path / "losses.parquet"
    with pytest.raises(Stop):
        scored(output, most=0)
    assert list(tmp_path.iterdir()) == []
    # As a kill before the first part would leave it.
    parts = Parts(output)
    with parts.locked():
        parts.claim({"rows": 3})
    assert scored(output).losses.tolist() == list(range(50))


@pytest.mark.parametrize("finished", [False, True])
def test_losses_dropped_earlier_are_refused_when_they_are_not_to_be_dropped(tmp_path, finished):
    output = tmp_path / "losses.parquet"
    bad = values()
    bad[7] = torch.tensor(float("nan"))
    if finished:
        scored(output, bad, on_invalid="drop")
    else:
        with pytest.raises(Stop):
            scored(output, bad, most=20, on_invalid="drop")
    with pytest.raises(InvalidLossError, match=r"at rows \[7\].*on_invalid=\"drop\""):
        scored(output, bad)
    assert absolute.rows == 0
    assert np.flatnonzero(np.isnan(scored(output, bad, on_invalid="drop").losses)).tolist() == [7]


@pytest.mark.parametrize("place", ["missing/losses.parquet", "file/losses.parquet"])
def test_an_output_that_cannot_be_written_is_refused_before_scoring(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(TableFileError, match=r"cannot write .*losses\.parquet"):
        scored(tmp_path / place)
    assert absolute.rows == 0


def test_an_invalid_loss_keeps_what_was_scored_before_it(tmp_path):
    output = tmp_path / "losses.parquet"
    bad = values()
    bad[30] = torch.tensor(float("nan"))
    with pytest.raises(InvalidLossError, match=r"rows \[30\]"):
        scored(output, bad)
    table = scored(output, bad, on_invalid="drop")
    assert absolute.rows == 20
    assert np.flatnonzero(np.isnan(table.losses)).tolist() == [30]
    assert table.weights(on_invalid="drop").values[30] == 0.0


def test_a_pass_that_an_invalid_loss_stopped_goes_on_when_it_is_valid(tmp_path):
    output = tmp_path / "losses.parquet"

    def loss(model, batch):
        losses = absolute(model, batch)
        return torch.where(batch == 30, float("nan"), losses) if loss.faulty else losses

    loss.faulty = True

    with pytest.raises(InvalidLossError, match=r"rows \[30\]"):
        scored(output, loss=loss)
    loss.faulty = False
    assert scored(output, loss=loss).losses.tolist() == list(range(50))
    assert absolute.rows == 20
