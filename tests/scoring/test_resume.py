import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flowdata import (
    CausalLM,
    FlowDataWarning,
    InvalidLossError,
    LossTable,
    MismatchError,
    TableFileError,
    score,
)
from flowdata.scoring.parts import Parts

PROGRAM = Path(__file__).parents[1] / "programs" / "score_rows.py"
ROWS = 400


@pytest.fixture
def config(tmp_path):
    return {
        "kind": "function",
        "rows": ROWS,
        "output": str(tmp_path / "losses.parquet"),
        "log": str(tmp_path / "log"),
        "result": str(tmp_path / "result"),
    }


def start(config):
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), json.dumps(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, *, code=0):
    out, error = process.communicate(timeout=300)
    assert process.returncode == code, error
    return out + error


def logged(config):
    path = Path(config["log"])
    return [int(row) for row in path.read_text().split()] if path.exists() else []


def wait_for(config, rows, process):
    """Until that many rows are in the log."""
    deadline = time.monotonic() + 120
    while len(logged(config)) < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def result(config):
    return json.loads(Path(f"{config['result']}.0").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills", "batch"), [("function", 10, 4), ("language", 3, 20)])
def test_a_pass_killed_at_random_moments_scores_nothing_twice_but_what_was_in_flight(
    config, tmp_path, kind, kills, batch
):
    """Each batch is a part here, so that no more than one batch is lost at a kill."""
    config |= {"kind": kind, "pause": 0.005, "save_every": 0.0}
    output = Path(config["output"])
    random = np.random.default_rng(0)
    lost = Counter()
    for _ in range(kills):
        before = len(logged(config))
        process = start(config)
        wait_for(config, before + int(random.integers(1, ROWS // (2 * kills))), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not output.exists()
        saved = {row for part in Parts(output).load() for row in part.rows.tolist()}
        in_flight = set(logged(config)[before:]) - saved
        assert len(in_flight) <= batch
        lost.update(in_flight)
    finish(start(config))
    assert Counter(logged(config)) == Counter(range(ROWS)) + lost
    assert not Parts(output).folder.exists()

    whole = config | {"output": str(tmp_path / "whole.parquet"), "pause": 0.0}
    whole |= {"result": str(tmp_path / "whole"), "log": str(tmp_path / "whole.log")}
    finish(start(whole))
    losses, tokens = result(config)
    losses_at_once, tokens_at_once = result(whole)
    if kind == "function":
        assert losses == losses_at_once
        assert tokens is None
    else:
        # Other rows are left together after a kill, and matrix products round by their shape.
        assert losses == pytest.approx(losses_at_once, rel=1e-6)
        assert tokens == pytest.approx(tokens_at_once, rel=1e-5)


@pytest.mark.slow
def test_only_one_process_at_a_time_scores_into_a_table(config):
    slow = config | {"pause": 0.02}
    first = start(slow)
    wait_for(slow, 10, first)
    message = finish(start(slow), code=1)
    assert f"process {first.pid} on" in message
    assert "choose another output" in message
    first.send_signal(signal.SIGKILL)
    first.communicate()
    finish(start(config))
    assert len(LossTable.load(config["output"])) == ROWS


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(config, tmp_path):
    peaks = []
    for rows in (1_000, 100_000):
        output = str(tmp_path / f"{rows}.parquet")
        size = {"rows": rows, "width": 1000, "batch_size": 500}
        out = finish(start(config | size | {"output": output}))
        peaks.append(int(out.split("peak ")[1].split()[0]))
    # In kB: all samples are 400,000, their losses and row numbers 1,200 and a few times that.
    assert peaks[1] - peaks[0] < 60_000


class Line(nn.Module):
    def __init__(self, slope=1.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        return self.slope * x


def absolute(model, batch):
    absolute.rows += batch.numel()
    return model(batch).abs()


def values(rows=50):
    return [torch.tensor(float(row)) for row in range(rows)]


def scored(output, data=None, model=None, loss=absolute, **options):
    absolute.rows = 0
    options = {"batch_size": 5, "save_every": 0.0, "progress": False} | options
    return score(
        model or Line(), values() if data is None else data, loss, output=output, **options
    )


class Stop(Exception):
    pass


def stopping(model, batch):
    """Stops the pass at row 20."""
    if batch.max() >= 20:
        raise Stop
    return absolute(model, batch)


stopping.__name__ = "absolute"


@pytest.fixture
def unfinished(tmp_path):
    output = tmp_path / "losses.parquet"
    with pytest.raises(Stop):
        scored(output, loss=stopping)
    assert Parts(output).folder.exists()
    return output


def test_a_pass_that_failed_goes_on_after_the_last_batch(unfinished):
    table = scored(unfinished)
    assert absolute.rows == 30
    assert table.losses.tolist() == list(range(50))
    assert not Parts(unfinished).folder.exists()


def test_parts_are_written_as_often_as_asked(tmp_path):
    seldom, output = tmp_path / "seldom.parquet", tmp_path / "often.parquet"
    for path, every, parts in ((seldom, 3600.0, 1), (output, 0.0, 4)):
        with pytest.raises(Stop):
            scored(path, loss=stopping, save_every=every)
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


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": Line(2.0)}, "model_hash"),
        ({"data": values(49)}, "rows is 50 there and 49 here"),
        ({"data": values(50)[::-1]}, "data_fingerprint"),
        ({"loss": lambda model, batch: model(batch)}, "loss is 'absolute' there and '<lambda>'"),
    ],
)
def test_another_pass_into_the_same_output_is_refused(unfinished, finished, change, named):
    if finished:
        scored(unfinished)
    with pytest.raises(MismatchError, match=named):
        scored(unfinished, **change)
    assert scored(unfinished).losses.tolist() == list(range(50))


class Tokens(nn.Module):
    """A language model that stops before batch number ``most``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 20)
        self.batches, self.most = 0, None

    def forward(self, ids):
        if self.batches == self.most:
            raise Stop
        self.batches += 1
        return self.out(self.embed(ids).cumsum(dim=1))


@pytest.mark.parametrize("finished", [False, True])
def test_other_options_of_a_language_model_are_refused(tmp_path, finished):
    output, model = tmp_path / "losses.parquet", Tokens()
    rows = [{"input_ids": [row, 3, 2], "labels": [-100, 3, 2]} for row in range(20)]

    def run(**options):
        loss = CausalLM(**{"token_losses": True, "max_tokens": 9} | options)
        return score(model, rows, loss, output=output, save_every=0.0, progress=False)

    model.most = None if finished else 4
    if finished:
        run()
    else:
        with pytest.raises(Stop):
            run()
    model.most = None
    for change in ({"max_length": 2}, {"token_losses": False}):
        with pytest.raises(MismatchError, match=rf"options is .*{next(iter(change))}"):
            run(**change)
    # The budget of tokens changes no loss.
    model.batches = 0
    table = run(max_tokens=3)
    assert model.batches == (0 if finished else 8)
    assert table.n_tokens.tolist() == [2] * 20
    assert table.token_losses.size == 40
    expected = score(model, rows, "causal_lm", progress=False).losses
    assert table.losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("left", [0, -10])
def test_a_damaged_part_is_scored_again(unfinished, left):
    part = sorted(Parts(unfinished).folder.glob("*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:left])
    with pytest.warns(FlowDataWarning, match=part.name):
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
        patch.setattr(Parts, "remove", lambda self: 1 / 0)
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
    output, faulty = tmp_path / "losses.parquet", True

    def loss(model, batch):
        losses = absolute(model, batch)
        return torch.where(batch == 30, float("nan"), losses) if faulty else losses

    with pytest.raises(InvalidLossError, match=r"rows \[30\]"):
        scored(output, loss=loss)
    faulty = False
    assert scored(output, loss=loss).losses.tolist() == list(range(50))
    assert absolute.rows == 20
