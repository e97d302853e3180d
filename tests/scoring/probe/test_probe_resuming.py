"""score_probe that was stopped: features and losses of folds are kept, and none is made twice."""

import copy
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from launching import PROGRAMS, environment
from torch import nn
from torch.utils.data import TensorDataset

from flowdata import FlowDataWarning, MismatchError, TableFileError, score_probe
from flowdata.objects import ObjectPath
from flowdata.scoring.probe import feature_parts, head_fits

GENERATOR = torch.Generator().manual_seed(1)
CLASSES = torch.arange(60) % 3
INPUTS = torch.randn(60, 6, generator=GENERATOR) + CLASSES[:, None]
ROWS = TensorDataset(INPUTS, CLASSES)


class Counting(nn.Module):
    """A backbone that counts its rows, and stops before there are too many."""

    rows = 0
    most = 10**9

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, inputs):
        if Counting.rows + len(inputs) > Counting.most:
            raise KeyboardInterrupt
        Counting.rows += len(inputs)
        return torch.tanh(self.layer(inputs))


def network():
    torch.manual_seed(0)
    return nn.Sequential(Counting(), nn.Linear(5, 3))


def probed(output=None, *, most=10**9, model=None, rows=ROWS, **options):
    model = model or network()
    Counting.rows, Counting.most = 0, most
    how = {"head": "1", "batch_size": 8, "save_every": 0.0, "progress": False}
    options = how | {"weight_decay": 1e-2, "max_iter": 20} | options
    return score_probe(model, rows, output=output, **options), model


@pytest.fixture(scope="module")
def whole():
    table, model = probed()
    return table.losses, model[1].weight.detach()


@pytest.fixture(params=["folder", "memory"])
def output(request, tmp_path):
    if request.param == "folder":
        return tmp_path / "losses.parquet"
    return f"memory://{tmp_path.name}/losses.parquet"


def is_same(found, whole):
    table, model = found
    return np.array_equal(table.losses, whole[0]) and torch.equal(model[1].weight, whole[1])


def test_it_goes_on_where_the_model_was_stopped(output, whole):
    with pytest.raises(KeyboardInterrupt):
        probed(output, most=30)
    assert Counting.rows == 24
    assert is_same(probed(output), whole)
    assert Counting.rows == 36
    assert is_same(probed(output), whole)
    assert Counting.rows == 0


def test_features_in_a_store_are_fetched_once_and_once_more_where_a_call_goes_on(
    tmp_path, monkeypatch
):
    fetched, read = [], ObjectPath.read_bytes

    def counting(path):
        fetched.extend([path.name] if path.suffix == ".npz" else [])
        return read(path)

    monkeypatch.setattr(ObjectPath, "read_bytes", counting)
    output = ObjectPath(f"memory://{tmp_path.name}/losses.parquet")
    with pytest.raises(KeyboardInterrupt):
        probed(str(output), most=30)
    assert fetched == []
    probed(str(output))
    # Of eight files three were there, which said which rows were left.
    assert sorted(Counter(fetched).values()) == [1] * 5 + [2] * 3
    assert output.with_name("losses.parquet.features").names() == []


def test_it_goes_on_at_the_head_that_was_being_fitted(tmp_path, whole, monkeypatch):
    output, fitted = tmp_path / "losses.parquet", []
    fit = head_fits.HeadFit.fitted

    def stopping(self, *arguments, **options):
        fitted.append(options.get("number", 0))
        if len(fitted) == 4:
            raise KeyboardInterrupt
        return fit(self, *arguments, **options)

    monkeypatch.setattr(head_fits.HeadFit, "fitted", stopping)
    with pytest.raises(KeyboardInterrupt):
        probed(output)
    assert is_same(probed(output), whole)
    assert Counting.rows == 0
    assert fitted == [1, 2, 3, 4, 4, 5, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "losses.parquet",
        "losses.parquet.head",
    ]


def test_jobs_of_an_array_compute_features_and_one_call_fits(output, whole):
    for job in (2, 0, 1):
        table, _ = probed(output, shard=(job, 3))
        assert len(table) == 0
        assert 8 <= Counting.rows <= 28
    assert is_same(probed(output), whole)
    assert Counting.rows == 0


def test_jobs_may_have_a_folder_each(tmp_path, whole):
    together = tmp_path / "all.parquet.features"
    together.mkdir()
    for job in range(2):
        probed(tmp_path / f"{job}.parquet", shard=(job, 2))
        for path in (tmp_path / f"{job}.parquet.features").iterdir():
            path.rename(together / path.name)
    assert is_same(probed(tmp_path / "all.parquet"), whole)
    assert Counting.rows == 0


@pytest.mark.parametrize("change", ["seed", "data", "backbone", "collate_fn"])
def test_features_of_another_call_are_refused(tmp_path, change):
    output = tmp_path / "losses.parquet"
    with pytest.raises(KeyboardInterrupt):
        probed(output, most=30)
    other = network()
    other[0].layer.weight.data += 1
    options = {
        "seed": {"seed": 1},
        "data": {"rows": TensorDataset(INPUTS + 1, CLASSES)},
        "backbone": {"model": other},
        "collate_fn": {"collate_fn": lambda rows: torch.utils.data.default_collate(rows)},
    }
    with pytest.raises(MismatchError, match="does not belong here"):
        probed(output, **options[change])
    assert Counting.rows == 0


def test_what_is_damaged_is_set_aside_and_computed_again(tmp_path, whole):
    output = tmp_path / "losses.parquet"
    with pytest.raises(KeyboardInterrupt):
        probed(output, most=30)
    cut, changed, _ = sorted((tmp_path / "losses.parquet.features").iterdir())
    cut.write_bytes(cut.read_bytes()[:200])
    with zipfile.ZipFile(changed) as file:
        start = file.getinfo("features.npy").header_offset + 300
    content = bytearray(changed.read_bytes())
    content[start] ^= 1
    changed.write_bytes(content)
    with (
        pytest.warns(FlowDataWarning, match="kept as .*damaged"),
        pytest.raises(TableFileError, match="the features of 8 rows are missing"),
    ):
        probed(output)
    assert is_same(probed(output), whole)
    assert Counting.rows == 8


def test_a_head_that_is_lost_is_fitted_again(tmp_path, whole):
    output = tmp_path / "losses.parquet"
    probed(output)
    for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(b"x")):
        spoil(tmp_path / "losses.parquet.head")
        assert is_same(probed(output), whole)
        assert Counting.rows == 60


def test_a_head_of_another_model_is_left_alone(tmp_path):
    output = tmp_path / "losses.parquet"
    probed(output)
    head = tmp_path / "losses.parquet.head"
    found = torch.load(head)
    found["state"]["weight"] += 1
    torch.save(found, head)
    before = copy.deepcopy(network()[1].weight)
    model = network()
    with pytest.raises(KeyboardInterrupt):
        probed(output, most=0, model=model)
    assert torch.equal(model[1].weight, before)


def test_where_there_is_no_room_that_is_said(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    output = tmp_path / "losses.parquet"
    monkeypatch.setattr(feature_parts.np, "savez", full)
    with pytest.raises(TableFileError, match=r"cannot write the features of 8 rows .*No space"):
        probed(output)


def test_features_are_taken_some_at_a_time_and_the_head_is_as_good(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(head_fits, "FIT_BYTES", 7 * 5 * 4)
    table, model = probed(tmp_path / "losses.parquet")
    np.testing.assert_allclose(table.losses, whole[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model[1].weight.detach(), whole[1], rtol=1e-3, atol=1e-3)


def test_shard_needs_an_output():
    with pytest.raises(ValueError, match="shard= needs output="):
        probed(shard=(0, 2))


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_loses_a_batch_at_most(tmp_path):
    def started(name):
        config = {"rows": 120, "slow": 0.01, "log": str(tmp_path / f"{name}.log")}
        config |= {"output": str(tmp_path / f"{name}.parquet"), "out": str(tmp_path / name)}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config))
        program = [sys.executable, str(PROGRAMS / "probe_rows.py"), str(path)]
        ranks = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        return subprocess.Popen(program, env=environment() | ranks)

    def computed(name):
        path = tmp_path / f"{name}.log"
        return path.stat().st_size if path.exists() else 0

    assert started("whole").wait(100) == 0
    assert computed("whole") == 120
    for kill in range(3):
        process = started("killed")
        deadline = time.monotonic() + 60
        while computed("killed") < 35 * (kill + 1):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert started("killed").wait(100) == 0
    assert (tmp_path / "killed").read_text() == (tmp_path / "whole").read_text()
    # One that was computed, but not written, and one that had been begun.
    assert 120 <= computed("killed") <= 120 + 3 * 2 * 4
    assert not (tmp_path / "killed.parquet.features").exists()
