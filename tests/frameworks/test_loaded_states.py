"""A state that was loaded is what is drawn next, whatever epoch a framework names after that."""

from itertools import islice

import lightning
import numpy as np
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torchdata.nodes import Batcher, Loader
from torchdata.nodes.adapters import SamplerWrapper
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import BatchSampler as StatefulBatchSampler

from flowdata import (
    DistributedFlowSampler,
    EpochPlan,
    FlowDataset,
    FlowDataWarning,
    FlowSampler,
    guards,
)

pytestmark = pytest.mark.slow

ROWS, BATCH, SEED = 26, 4, 3
WEIGHTS = np.arange(1, ROWS + 1.0)


def planned(epoch):
    return EpochPlan(WEIGHTS, seed=SEED).at_epoch(epoch)[:].tolist()


def make(seed=SEED):
    return FlowSampler(WEIGHTS, seed=seed)


def rows(loader, batches=None):
    return [int(row) for batch in islice(loader, batches) for row in batch]


def fabric_loader(sampler):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    return fabric.setup_dataloaders(DataLoader(range(ROWS), BATCH, sampler=sampler))


def fabric_loader_of_batches(sampler):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    batches = BatchSampler(sampler, BATCH, False)
    return fabric.setup_dataloaders(DataLoader(range(ROWS), batch_sampler=batches))


def accelerate_loader(sampler):
    return Accelerator(cpu=True).prepare(DataLoader(range(ROWS), BATCH, sampler=sampler))


class Nodes:
    """torchdata's nodes: a loop that begins them again for each epoch."""

    def __init__(self, sampler):
        self.loader = Loader(Batcher(SamplerWrapper(sampler), BATCH, drop_last=False))

    def __iter__(self):
        return iter(self.loader)


COUNTING = {
    "Fabric": fabric_loader,
    "Fabric, a batch sampler": fabric_loader_of_batches,
    "accelerate": accelerate_loader,
    "torchdata's nodes": Nodes,
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.mark.parametrize("position", [0, 8])
@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("prepare", COUNTING.values(), ids=COUNTING)
def test_a_loader_that_counts_its_passes_goes_on_from_a_loaded_state(prepare, epoch, position):
    sampler = make(seed=99)
    loader = prepare(sampler)
    sampler.load_state_dict(make().state_dict(position=position) | {"epoch": epoch})
    assert rows(loader) == planned(epoch)[position:]
    assert [rows(loader) for _ in range(2)] == [planned(epoch + 1), planned(epoch + 2)]


@pytest.mark.parametrize("prepare", COUNTING.values(), ids=COUNTING)
def test_a_state_loaded_between_two_passes_of_the_same_loader_is_drawn(prepare):
    sampler = make()
    loader = prepare(sampler)
    assert [rows(loader) for _ in range(3)] == [planned(epoch) for epoch in range(3)]
    sampler.load_state_dict(make().state_dict(position=12) | {"epoch": 1})
    assert rows(loader) == planned(1)[12:]
    assert rows(loader) == planned(2)


@pytest.mark.parametrize("prepare", COUNTING.values(), ids=COUNTING)
def test_an_epoch_that_the_loop_has_set_is_drawn_by_a_loader_that_counts(prepare):
    sampler = make()
    loader = prepare(sampler)
    for epoch in (4, 5, 2, 2):
        sampler.set_epoch(epoch)
        assert rows(loader) == planned(epoch)


@pytest.mark.parametrize("prepare", COUNTING.values(), ids=COUNTING)
def test_a_loader_that_nobody_told_of_an_epoch_counts_from_the_first(prepare):
    loader = prepare(make())
    assert [rows(loader) for _ in range(2)] == [planned(0), planned(1)]


@pytest.mark.guard
@pytest.mark.parametrize("prepare", [fabric_loader, accelerate_loader])
def test_a_loader_that_is_made_anew_for_each_epoch_warns_unless_the_loop_names_it(prepare):
    sampler = make()
    rows(prepare(sampler))
    with pytest.warns(FlowDataWarning, match="draws epoch 0 a second time"):
        assert rows(prepare(sampler)) == planned(0)
    sampler.set_epoch(1)
    assert rows(prepare(sampler)) == planned(1)


def test_what_is_drawn_does_not_depend_on_the_switch_of_guards():
    guards.off()
    try:
        for prepare in COUNTING.values():
            sampler = make()
            loader = prepare(sampler)
            sampler.load_state_dict(make().state_dict(position=8) | {"epoch": 3})
            assert rows(loader) == planned(3)[8:]
            assert rows(loader) == planned(4)
    finally:
        guards.on()


def test_the_state_of_a_stateful_loader_inside_fabric_is_followed_by_the_next_epochs():
    fabric = lightning.Fabric(accelerator="cpu", devices=1)

    def loader():
        return StatefulDataLoader(range(ROWS), BATCH, sampler=make())

    first = loader()
    drawn = [rows(first), rows(first, 2)]
    assert drawn == [planned(0), planned(1)[:8]]
    inner = loader()
    inner.load_state_dict(first.state_dict())
    outer = fabric.setup_dataloaders(inner)
    assert [rows(outer), rows(outer)] == [planned(1)[8:], planned(2)]


def test_a_stateful_loader_that_accelerate_prepared_goes_on_in_the_same_process():
    config = DataLoaderConfiguration(use_stateful_dataloader=True)
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    loader = accelerator.prepare(StatefulDataLoader(range(ROWS), BATCH, sampler=make()))
    drawn, state = [], {}
    for step, batch in enumerate(loader):
        drawn += batch.tolist()
        if step == 2:
            state = loader.state_dict()
    assert drawn == planned(0)
    loader.load_state_dict(state)
    assert [rows(loader), rows(loader)] == [planned(0)[3 * BATCH :], planned(1)]


def stateful_accelerate(sampler, workers):
    config = DataLoaderConfiguration(use_stateful_dataloader=True)
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    return accelerator.prepare(DataLoader(range(ROWS), BATCH, sampler=sampler, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [2, 7])
def test_a_stateful_loader_of_accelerate_goes_on_in_the_epoch_that_is_named(workers, batches):
    first, second = (stateful_accelerate(make(), workers) for _ in range(2))
    states = []
    for epoch in (0, 1):
        first.set_epoch(epoch)
        states = [first.state_dict() for _ in first]
    second.load_state_dict(states[batches - 1])
    if batches == len(states):
        second.set_epoch(2)
        assert rows(second) == planned(2)
    else:
        second.set_epoch(1)
        assert rows(second) == planned(1)[batches * BATCH :]


@pytest.mark.guard
@pytest.mark.filterwarnings("ignore:accelerate's loader goes on in epoch")
def test_a_stateful_loader_of_accelerate_does_not_go_on_in_an_epoch_that_nobody_named():
    first, second = (stateful_accelerate(make(), 0) for _ in range(2))
    states = [first.state_dict() for _ in first]
    second.load_state_dict(states[1])
    with pytest.raises(RuntimeError, match=r"does not say of which epoch.*the prepared loader"):
        rows(second)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_of_a_data_set_of_draws_outweighs_accelerates_count(workers):
    config = DataLoaderConfiguration(use_stateful_dataloader=True)
    first, second = (
        Accelerator(cpu=True, dataloader_config=config).prepare(
            DataLoader(FlowDataset(range(ROWS), WEIGHTS, seed=SEED), BATCH, num_workers=workers)
        )
        for _ in range(2)
    )
    rows(first)
    states = [first.state_dict() for _ in first]
    second.load_state_dict(states[1])
    assert [rows(second), rows(second)] == [planned(1)[2 * BATCH :], planned(2)]


@pytest.mark.parametrize("prepare", COUNTING.values(), ids=COUNTING)
def test_a_look_at_the_draws_does_not_lose_the_loaded_epoch(prepare):
    sampler = make()
    loader = prepare(sampler)
    sampler.load_state_dict(make().state_dict() | {"epoch": 3})
    next(iter(sampler))
    assert [rows(loader), rows(loader)] == [planned(4), planned(5)]


def test_a_name_that_is_passed_on_by_a_batch_sampler_of_ones_own_is_a_count():
    class Batches(BatchSampler):
        def set_epoch(self, epoch):
            self.sampler.set_epoch(epoch)

    for fabric in (True, False):
        sampler = make()
        loader = DataLoader(range(ROWS), batch_sampler=Batches(sampler, BATCH, False))
        if fabric:
            loader = lightning.Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader)
        else:
            loader = Accelerator(cpu=True).prepare(loader)
        sampler.load_state_dict(make().state_dict(position=8) | {"epoch": 3})
        assert [rows(loader), rows(loader)] == [planned(3)[8:], planned(4)]


def test_a_data_set_of_draws_goes_on_in_the_epoch_of_its_state_under_accelerate():
    before = FlowDataset(range(ROWS), WEIGHTS, seed=SEED)
    before.set_epoch(3)
    items = FlowDataset(range(ROWS), WEIGHTS, seed=SEED)
    loader = Accelerator(cpu=True).prepare(DataLoader(items, BATCH))
    items.load_state_dict(before.state_dict())
    assert [rows(loader) for _ in range(2)] == [planned(3), planned(4)]


@pytest.mark.guard
@pytest.mark.parametrize("position", [0, 8])
def test_a_loop_that_goes_back_behind_a_loaded_state_is_warned(position):
    sampler = make()
    sampler.load_state_dict(make().state_dict(position=position) | {"epoch": 2})
    with pytest.warns(FlowDataWarning, match=r"as in range\(sampler.epoch, epochs\)"):
        sampler.set_epoch(0)
    assert list(sampler) == planned(0)


def test_a_loop_that_names_the_epochs_from_the_loaded_one_on_is_right():
    for kind in (FlowSampler, DistributedFlowSampler):
        options = {} if kind is FlowSampler else {"num_replicas": 1, "rank": 0}
        sampler = kind(WEIGHTS, **options)
        sampler.load_state_dict(make().state_dict(position=8) | {"epoch": 2})
        drawn = []
        for epoch in range(sampler.epoch, 4):
            sampler.set_epoch(epoch)
            drawn.append(list(sampler))
        assert drawn == [planned(2)[8:], planned(3)]


@pytest.mark.guard
@pytest.mark.parametrize("loader", ["accelerate's", "torchdata's"])
def test_draws_are_not_left_out_twice(loader):
    sampler = make()
    if loader == "accelerate's":
        prepared = skip_first_batches(accelerate_loader(sampler), 2)
        prepared.set_epoch(0)
        leaving_out = prepared
    else:
        batches = BatchSampler(sampler, BATCH, False)
        leaving_out = StatefulDataLoader(range(ROWS), batch_sampler=batches)
        other = StatefulDataLoader(range(ROWS), batch_sampler=BatchSampler(make(), BATCH, False))
        other.batch_sampler.sampler.set_epoch(0)
        rows(other, 2)
        leaving_out.load_state_dict(other.state_dict())
    sampler.load_state_dict(make().state_dict(position=8))
    with pytest.raises(RuntimeError, match="left out twice"):
        rows(leaving_out)


class Around:
    """A sampler of one's own around ours, without a state."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return (row for row in self.sampler)

    def __len__(self):
        return len(self.sampler)


class Rows(Dataset):
    """Rows that are their numbers, one by one or a batch at once."""

    def __len__(self):
        return ROWS

    def __getitem__(self, rows):
        return torch.as_tensor(rows)


STATELESS = {
    "torch's BatchSampler": lambda sampler: {"batch_sampler": BatchSampler(sampler, BATCH, False)},
    "a sampler around ours": lambda sampler: {"sampler": Around(sampler), "batch_size": BATCH},
    "bulk loading": lambda sampler: {
        "sampler": BatchSampler(sampler, BATCH, False),
        "batch_size": None,
    },
}
WORKERS = [0, 2]


@pytest.mark.guard
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("parts", STATELESS.values(), ids=STATELESS)
def test_torchdata_is_not_let_fast_forward_through_an_epoch_that_is_not_known(parts, workers):
    first = StatefulDataLoader(Rows(), num_workers=workers, **parts(make()))
    with pytest.warns(FlowDataWarning, match="do not hold the epoch that is drawn"):
        rows(first)
    rows(first, 2)
    second = StatefulDataLoader(Rows(), num_workers=workers, **parts(make()))
    second.load_state_dict(first.state_dict())
    with pytest.raises(RuntimeError, match="does not say of which epoch"):
        rows(second)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("parts", STATELESS.values(), ids=STATELESS)
def test_torchdata_fast_forwards_through_an_epoch_that_the_loop_names(parts, workers):
    samplers = make(), make()
    first, second = (
        StatefulDataLoader(Rows(), num_workers=workers, **parts(sampler)) for sampler in samplers
    )
    samplers[0].set_epoch(2)
    assert rows(first, 2) == planned(2)[: 2 * BATCH]
    second.load_state_dict(first.state_dict())
    samplers[1].set_epoch(2)
    assert rows(second) == planned(2)[2 * BATCH :]


@pytest.mark.parametrize("workers", WORKERS)
def test_torchdatas_own_batch_sampler_goes_on_in_the_epoch_of_its_state(workers):
    first, second = (
        StatefulDataLoader(
            Rows(), batch_sampler=StatefulBatchSampler(make(), BATCH, False), num_workers=workers
        )
        for _ in range(2)
    )
    assert rows(first) == planned(0)
    rows(first, 2)
    second.load_state_dict(first.state_dict())
    assert [rows(second), rows(second)] == [planned(1)[2 * BATCH :], planned(2)]


@pytest.mark.guard
def test_a_sampler_that_lightning_wraps_does_not_go_on_inside_an_epoch():
    sampler = make()
    wrapped = DistributedSamplerWrapper(sampler, num_replicas=2, rank=0)
    assert len(list(wrapped)) == ROWS // 2
    sampler.load_state_dict(make().state_dict(position=8))
    with pytest.raises(RuntimeError, match="use DistributedFlowSampler"):
        list(wrapped)
