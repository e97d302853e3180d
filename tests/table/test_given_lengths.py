"""Lengths in a loss table: tokens of each row, kept, saved and read with the losses."""

import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from stored_tables import GROUP, ROWS, held, write

from flowdata import InvalidLossError, LossTable, MismatchError, Provenance
from flowdata.table.columns import StoredFile
from flowdata.table.parquet import DamagedFileError

LENGTHS = [7, 0, 2**31 - 1]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.parquet"


@pytest.mark.parametrize(
    "given",
    [LENGTHS, np.array(LENGTHS, np.uint64), np.array(LENGTHS, float), torch.tensor(LENGTHS)],
    ids=["list", "unsigned", "floats", "tensor"],
)
def test_lengths_are_whole_numbers_in_whatever_they_come(path, given):
    table = LossTable.from_losses([3.0, 1.0, 2.0], lengths=given)
    table.save(path)
    for found in (table, LossTable.load(path), pickle.loads(pickle.dumps(table))):
        assert found.lengths.dtype == np.int32
        assert found.lengths.tolist() == LENGTHS
    assert not table.lengths.flags.writeable
    assert pq.read_table(path).column_names == ["loss", "length"]


def test_lengths_of_one_table_can_be_given_to_another():
    first = LossTable.from_losses([3.0, 1.0, 2.0], lengths=LENGTHS)
    second = LossTable.from_losses([1.0, 2.0, 3.0])
    assert second.with_lengths(first).lengths.tolist() == LENGTHS
    assert second.lengths is None
    with pytest.raises(ValueError, match="this LossTable has no lengths"):
        first.with_lengths(second)


def test_lengths_do_not_change_with_the_array_they_were_made_from():
    array = np.array(LENGTHS, dtype=np.int32)
    table = LossTable.from_losses([3.0, 1.0, 2.0], lengths=array)
    array[:] = 0
    assert table.lengths.tolist() == LENGTHS


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([1, 2], MismatchError, "there are 2 lengths for 3 rows"),
        ([[1], [2], [3]], ValueError, r"got int64 of shape \(3, 1\)"),
        ([True, True, False], ValueError, "got bool"),
        ([1, -2, 3], ValueError, r"1 of 3 lengths are below 0 .*\(row 1: -2\)"),
        ([1.5, 2, np.nan], ValueError, r"whole numbers: 2 of 3 .*row 0: 1\.5, row 2: nan"),
        ([1, np.inf, 2], ValueError, "row 1: inf"),
        ([1, 2, 2**31], ValueError, "row 2: 2147483648"),
        (["1", "2", "3"], ValueError, "lengths must be numbers"),
        ([1, None, 3], InvalidLossError, r"lengths must be numbers.*row 1: None"),
    ],
)
def test_what_is_no_length_is_refused_with_its_row(given, error, message):
    table = LossTable.from_losses([3.0, 1.0, 2.0])
    with pytest.raises(error, match=message):
        table.with_lengths(given)
    with pytest.raises(error, match=message):
        LossTable.from_losses([3.0, 1.0, 2.0], lengths=given)


def test_lengths_and_provenance_must_agree_on_the_number_of_rows():
    losses, lengths = np.zeros(3, dtype=np.float32), np.ones(2, dtype=np.int32)
    with pytest.raises(ValueError, match="2 lengths for provenance of 3 rows"):
        LossTable(losses, Provenance(rows=3), lengths=lengths)


@pytest.mark.parametrize("most", [100, 1 << 18], ids=["in its file", "in memory"])
@pytest.mark.parametrize("kind", ["tokens", "many shards", "old shards, unnamed"])
def test_lengths_are_added_to_a_table_that_keeps_all_else(path, kind, most, monkeypatch):
    write(path, kind, monkeypatch)
    before = pq.read_table(path)
    held(monkeypatch, most)
    lengths = np.arange(ROWS) * 3
    # Over its own file, from which the other columns are read meanwhile.
    LossTable.load(path, tokens=kind == "tokens").with_lengths(lengths).save(path)
    after = pq.read_table(path)
    assert after["length"].to_pylist() == lengths.tolist()
    for name in before.column_names:
        if name != "length":
            # As texts, in which NaN is NaN.
            assert repr(after[name].to_pylist()) == repr(before[name].to_pylist())
    assert LossTable.load(path).provenance == Provenance(rows=ROWS, loss="x")


def test_lengths_of_a_table_in_its_file_are_read_when_they_are_asked_for(path, monkeypatch):
    write(path, "tokens", monkeypatch)
    held(monkeypatch, 100)
    reads = []
    read_group = StoredFile.read_group

    def recorded(file, number, name, kind):
        reads.append(name)
        return read_group(file, number, name, kind)

    monkeypatch.setattr(StoredFile, "read_group", recorded)
    table = LossTable.load(path)
    assert reads == []
    assert table.lengths is table.lengths
    assert set(reads) == {"length"}
    assert len(pickle.dumps(table)) < 4 * ROWS
    assert pickle.loads(pickle.dumps(table)).lengths.tolist() == table.lengths.tolist()


def test_lengths_below_zero_are_found_when_they_are_read(path, monkeypatch):
    write(path, "tokens", monkeypatch)
    table = pq.read_table(path)
    lengths = table["length"].to_numpy().copy()
    lengths[GROUP + 1] = -1
    changed = table.set_column(table.column_names.index("length"), "length", [lengths])
    pq.write_table(changed, path)
    with pytest.raises(DamagedFileError, match=f"row {GROUP + 1} has -1 in length"):
        LossTable.load(path)
    held(monkeypatch, 100)
    with pytest.raises(DamagedFileError, match=f"row {GROUP + 1} has -1 in length"):
        LossTable.load(path).lengths  # noqa: B018


def test_a_table_of_an_earlier_version_has_no_lengths(path, monkeypatch):
    write(path, "plain", monkeypatch)
    assert LossTable.load(path).lengths is None
    held(monkeypatch, 100)
    assert LossTable.load(path).lengths is None
