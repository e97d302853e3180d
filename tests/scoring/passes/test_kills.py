"""Scoring in processes that are killed, or refused while another one scores."""

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
from long_run import LONG
from scoring_lines import rows_saved
from torch import nn

from flowdata import LossTable, score
from flowdata.scoring.parts.folder import Parts

PROGRAM = Path(__file__).parents[2] / "programs" / "score_rows.py"


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
@pytest.mark.parametrize(
    ("kind", "kills", "batch"),
    [("function", 10, 4), ("language", 3, 20)]
    if LONG
    else [("function", 4, 4), ("language", 1, 20)],
)
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
        saved = rows_saved(output)
        in_flight = set(logged(config)[before:]) - saved
        assert len(in_flight) <= batch
        lost.update(in_flight)
    finish(start(config))
    assert Counter(logged(config)) == Counter(range(ROWS)) + lost
    assert not Parts(output).folder.exists()

    whole = config | {"output": str(tmp_path / "whole.parquet"), "pause": 0.0}
    whole |= {"result": str(tmp_path / "whole"), "log": str(tmp_path / "whole.log")}
    finish(start(whole))
    losses, tokens, lengths = result(config)
    losses_at_once, tokens_at_once, _ = result(whole)
    if kind == "function":
        assert losses == losses_at_once
        assert tokens is None
    else:
        # Other rows are left together after a kill, and matrix products round by their shape.
        assert losses == pytest.approx(losses_at_once, rel=1e-6)
        assert tokens == pytest.approx(tokens_at_once, rel=1e-5)
        assert lengths == [2 + row % 9 for row in range(ROWS)]


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


KILLED = """
import os, signal, sys, torch
import flowdata

def sync(handle):
    if "merged" in os.readlink(f"/proc/self/fd/{handle}"):
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = sync
rows = [(torch.tensor([float(row)]), torch.tensor([0.0])) for row in range(50)]
flowdata.score(torch.nn.Identity(), rows, "mse", output=sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_a_kill_while_the_table_is_written_leaves_nothing_beside_it_in_the_end(tmp_path):
    output = tmp_path / "losses.parquet"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(output)], timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [Parts(output).folder]
    rows = [(torch.tensor([float(row)]), torch.tensor([0.0])) for row in range(50)]
    table = score(nn.Identity(), rows, "mse", output=output, progress=False)
    assert table.losses.tolist() == [row**2 for row in range(50)]
    assert list(tmp_path.iterdir()) == [output]
