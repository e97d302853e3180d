"""Counts of tokens that go on where they ended, and tables in files that are given lengths."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from counted_rows import EXPECTED, Passed, Rows, counted
from language_models import llama, samples

from flowdata import CausalLM, LossTable, MismatchError, TableFileError, score
from flowdata.scoring.parts.folder import Parts
from flowdata.scoring.row_lengths import give_lengths
from flowdata.table.part_file import read_part, write_part


@pytest.fixture
def passed(monkeypatch):
    return Passed(monkeypatch)


def test_a_count_that_failed_goes_on_and_ends_as_one_file(passed, tmp_path):
    output = tmp_path / "lengths.parquet"
    with passed.stopped(55):
        counted(Rows(), output=output)
    assert not output.exists()
    assert counted(Rows(), output=output).tolist() == EXPECTED
    assert passed.rows == list(range(50, 100))
    assert list(tmp_path.iterdir()) == [output]
    assert counted(Rows(), output=output).tolist() == EXPECTED
    assert passed.rows == list(range(50, 100))
    assert pq.read_table(output)["length"].to_pylist() == EXPECTED


@pytest.mark.slow
def test_a_count_that_is_killed_goes_on(passed, tmp_path):
    output = tmp_path / "lengths.parquet"
    child = multiprocessing.get_context("fork").Process(
        target=counted, args=(Rows(pause=0.01),), kwargs={"output": output}
    )
    child.start()
    parts, deadline = Parts(output).folder, time.monotonic() + 60
    while len(list(parts.glob("*.parquet"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    saved = {row for part in parts.glob("*.parquet") for row in read_part(part).scores.rows}
    assert not output.exists()
    assert counted(Rows(), output=output).tolist() == EXPECTED
    assert set(passed.rows) == set(range(100)) - saved
    assert len(saved) >= 30
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("rows", "options"),
    [(Rows(101), CausalLM()), (samples(100), CausalLM()), (Rows(), CausalLM(max_length=5))],
    ids=["other rows", "other tokens", "other options"],
)
def test_a_count_of_something_else_is_not_gone_on_with(passed, tmp_path, rows, options):
    output = tmp_path / "lengths.parquet"
    with passed.stopped(55):
        counted(Rows(), output=output)
    with pytest.raises(MismatchError):
        counted(rows, options, output=output)
    counted(Rows(), output=output)
    with pytest.raises(MismatchError):
        counted(rows, options, output=output)


# Tables that are given lengths


@pytest.fixture
def table(tmp_path):
    """A table in a file, as an earlier version wrote it: without lengths."""
    path = tmp_path / "losses.parquet"
    loss = CausalLM(token_losses=True)
    scored = score(llama(), samples(), loss, progress=False)
    known = {"n_tokens": scored.n_tokens, "token_losses": scored.token_losses}
    LossTable(scored.losses, scored.provenance, **known).save(path)
    return path


def test_a_table_in_a_file_is_given_lengths_and_keeps_the_rest(table, passed):
    before = LossTable.load(table, tokens=True)
    assert before.lengths is None
    with passed.stopped(25):
        give_lengths(table, samples(), save_every=0.0, progress=False)
    assert LossTable.load(table).lengths is None
    given = give_lengths(table, samples(), progress=False)
    assert passed.rows == list(range(20, 40))
    found = LossTable.load(table, tokens=True)
    expected = [len(row["input_ids"]) for row in samples()]
    assert found.lengths.tolist() == given.lengths.tolist() == expected
    for name in ("losses", "n_tokens", "token_losses"):
        assert getattr(found, name).tolist() == getattr(before, name).tolist()
    assert found.provenance == before.provenance
    assert list(table.parent.iterdir()) == [table]


def test_a_table_of_other_data_is_given_nothing(table):
    before = table.read_bytes()
    with pytest.raises(MismatchError, match="rows were changed or reordered"):
        give_lengths(table, samples()[::-1], progress=False)
    with pytest.raises(MismatchError, match="40 losses, but the data set has 39 rows"):
        give_lengths(table, samples()[:-1], progress=False)
    with pytest.raises(TableFileError, match="there is no loss table at"):
        give_lengths(table.with_name("none.parquet"), samples(), progress=False)
    assert table.read_bytes() == before
    assert list(table.parent.iterdir()) == [table]


def test_a_table_that_could_not_be_written_is_written_by_the_next_call(table, passed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LossTable, "with_lengths", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            give_lengths(table, samples(), progress=False)
    assert passed.rows == list(range(40))
    assert give_lengths(table, samples(), progress=False).lengths is not None
    assert passed.rows == list(range(40))
    assert list(table.parent.iterdir()) == [table]


# Passes of earlier versions


def test_a_pass_that_an_earlier_version_began_ends_without_lengths(tmp_path, passed):
    output = tmp_path / "losses.parquet"
    options = {"output": output, "progress": False, "save_every": 0.0}
    with passed.stopped(25):
        score(llama(), samples(), CausalLM(), **options)
    for path in Parts(output).folder.glob("*.parquet"):
        part = read_part(path)
        write_part(path, replace(part.scores, lengths=None), part.identity)
    model = llama()
    found = score(model, samples(), CausalLM(), **options)
    assert passed.rows == list(range(20, 40))
    assert found.lengths is None
    whole = score(model, samples(), CausalLM(), progress=False)
    assert found.losses == pytest.approx(whole.losses, rel=1e-5)
    assert whole.lengths.tolist() == [len(row["input_ids"]) for row in samples()]
    assert score(model, samples(), CausalLM(), **options).lengths is None
