"""LossTable: losses with their provenance, on disk and back, and what belongs to them."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import flowdata
from flowdata import (
    FlowDataError,
    FlowDataWarning,
    InvalidLossError,
    LossTable,
    MismatchError,
    Provenance,
    TableFileError,
)
from flowdata.table.fingerprint import model_fingerprint

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


def write_parquet(path, columns, **provenance):
    table = pa.table(columns)
    if provenance:
        table = table.replace_schema_metadata({"flowdata": json.dumps(provenance)})
    pq.write_table(table, path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "losses.parquet"


@pytest.mark.parametrize("losses", [LOSSES, LOSSES.tolist(), torch.tensor(LOSSES), LOSSES[:]])
def test_a_table_holds_losses_as_read_only_single_precision(losses):
    table = LossTable.from_losses(losses)
    assert table.losses.dtype == np.float32
    assert table.losses.tolist() == LOSSES.tolist()
    assert len(table) == 30
    with pytest.raises(ValueError, match="read-only"):
        table.losses[0] = 1.0


def test_a_table_does_not_change_with_the_array_it_was_made_from():
    array = LOSSES.copy()
    table = LossTable.from_losses(array)
    array[:] = 0.0
    assert table.losses.tolist() == LOSSES.tolist()


def test_a_table_keeps_invalid_losses_for_the_weights_to_decide_on():
    table = LossTable.from_losses([1.0, np.nan, np.inf, -1.0, 3.0])
    np.testing.assert_array_equal(table.losses, np.float32([1.0, np.nan, np.inf, -1.0, 3.0]))
    with pytest.raises(InvalidLossError, match="3 of 5 losses"):
        table.weights()
    assert np.flatnonzero(table.weights(on_invalid="drop").values).tolist() == [0, 4]


def test_weights_of_a_table_take_temperature_and_normalisation():
    weights = LossTable.from_losses(LOSSES).weights("mean", normalize="sum")
    assert weights.temperature == pytest.approx(LOSSES.mean(dtype=np.float64))
    assert weights.values.sum() == pytest.approx(1.0)
    assert LossTable.from_losses(LOSSES).weights(0.5).temperature == 0.5


def test_losses_that_are_not_a_row_of_numbers_are_refused():
    with pytest.raises(InvalidLossError, match="losses are empty"):
        LossTable.from_losses([])
    with pytest.raises(ValueError, match=r"shape \(n,\), got shape \(3, 1\)"):
        LossTable.from_losses(np.ones((3, 1)))
    for unusual in (["high"], ["0.5", "1.5"], [1.0 + 2.0j]):
        with pytest.raises(ValueError, match=r"could not convert string|must be numbers"):
            LossTable.from_losses(unusual)


def test_losses_and_provenance_must_agree_on_the_number_of_rows():
    with pytest.raises(ValueError, match="2 losses for provenance of 3 rows"):
        LossTable(np.zeros(2, dtype=np.float32), Provenance(rows=3))


def test_losses_of_another_number_of_rows_than_the_data_set_are_refused():
    with pytest.raises(MismatchError, match="29 losses, but the data set has 30 rows"):
        LossTable.from_losses(LOSSES[:29], dataset=ROWS)


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


def test_provenance_says_when_and_by_which_version_the_losses_were_made():
    before = datetime.now(UTC).replace(microsecond=0)
    provenance = LossTable.from_losses(LOSSES, dtype="bfloat16").provenance
    assert before <= datetime.fromisoformat(provenance.created) <= datetime.now(UTC)
    assert (provenance.flowdata, provenance.schema) == (flowdata.__version__, 1)
    assert (provenance.rows, provenance.dtype) == (30, "bfloat16")
    assert (provenance.model_hash, provenance.data_fingerprint) == (None, None)


def test_two_passes_are_the_same_one_if_loss_model_and_data_are_whenever_they_ran():
    first = Provenance.now(30, dataset=ROWS, model=model(), loss="mse")
    later = Provenance(**{**vars(first), "created": "2030-01-01", "truncated": 3})
    other = Provenance.now(30, dataset=ROWS, model=model(1), loss="mse")
    assert first.identity() == later.identity() != other.identity()


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


def test_token_weights_have_a_temperature_over_all_tokens():
    weights = with_tokens().token_weights()
    assert weights.temperature == 1.0
    np.testing.assert_allclose(weights.values, np.exp([-0.25, -0.75, -1.0, -2.0, -3.0]), rtol=1e-12)
    assert with_tokens().token_weights("mean", normalize="max").temperature == pytest.approx(1.4)


def test_a_table_without_tokens_says_how_to_get_them():
    table = LossTable.from_losses(LOSSES)
    with pytest.raises(ValueError, match="not made by CausalLM"):
        table.token_offsets  # noqa: B018
    with pytest.raises(ValueError, match=r"CausalLM\(token_losses=True\).*tokens=True"):
        table.token_weights()


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


def test_a_table_knows_its_data_set_again():
    table = LossTable.from_losses(LOSSES, dataset=ROWS, model=model())
    table.check(dataset=list(ROWS), model=model().train())
    table.check()


@pytest.mark.parametrize("known", [ROWS, None])
def test_another_length_of_the_data_set_is_a_mismatch(known):
    table = LossTable.from_losses(LOSSES, dataset=known)
    with pytest.raises(MismatchError, match="30 losses, but the data set has 29 rows") as error:
        table.check(dataset=ROWS[:29])
    assert "pass the one that was scored" in str(error.value)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("other", [ROWS[::-1], [*ROWS[:-1], (torch.ones(3), 0)]])
def test_reordered_or_changed_rows_are_a_mismatch(path, other):
    table = LossTable.from_losses(LOSSES, dataset=ROWS)
    table.save(path)
    with pytest.raises(MismatchError, match="rows were changed or reordered") as error:
        LossTable.load(path, dataset=other)
    assert table.provenance.data_fingerprint in str(error.value)
    assert "Score this data set" in str(error.value)


def test_another_model_is_a_mismatch_with_both_hashes_and_the_scored_name(path):
    table = LossTable.from_losses(LOSSES, model=model(), model_name="linear v1")
    table.save(path)
    other = model_fingerprint(model(1))
    with pytest.raises(MismatchError, match="linear v1") as error:
        LossTable.load(path, model=model(1))
    for part in (table.provenance.model_hash, other, "pre-trained weights that scored it"):
        assert part in str(error.value)


def test_what_a_table_does_not_know_is_not_checked():
    table = LossTable.from_losses(LOSSES)
    table.check(dataset=ROWS[::-1], model=model(5))


def test_a_data_set_that_cannot_be_recognised_is_named_in_a_warning():
    class Noisy(list):
        def __getitem__(self, row):
            return torch.rand(3)

    table = LossTable.from_losses(LOSSES, dataset=ROWS)
    with pytest.warns(FlowDataWarning, match="only the length of the data set was checked") as all_:
        table.check(dataset=Noisy(ROWS))
    assert [warning.filename for warning in all_] == [__file__]


def test_a_relative_path_is_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LossTable.from_losses(LOSSES).save("losses.parquet")
    assert LossTable.load(Path("losses.parquet")).losses.tolist() == LOSSES.tolist()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_may_be_a_tensor_that_is_part_of_a_graph(dtype):
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=dtype, requires_grad=True)
    assert LossTable.from_losses(losses * 2).losses.tolist() == [2.0, 4.0, 6.0]


def tokens_table(losses, tokens, n_tokens):
    return LossTable(
        np.array(losses, dtype=np.float32),
        LossTable.from_losses(losses).provenance,
        n_tokens=np.array(n_tokens, dtype=np.int32),
        token_losses=np.array(tokens, dtype=np.float32),
    )


def test_tokens_of_a_dropped_row_have_weight_zero_and_no_say_in_the_temperature():
    tokens = [1.0, 3.0, 900.0, np.nan, 900.0, 2.0]
    table = tokens_table([2.0, np.nan, np.nan, 2.0], tokens, [2, 3, 0, 1])
    weights = table.token_weights(on_invalid="drop")
    assert weights.temperature == 2.0
    assert weights.values == pytest.approx([np.exp(-0.5), np.exp(-1.5), 0, 0, 0, np.exp(-1.0)])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 5.0])
def test_a_token_without_a_valid_loss_is_named_with_its_row(bad):
    row = np.nan if bad == 5.0 else 2.0
    table = tokens_table([2.0, 1.0, row, 2.0], [1.0, 3.0, 1.0, bad, 2.0], [2, 1, 1, 1])
    with pytest.raises(InvalidLossError, match=r"1 tokens in rows \[2\] .*token 3 .*on_invalid="):
        table.token_weights()
    assert np.flatnonzero(table.token_weights(on_invalid="drop").values).tolist() == [0, 1, 2, 4]
