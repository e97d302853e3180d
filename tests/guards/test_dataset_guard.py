"""DatasetGuard: a FlowDataset whose epoch nobody names, or whose draws do not come through."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    SequentialSampler,
    Subset,
    random_split,
)
from torchdata.stateful_dataloader import StatefulDataLoader

import flowdata.guards
from flowdata import ByLength, FlowDataset, Strata
from flowdata.errors import FlowDataWarning

pytestmark = pytest.mark.guard

WEIGHTS = np.random.default_rng(5).random(8)


def make():
    return FlowDataset(range(8), WEIGHTS)


def test_batches_that_no_sampler_of_torch_makes_are_advised_about_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = DataLoader(make(), batch_sampler=[[0, 1], [2, 3]])
    with pytest.warns(FlowDataWarning, match="set_epoch") as warned:
        list(loader)
    list(loader)
    assert len(warned) == 1
    loader.dataset.set_epoch(0)
    list(loader)


PARTS = {
    "Subset": lambda items: Subset(items, [1, 2, 3]),
    "random_split": lambda items: random_split(items, [3, 5])[0],
    "Subset of a Subset": lambda items: Subset(Subset(items, range(8)), [0, 1, 2]),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_of_the_draws_is_advised_about_once(part, named):
    items = make()
    if named:
        items.set_epoch(1)
    loader = DataLoader(part(items), 2)
    with pytest.warns(FlowDataWarning, match=r"a Subset gives \d of the 8 draws") as warned:
        list(loader)
    list(loader)
    assert len(warned) == 1


def test_all_draws_by_a_subset_are_an_epoch():
    items = make()
    for epoch in range(2):
        drawn = torch.cat(list(DataLoader(Subset(items, range(8)), 3))).tolist()
        assert drawn == items.plan.at_epoch(epoch)[:].tolist()


def test_a_part_of_the_draws_that_workers_read_is_advised_about_once_in_all():
    program = (
        "import flowdata\n"
        "from torch.utils.data import DataLoader, Subset\n"
        "part = Subset(flowdata.FlowDataset(range(8), [1.0] * 8), [1, 2, 3])\n"
        "for _ in range(2):\n"
        "    list(DataLoader(part, 3, num_workers=1, multiprocessing_context='fork'))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stderr.count("a Subset gives 3 of the 8 draws") == 1


class Cache(Dataset):
    """Keeps the items that it has asked for once."""

    def __init__(self, items):
        self.items, self.kept = items, {}

    def __len__(self):
        return len(self.items)

    def __getitem__(self, draw):
        if draw not in self.kept:
            self.kept[draw] = self.items[draw]
        return self.kept[draw]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_around_the_draws_is_found_out(workers, shuffle, named):
    items = make()
    loader = DataLoader(
        Cache(items), 3, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0
    )

    def train():
        for epoch in range(8 + 10 * workers):
            if named:
                items.set_epoch(epoch)
            list(loader)

    with pytest.warns(FlowDataWarning, match="keeps the items of an earlier epoch") as warned:
        train()
    assert len(warned) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_of_the_rows_is_none_of_the_draws(workers):
    items = FlowDataset(Cache(range(8)), WEIGHTS)
    loader = DataLoader(items, 3, shuffle=True, num_workers=workers)
    for epoch in range(6):
        drawn = torch.cat(list(loader)).tolist()
        assert sorted(drawn) == sorted(items.plan.at_epoch(epoch))


def test_a_sampler_whose_batches_are_counted_is_no_cache():
    items = make()
    batches = BatchSampler(SequentialSampler(items), 3, drop_last=False)
    assert [len(list(batches)) for _ in range(2)] == [3, 3]
    for _ in range(3):
        list(DataLoader(items, batch_sampler=batches))


@pytest.mark.parametrize("read", [list, lambda items: [items[j] for j in range(8)]])
def test_items_that_no_loader_reads_over_and_over_are_advised_about(read):
    items = make()
    assert read(items) == read(items)
    with pytest.warns(FlowDataWarning, match="by no DataLoader of torch") as warned:
        read(items)
    read(items)
    assert len(warned) == 1


def test_items_are_looked_at_as_often_as_one_likes_where_epochs_go_on():
    items, loader = make(), None
    loader = DataLoader(items, 4)
    for _ in range(4):
        list(loader)
        assert list(items) == items.plan[:].tolist()
    items.set_epoch(0)
    for _ in range(4):
        list(items)


@pytest.mark.parametrize("around", [Cache, lambda items: Subset(items, [1])])
def test_nothing_is_advised_with_guards_off(around):
    flowdata.guards.off()
    try:
        items = make()
        for _ in range(5):
            list(DataLoader(around(items), 3))
            list(items)
    finally:
        flowdata.guards.on()


ARRANGEMENTS = (ByLength(np.arange(1, 9), 2), Strata([0, 1] * 4, 2))


@pytest.mark.parametrize("arrange", ARRANGEMENTS, ids=["ByLength", "Strata"])
@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_a_loader_that_shuffles_batches_apart_is_advised_about_once(loader, arrange):
    items = FlowDataset(range(8), WEIGHTS, arrange=arrange)
    shuffling = loader(items, 2, shuffle=True)
    text = f"those of {type(arrange).__name__} only if its draws are read in order"
    with pytest.warns(FlowDataWarning, match=text) as warned:
        list(shuffling)
    list(shuffling)
    assert len([each for each in warned if each.category is FlowDataWarning]) == 1


def test_a_distributed_sampler_that_shuffles_is_advised_about():
    items = FlowDataset(range(8), WEIGHTS, arrange=ARRANGEMENTS[0])
    items.set_epoch(0)
    list(DataLoader(items, 2, sampler=DistributedSampler(items, 2, 0, shuffle=False)))
    with pytest.warns(FlowDataWarning, match="this loader shuffles them"):
        list(DataLoader(items, 2, sampler=DistributedSampler(items, 2, 0)))


def test_a_loader_that_reads_in_order_or_without_batches_of_ours_is_not_advised():
    items = FlowDataset(range(8), WEIGHTS, arrange=ARRANGEMENTS[0])
    drawn = torch.cat(list(DataLoader(items, 2)))
    assert drawn.tolist() == items.plan.at_epoch(0)[:].tolist()
    list(DataLoader(make(), 2, shuffle=True))
