"""Ranks that share a model are one where data is divided, and get no false alarm."""

import sys
import types

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from flowdata import FlowDataset, FlowSampler
from flowdata.errors import FlowDataWarning
from flowdata.guards.ranks import data_ranks, group_size, run_size

pytestmark = pytest.mark.guard

WEIGHTS = np.random.default_rng(5).random(8)
# What stays alive is found; a mesh of another test is not to be.
MESHES = []


@pytest.fixture
def four_ranks():
    """A process group of four ranks in one process, which is rank 0."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=fake.FakeStore())
    yield
    MESHES.clear()
    torch.distributed.destroy_process_group()


def mesh(*dims):
    names, sizes = zip(*dims, strict=True)
    MESHES.append(
        torch.distributed.init_device_mesh("cpu", sizes, mesh_dim_names=names)
        if all(names)
        else torch.distributed.init_device_mesh("cpu", sizes)
    )


SHARED = {
    "tp": [("tp", 4)],
    "data and tp": [("dp", 2), ("tp", 2)],
    "pipeline and tensor": [("pp", 2), ("tensor", 2)],
    "context": [("dp_shard", 2), ("cp", 2)],
}
EXPECTED = {"tp": 1, "data and tp": 2, "pipeline and tensor": 1, "context": 2}
APART = {
    "dp": [("dp", 4)],
    "replicas of shards": [("dp_replicate", 2), ("dp_shard", 2)],
    "fsdp": [("fsdp", 4)],
    "without names": [("", 4)],
}


@pytest.mark.parametrize("name", SHARED)
def test_ranks_along_a_model_parallel_dimension_share_their_data(four_ranks, name):
    mesh(*SHARED[name])
    assert (group_size(), run_size(), data_ranks(4)) == (4, 4, EXPECTED[name])


@pytest.mark.parametrize("dims", APART.values(), ids=APART)
def test_ranks_along_other_dimensions_have_data_of_their_own(four_ranks, dims):
    mesh(*dims)
    assert data_ranks(4) == 4


def test_without_a_mesh_every_rank_has_data_of_its_own(four_ranks):
    assert data_ranks(4) == 4


def test_a_model_that_was_loaded_in_parallel_tells_its_ranks(four_ranks):
    model = torch.nn.Linear(1, 1)
    vars(model)["_tp_size"] = 2
    assert data_ranks(4) == 2


def test_what_accelerate_was_told_counts(four_ranks, monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    config = accelerate.ParallelismConfig(tp_size=2, dp_shard_size=2)
    state = types.SimpleNamespace(
        is_initialized=lambda: True,
        AcceleratorState=lambda: types.SimpleNamespace(parallelism_config=config),
    )
    monkeypatch.setitem(sys.modules, "accelerate.state", state)
    assert data_ranks(4) == 2
    monkeypatch.setitem(sys.modules, "accelerate.state", types.SimpleNamespace())
    assert data_ranks(4) == 4


@pytest.mark.parametrize("dims", [SHARED["tp"], SHARED["pipeline and tensor"]])
def test_ranks_that_share_all_data_are_not_warned(four_ranks, dims):
    mesh(*dims)
    for _ in range(2):
        list(FlowSampler(WEIGHTS))
        list(DataLoader(FlowDataset(range(8), WEIGHTS), 2, shuffle=True))


@pytest.mark.parametrize("dims", [SHARED["data and tp"], APART["dp"]])
def test_ranks_with_data_of_their_own_are_warned(four_ranks, dims):
    mesh(*dims)
    with pytest.warns(FlowDataWarning, match="gives each of the 4 ranks all draws"):
        list(FlowSampler(WEIGHTS))
    with pytest.warns(FlowDataWarning, match="set_epoch"):
        list(DataLoader(FlowDataset(range(8), WEIGHTS), 2, shuffle=True))
