"""The doors find out who asks, and say so where the answer would be wrong."""

import json
import subprocess
import sys
from collections import Counter
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Subset
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import DistributedFlowSampler, EpochPlan, FlowDataset, FlowSampler, MismatchError
from flowdata.errors import FlowDataWarning
from flowdata.frameworks.sources import sources_of
from flowdata.reweight import reweight

ROWS, DRAWS, SEED = 11, 18, 2
WEIGHTS = np.random.default_rng(5).random(ROWS)


def make(kind=FlowDataset, weights=WEIGHTS, **options):
    given = {"seed": SEED, "epoch_size": DRAWS} | options
    return kind(range(ROWS), weights, **given) if kind is FlowDataset else kind(weights, **given)


def planned(epoch):
    return EpochPlan(WEIGHTS, seed=SEED, epoch=epoch, epoch_size=DRAWS)[:].tolist()


def one_epoch(loader):
    return torch.cat(list(loader)).tolist()


def test_importing_flowdata_imports_no_framework():
    code = (
        "import flowdata, sys; "
        "print([m for m in ('transformers', 'accelerate', 'lightning', 'trl', 'peft') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def two_ranks(monkeypatch):
    monkeypatch.setattr("flowdata.guards.sampler.group_size", lambda: 2)


@pytest.mark.usefixtures("two_ranks")
def test_a_sampler_of_all_draws_warns_where_each_rank_would_draw_them_all():
    with pytest.warns(FlowDataWarning, match=r"use DistributedFlowSampler\(weights\)"):
        one_epoch(DataLoader(range(ROWS), 4, sampler=make(FlowSampler)))


@pytest.mark.usefixtures("two_ranks")
def test_a_rank_sampler_in_a_plain_loader_is_as_it_should_be():
    sampler = make(DistributedFlowSampler, num_replicas=2, rank=1)
    assert one_epoch(DataLoader(range(ROWS), 4, sampler=sampler)) == planned(0)[1::2]


@pytest.mark.parametrize("stream", ["datasets", "torch"])
def test_a_stream_without_rows_by_number_is_refused(stream):
    if stream == "datasets":
        rows = datasets.Dataset.from_dict({"row": range(ROWS)}).to_iterable_dataset()
    else:
        rows = type(
            "Stream", (torch.utils.data.IterableDataset,), {"__iter__": iter, "__len__": len}
        )()
    with pytest.raises(TypeError, match=r"no rows by number.*from_generator"):
        FlowDataset(rows, WEIGHTS)


def test_the_rows_of_a_stream_are_drawn_from_once_they_are_stored(tmp_path):
    stream = datasets.Dataset.from_dict({"row": range(ROWS)}).to_iterable_dataset()
    stored = datasets.Dataset.from_generator(lambda: iter(stream), cache_dir=str(tmp_path))
    items = FlowDataset(stored, WEIGHTS, seed=SEED, epoch_size=DRAWS)
    for epoch in (0, 1):
        batches = list(DataLoader(items, 4, shuffle=True))
        drawn = [row for batch in batches for row in batch["row"].tolist()]
        assert Counter(drawn) == Counter(planned(epoch))


def weighed_stream():
    """A stream, of which `reweight` is told by a column."""
    rows = datasets.Dataset.from_dict({"row": range(ROWS), "labels": np.ones(ROWS)})
    return rows.to_iterable_dataset(num_shards=2).map(
        lambda row, number: row | {"__weight__": float(WEIGHTS[number])}, with_indices=True
    )


def test_a_stream_is_reweighted_by_a_column_and_goes_on_from_its_own_state():
    batches, state = [], None
    for _ in range(2):
        data, collate = reweight(weighed_stream(), None, target="labels")
        if state is not None:
            data.load_state_dict(state)
        # Its samples come one by one, as a loader without workers asks for them.
        loader = iter(DataLoader(data, 2, collate_fn=collate))
        batches += list(islice(loader, 2)) if state is None else list(loader)
        state = data.state_dict()
    rows = torch.cat([batch["row"] for batch in batches])
    assert rows.tolist() == list(range(ROWS))
    weights = torch.cat([batch["labels"].weights for batch in batches])
    np.testing.assert_array_equal(weights, np.float32(WEIGHTS)[rows])
    with pytest.raises(ValueError, match="got sampler="):
        DataLoader(weighed_stream(), sampler=make(FlowSampler))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stateful_loader_carries_the_epoch_that_was_named(workers):
    items = make()
    items.set_epoch(3)
    torch.manual_seed(0)
    loader = StatefulDataLoader(items, 4, shuffle=True, num_workers=workers)
    batches = iter(loader)
    done = [row for _ in range(2) for row in next(batches).tolist()]
    state = json.loads(json.dumps(items.state_dict()))
    after = make()
    resumed = StatefulDataLoader(after, 4, shuffle=True, num_workers=workers)
    resumed.load_state_dict(loader.state_dict())
    assert Counter(done + one_epoch(resumed)) == Counter(planned(3))
    assert after.epoch == state["epoch"] == 3


def test_an_epoch_that_was_named_already_holds_when_a_state_is_loaded():
    before, after = make(), make()
    before.set_epoch(3)
    after.set_epoch(4)
    after.load_state_dict(before.state_dict())
    assert after.epoch == 4


def test_a_state_of_an_epoch_that_nobody_named_is_refused():
    items = make()
    one_epoch(DataLoader(items, 4))
    with pytest.raises(RuntimeError, match="give the DataLoader a FlowSampler"):
        make().load_state_dict(items.state_dict())


@pytest.mark.parametrize("other", [{"weights": WEIGHTS[::-1].copy()}, {"alpha": 0.5}])
def test_a_state_of_other_draws_is_refused(other):
    items = make(**other)
    items.set_epoch(1)
    with pytest.raises(MismatchError, match=next(iter(other))):
        make().load_state_dict(items.state_dict())


def test_a_state_brings_its_seed_to_worker_processes_too():
    before, after = make(seed=9), make()
    before.set_epoch(1)
    after.load_state_dict(OmegaConf.create(before.state_dict()))
    assert after.plan.seed == 9
    drawn = EpochPlan(WEIGHTS, seed=9, epoch=1, epoch_size=DRAWS)[:].tolist()
    assert one_epoch(DataLoader(after, 4)) == drawn
    assert one_epoch(DataLoader(after, 4, num_workers=1, multiprocessing_context="fork")) == drawn


def test_a_state_of_the_layout_before_goes_on():
    items = make(seed=9)
    items.set_epoch(1)
    plan = items.plan.identity() | {"seed": 9}
    after = make()
    after.load_state_dict({"epoch": 1, "named": True, "plan": plan})
    assert after[0] == items[0]
    assert after.state_dict() == items.state_dict()


def test_what_is_no_state_is_refused():
    for state in ({}, None, {"epoch": 1}):
        with pytest.raises(MismatchError, match="not a FlowDataset state"):
            make().load_state_dict(state)


def test_a_state_of_a_loader_that_reads_ahead_warns(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    from accelerate import Accelerator

    sampler = make(FlowSampler)
    loader = Accelerator(cpu=True).prepare(DataLoader(range(ROWS), 4, sampler=sampler))
    for batch in loader:
        with pytest.warns(FlowDataWarning, match="position=steps x batch size x ranks"):
            sampler.state_dict()
        state = sampler.state_dict(position=len(batch))
        break
    assert (state["epoch"], state["position"]) == (0, 4)
    loader.set_epoch(0)
    one_epoch(loader)
    assert sampler.state_dict()["epoch"] == 1


def test_doors_are_found_in_loaders_and_collections_of_them():
    items, sampler = make(), make(FlowSampler)
    plain = DataLoader(range(ROWS), 4, sampler=sampler)
    nested = {"a": [DataLoader(Subset(items, [1, 2]), 2)], "b": plain}
    assert sources_of(nested) == [items, sampler]
    assert sources_of(DataLoader(range(ROWS))) == []
