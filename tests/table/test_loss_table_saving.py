"""Saving and loading a table: what is written is whole, or the old file stays."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from flowdata import (
    FlowDataError,
    LossTable,
    Provenance,
    TableFileError,
)

LOSSES = np.random.default_rng(8).exponential(size=30).astype(np.float32)

ROWS = [(torch.full((3,), float(row)), row % 4) for row in range(30)]


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 4)


def with_tokens():
    return LossTable(
        np.array([0.5, 1.0, 2.0], dtype=np.float32),
        Provenance(rows=3, loss="causal_lm", options='{"max_length": 7}', truncated=1),
        n_tokens=np.array([2, 0, 3], dtype=np.int32),
        token_losses=np.array([0.25, 0.75, 1.0, 2.0, 3.0], dtype=np.float32),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "losses.parquet"


def test_a_table_is_the_same_after_saving_and_loading(path):
    table = LossTable.from_losses(
        np.r_[LOSSES[:-1], np.nan], dataset=ROWS, model=model(), loss="mine", model_name="linear"
    )
    table.save(path)
    loaded = LossTable.load(str(path), dataset=ROWS, model=model())
    np.testing.assert_array_equal(loaded.losses, table.losses)
    assert not loaded.losses.flags.writeable
    assert loaded.provenance == table.provenance
    assert repr(loaded) == "LossTable(rows=30, loss='mine')"


def test_a_table_is_plain_parquet_for_anyone_else(path):
    with_tokens().save(path)
    columns = pq.read_table(path).to_pydict()
    assert columns["loss"] == [0.5, 1.0, 2.0]
    assert columns["n_tokens"] == [2, 0, 3]
    assert columns["token_losses"] == [[0.25, 0.75], [], [1.0, 2.0, 3.0]]


@pytest.mark.parametrize("tokens", [False, True])
def test_token_losses_are_loaded_only_when_asked_for(path, tokens):
    table = with_tokens()
    table.save(path)
    loaded = LossTable.load(path, tokens=tokens)
    assert loaded.n_tokens.tolist() == [2, 0, 3]
    assert loaded.token_offsets.tolist() == [0, 2, 2, 5]
    assert loaded.provenance == table.provenance
    if tokens:
        assert loaded.token_losses.tolist() == table.token_losses.tolist()
    else:
        assert loaded.token_losses is None


def test_tables_of_more_than_one_row_group_keep_losses_and_tokens_in_order(path):
    rows = 2**20 + 7
    counts = np.arange(rows, dtype=np.int32) % 2
    tokens = np.arange(counts.sum(), dtype=np.float32)
    losses = np.arange(rows, dtype=np.float32)
    LossTable(losses, Provenance(rows=rows), n_tokens=counts, token_losses=tokens).save(path)
    assert pq.ParquetFile(path).num_row_groups > 1
    loaded = LossTable.load(path, tokens=True)
    np.testing.assert_array_equal(loaded.losses, losses)
    np.testing.assert_array_equal(loaded.n_tokens, counts)
    np.testing.assert_array_equal(loaded.token_losses, tokens)


@pytest.mark.parametrize("place", ["missing/losses.parquet", "file/losses.parquet", "folder"])
def test_a_table_that_cannot_be_written_says_where_why_and_that_it_is_not_lost(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TableFileError, match="cannot write the loss table") as error:
        LossTable.from_losses(LOSSES).save(tmp_path / place)
    assert str(tmp_path / place) in str(error.value)
    assert "still in memory, save it to an existing, writable directory" in str(error.value)
    assert isinstance(error.value, FlowDataError)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_leaves_the_old_table_and_nothing_else(path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    LossTable.from_losses(LOSSES).save(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TableFileError, match="No space left on device"):
            LossTable.from_losses(LOSSES * 2).save(path)
    assert LossTable.load(path).losses.tolist() == LOSSES.tolist()
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_half_way_leaves_the_old_table_and_nothing_else(path):
    LossTable.from_losses(LOSSES).save(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(TableFileError, match="File too large"):
            LossTable.from_losses(np.ones(100_000)).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert LossTable.load(path).losses.tolist() == LOSSES.tolist()
    assert list(path.parent.iterdir()) == [path]


def test_a_loaded_table_keeps_its_losses_when_the_file_is_replaced_or_removed(path):
    LossTable.from_losses(LOSSES).save(path)
    loaded = LossTable.load(path)
    LossTable.from_losses(np.zeros(5)).save(path)
    assert loaded.losses.tolist() == LOSSES.tolist()
    path.unlink()
    assert loaded.weights().temperature == np.median(LOSSES.astype(np.float64))


WRITER = """
import os, sys, time
import numpy as np
from flowdata import LossTable

os.fsync = lambda descriptor: time.sleep(600)  # never gets as far as the final name
LossTable.from_losses(np.ones(8_000_000)).save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_while_writing_leaves_the_old_table_and_does_not_hinder_the_next_save(path):
    LossTable.from_losses(LOSSES).save(path)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        while not any(entry.stat().st_size for entry in path.parent.glob(".*.tmp")):
            assert writer.poll() is None
            time.sleep(0.001)
    finally:
        writer.kill()
    assert writer.wait() == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2
    assert LossTable.load(path).losses.tolist() == LOSSES.tolist()
    LossTable.from_losses(LOSSES * 2).save(path)
    assert LossTable.load(path).losses.tolist() == (LOSSES * 2).tolist()


def test_a_relative_path_is_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LossTable.from_losses(LOSSES).save("losses.parquet")
    assert LossTable.load(Path("losses.parquet")).losses.tolist() == LOSSES.tolist()
