"""Files of tables, whatever the release of pyarrow tells of a file that is open."""

import gc
import os

import numpy as np
import pytest
from stored_tables import ROWS, held, write

from flowdata import LossTable, TableFileError
from flowdata.table import parquet


@pytest.fixture
def _no_numbers(monkeypatch):
    """As with pyarrow 21 to 24, which knows no number of an open file."""
    monkeypatch.setattr(parquet, "_has_number", lambda source: False)


@pytest.mark.usefixtures("_no_numbers")
def test_a_file_without_a_number_is_watched_and_left_open_no_longer_than_its_table(
    tmp_path, monkeypatch
):
    path = tmp_path / "table.parquet"
    write(path, "tokens", monkeypatch)
    held(monkeypatch, 100)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    table = LossTable.load(path)
    # Another table takes its name: this one goes on with what it has opened.
    LossTable.from_losses(np.ones(ROWS)).save(path)
    assert table.lengths.tolist() == [7 + row % 5 for row in range(ROWS)]
    del table
    table = LossTable.load(path)
    # It is written to where it is.
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(TableFileError, match="was replaced or changed since"):
        table.losses  # noqa: B018
    del table
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
