"""FlowDataset whose epoch nobody names: every pass of a loader is an epoch of its own."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import EpochPlan, FlowDataset

ROWS, SEED = 40, 4
WEIGHTS = np.random.default_rng(3).random(ROWS)
SINGLE = {"num_workers": 0}
FORKED = {"num_workers": 2, "multiprocessing_context": "fork"}
SPAWNED = {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True}
LOADERS = [
    pytest.param(DataLoader, SINGLE, id="one process"),
    pytest.param(DataLoader, FORKED, id="workers"),
    pytest.param(DataLoader, FORKED | {"persistent_workers": True}, id="persistent workers"),
    pytest.param(
        DataLoader, FORKED | {"prefetch_factor": 1}, id="little prefetching", marks=pytest.mark.slow
    ),
    pytest.param(DataLoader, SPAWNED, id="spawned workers", marks=pytest.mark.slow),
    pytest.param(StatefulDataLoader, SINGLE, id="torchdata"),
    pytest.param(StatefulDataLoader, FORKED, id="torchdata, workers", marks=pytest.mark.slow),
]
QUICK = [*LOADERS[:3], LOADERS[5]]
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(autouse=True)
def fixed_shuffles():
    torch.manual_seed(0)


def make():
    return FlowDataset(range(ROWS), WEIGHTS, seed=SEED)


def planned(epoch):
    return sorted(EpochPlan(WEIGHTS, seed=SEED, epoch=epoch)[:].tolist())


def epoch_of(batches):
    """The epoch whose plan these batches are, all of them."""
    drawn = sorted(torch.cat(list(batches)).tolist())
    return next((epoch for epoch in range(30) if drawn == planned(epoch)), drawn)


def may_be_of(batches, epoch):
    return Counter(torch.cat(list(batches)).tolist()) <= Counter(planned(epoch))


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize(("kind", "options"), LOADERS)
def test_loops_at_once_draw_an_epoch_each(kind, options, shuffle):
    items = make()
    loaders = [kind(items, 3, shuffle=shuffle, **options) for _ in range(2)]
    for turn in range(2):
        pairs = list(zip(*loaders, strict=True))
        epochs = {epoch_of(batches) for batches in zip(*pairs, strict=True)}
        assert epochs == {2 * turn, 2 * turn + 1}


@pytest.mark.parametrize(("kind", "options"), QUICK)
def test_a_loop_inside_a_loop_changes_nothing_of_the_outer_one(kind, options):
    items = make()
    outer, inner = (kind(items, 8, shuffle=True, **options) for _ in range(2))
    seen, inside = [], []
    for batch in outer:
        seen.append(batch)
        inside.append(epoch_of(inner))
    assert epoch_of(seen) == 0
    assert inside == [1, 2, 3, 4, 5]
    assert epoch_of(outer) == 6


@pytest.mark.parametrize(
    ("kind", "options"), [it for it in QUICK if "persistent_workers" not in it.values[1]]
)
def test_one_loader_twice_at_once_draws_two_epochs(kind, options):
    loader = kind(make(), 3, shuffle=True, **options)
    if kind is StatefulDataLoader:
        # torchdata has one pass of a loader at a time.
        assert [epoch_of(loader), epoch_of(loader)] == [0, 1]
        return
    first, second = zip(*zip(loader, loader, strict=True), strict=True)
    assert {epoch_of(first), epoch_of(second)} == {0, 1}


@pytest.mark.parametrize("left_after", [1, 3])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize(("kind", "options"), LOADERS)
def test_a_pass_that_is_left_is_an_epoch_of_its_own(kind, options, shuffle, left_after):
    loader = kind(make(), 3, shuffle=shuffle, **options)
    for epoch in (0, 2):
        assert may_be_of(itertools.islice(loader, left_after), epoch)
        if kind is StatefulDataLoader:
            # Without this torchdata goes on where the pass was left.
            loader = kind(loader.dataset, 3, shuffle=shuffle, **options)
        assert epoch_of(loader) == epoch + 1


@pytest.mark.parametrize(("kind", "options"), LOADERS[:4])
def test_passes_with_the_same_seed_of_torch_are_different_epochs(kind, options):
    items = make()
    loader = kind(items, 3, shuffle=True, **options)
    for epoch in range(3):
        torch.manual_seed(7)
        assert epoch_of(loader) == epoch
    for epoch in range(3, 6):
        generator = torch.Generator().manual_seed(1)
        assert epoch_of(kind(items, 3, generator=generator, **options)) == epoch


@pytest.mark.parametrize(("kind", "options"), QUICK)
def test_a_draw_that_is_asked_for_twice_in_a_pass_stays_in_its_epoch(kind, options):
    items = make()
    twice = ConcatDataset([items, items])
    for epoch in range(3):
        drawn = torch.cat(list(kind(twice, 5, shuffle=True, **options))).tolist()
        assert sorted(drawn) == sorted(2 * planned(epoch))
    sampler = RandomSampler(items, replacement=True, num_samples=3 * ROWS)
    assert may_be_of([torch.cat(list(kind(items, 5, sampler=sampler, **options))).unique()], 3)


def test_loaders_with_and_without_workers_take_turns():
    items = make()
    loaders = [DataLoader(items, 7, shuffle=True, **options) for options in (SINGLE, FORKED)] * 2
    assert [epoch_of(loader) for loader in loaders] == [0, 1, 2, 3]


def test_fewer_batches_than_workers_are_no_difference():
    loader = DataLoader(make(), ROWS, num_workers=2, persistent_workers=True)
    assert [epoch_of(loader) for _ in range(4)] == [0, 1, 2, 3]


class Around(Dataset):
    """Reads items one by one, and looks at the first again."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, draw):
        self.items[0]
        return self.items[draw]


class Streamed(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        return (self.items[draw] for draw in range(worker, len(self.items), workers))


@pytest.mark.parametrize("around", [Around, Streamed])
@pytest.mark.parametrize(("kind", "options"), QUICK)
def test_passes_are_told_apart_through_what_stands_around_the_data_set(kind, options, around):
    loaders = [kind(around(items), 4, **options) for items in [make()] * 2]
    for turn in range(2):
        passes = [list(loader) for loader in loaders]
        assert [epoch_of(batches) for batches in passes] == [2 * turn, 2 * turn + 1]


def test_many_more_passes_than_are_remembered_do_not_stop_an_old_one():
    items = make()
    old = iter(DataLoader(items, 20))
    seen = [next(old)]
    passes = DataLoader(items, 20)
    for _ in range(150):
        list(passes)
    assert epoch_of([*seen, *old]) == 0
    assert items.epoch == 150


class Endless(DataLoader):
    """A loader with one pass in all, as timm's MultiEpochsDataLoader."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.sizes = len(self.batch_sampler)
        vars(self)["batch_sampler"] = Repeated(self.batch_sampler)
        self.going = super().__iter__()

    def __iter__(self):
        return itertools.islice(self.going, self.sizes)


class Repeated:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        while True:
            yield from self.batches


@pytest.mark.parametrize("around", [lambda items: items, lambda items: ConcatDataset([items])])
@pytest.mark.parametrize("drop_last", [False, True])
# What two workers have marked of shuffled draws when the next epoch begins is a matter of luck.
@pytest.mark.parametrize(
    ("workers", "shuffle"), [(0, False), (0, True), (2, False)], ids=["0", "0, shuffled", "2"]
)
def test_a_pass_that_never_ends_goes_from_epoch_to_epoch(workers, shuffle, drop_last, around):
    loader = Endless(around(make()), 3, shuffle=shuffle, drop_last=drop_last, num_workers=workers)
    for epoch in range(5):
        batches = list(loader)
        assert may_be_of(batches, epoch)
        assert drop_last or epoch_of(batches) == epoch
