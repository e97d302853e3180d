"""Files that are no loss table, or a damaged one, are named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowdata import (
    LossTable,
    TableFileError,
)

LOSSES = np.random.default_rng(8).exponential(size=30).astype(np.float32)


def write_parquet(path, columns, **provenance):
    table = pa.table(columns)
    if provenance:
        table = table.replace_schema_metadata({"flowdata": json.dumps(provenance)})
    pq.write_table(table, path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "losses.parquet"


def test_a_table_cut_off_anywhere_is_called_truncated(path):
    LossTable.from_losses(LOSSES).save(path)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(TableFileError, match="truncated or of another format") as error:
            LossTable.load(path)
        assert str(path) in str(error.value)
        assert "score the data again or restore the file" in str(error.value)


def test_files_that_are_not_parquet_are_named(path):
    path.write_text("loss\n0.5\n1.5\n" * 20)
    with pytest.raises(TableFileError, match="not a readable Parquet file") as error:
        LossTable.load(path)
    assert str(path) in str(error.value)
    with pytest.raises(TableFileError, match=r"not a readable Parquet file.*directory"):
        LossTable.load(path.parent)


def test_a_missing_table_is_named(path):
    with pytest.raises(TableFileError, match=f"there is no loss table at {path}"):
        LossTable.load(path)


def test_parquet_of_someone_else_is_refused_with_its_columns_and_another_way(path):
    loss = pa.array([0.5, 1.5], pa.float32())
    write_parquet(path, {"loss": loss, "id": [1, 2]})
    with pytest.raises(TableFileError, match=r"not a loss table.*columns: \['loss', 'id'\]") as no:
        LossTable.load(path)
    assert str(path) in str(no.value)
    assert "LossTable.from_losses(array)" in str(no.value)
    write_parquet(path, {"cost": loss}, rows=2, schema=1)
    with pytest.raises(TableFileError, match=r"columns: \['cost'\]"):
        LossTable.load(path)


def test_a_table_of_fewer_rows_than_it_says_is_refused(path):
    write_parquet(path, {"loss": pa.array([0.5, 1.5], pa.float32())}, rows=3000, schema=1)
    with pytest.raises(TableFileError, match="says that it has 3,000 rows, but holds 2"):
        LossTable.load(path)


def test_a_table_of_a_later_schema_asks_for_an_upgrade(path):
    loss = pa.array([0.5, 1.5], pa.float32())
    write_parquet(path, {"loss": loss}, rows=2, schema=2, flowdata="9.0")
    with pytest.raises(TableFileError, match=r"flowdata 9\.0 with schema version 2") as error:
        LossTable.load(path)
    assert str(path) in str(error.value)
    assert "reads up to 1: upgrade flowdata" in str(error.value)


def test_fields_a_later_version_added_to_the_same_schema_are_ignored(path):
    loss = pa.array([0.5, 1.5], pa.float32())
    write_parquet(path, {"loss": loss}, rows=2, schema=1, flowdata="0.9", colour="blue")
    assert LossTable.load(path).losses.tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    "stored",
    [
        *("{broken", "{}", "[]", '{"schema": 1}', b"\xff\xfe"),
        *('{"schema": 2, "rows": 2}', '{"schema": 1, "rows": "3"}'),
    ],
)
def test_damaged_provenance_is_reported_as_a_damaged_table(path, stored):
    table = pa.table({"loss": pa.array([0.5, 1.5], pa.float32())})
    pq.write_table(table.replace_schema_metadata({"flowdata": stored}), path)
    with pytest.raises(TableFileError) as error:
        LossTable.load(path)
    assert str(path) in str(error.value)


def test_a_loss_column_that_holds_no_numbers_is_refused(path):
    write_parquet(path, {"loss": ["low", "high"]}, rows=2, schema=1)
    with pytest.raises(TableFileError, match="loss"):
        LossTable.load(path)


def test_a_flipped_bit_in_a_loss_is_noticed(tmp_path):
    path = tmp_path / "losses.parquet"
    losses = np.random.default_rng(0).gamma(2.0, size=1000).astype(np.float32)
    LossTable.from_losses(losses).save(path)
    content = bytearray(path.read_bytes())
    place = bytes(content).index(losses[500:502].tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(TableFileError, match=r"losses\.parquet"):
        LossTable.load(path)
