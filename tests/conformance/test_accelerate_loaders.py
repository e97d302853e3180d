"""What accelerate's tests of loaders assert, with FlowSampler or FlowDataset in the loader.

The assertions are those of accelerate's tests/test_data_loader.py, in our words; README.md lists
what does not apply. Where it lists the numbers that a rank gets of ``range(n)``, a rank gets the
rows of the draws of these numbers here.
"""

import gc
import weakref

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import (
    BatchSamplerShard,
    DataLoaderDispatcher,
    DataLoaderShard,
    DataLoaderStateMixin,
    SkipBatchSampler,
    SkipDataLoader,
    prepare_data_loader,
    skip_first_batches,
)
from accelerate.utils import set_seed
from torch.utils.data import BatchSampler, DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import EpochPlan, FlowDataset, FlowSampler

ROWS, SEED = 16, 3
DOORS = ["sampler", "data set"]
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]
KINDS = [DataLoaderShard, DataLoaderDispatcher]
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def weights(rows=ROWS):
    return np.random.default_rng(4).random(rows) + 0.1


def plan(rows=ROWS, epoch=0, seed=SEED):
    return EpochPlan(weights(rows), seed=seed, epoch=epoch)[:].tolist()


def loader(door, kind=DataLoader, rows=ROWS, batch_size=4, seed=SEED, **options):
    if door == "sampler":
        sampler = FlowSampler(weights(rows), seed=seed)
        return kind(range(rows), batch_size=batch_size, sampler=sampler, **options)
    items = FlowDataset(range(rows), weights(rows), seed=seed)
    return kind(items, batch_size=batch_size, **options)


def epoch_source(made, door):
    """Who of a loader knows the epoch."""
    return made.dataset if door == "data set" else made.batch_sampler.sampler


def lists(batches):
    return [batch.tolist() for batch in batches]


def batches_of(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


# Whole rounds of ranks, whole batches, whole samples of a rank, none of these, hardly any.
@pytest.mark.parametrize("rows", [24, 21, 22, 20, 2])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_get_the_draws_whose_numbers_they_get_of_a_range(rows, drop_last, split, even, ranks):
    size = 4 if split else 3
    shards = []
    for sampler in (range(rows), FlowSampler(weights(rows), seed=SEED)):
        shards.append(
            [
                BatchSamplerShard(
                    BatchSampler(sampler, size, drop_last),
                    ranks,
                    rank,
                    split_batches=split,
                    even_batches=even,
                )
                for rank in range(ranks)
            ]
        )
        if not isinstance(sampler, range):
            sampler.set_epoch(0)
    drawn = plan(rows)
    for numbers, draws in zip(*shards, strict=True):
        expected = [[drawn[number] for number in batch] for batch in numbers]
        draws.batch_sampler.sampler.set_epoch(0)
        found = list(draws)
        assert found == expected
        assert split or len(draws) == len(found)
    lengths = [len(list(shard)) for shard in shards[1]]
    assert not even or len(set(lengths)) == 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_batches_of_any_sizes_are_dealt_to_ranks_as_draws(ranks):
    numbers = [[0, 1, 2], [3, 4], [5, 6, 7, 8], [9, 10, 11], [12, 13]]
    items, drawn = FlowDataset(range(ROWS), weights(), seed=SEED), plan()
    items.set_epoch(0)
    for rank in range(ranks):
        shard = BatchSamplerShard(numbers, ranks, rank, even_batches=False)
        found = lists(DataLoader(items, batch_sampler=shard))
        assert found == [[drawn[number] for number in batch] for batch in numbers[rank::ranks]]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_order_comes_from_its_seed_and_from_no_other(ranks, door):
    orders = []
    for seed, torch_seed in ((SEED, 21), (SEED, 42), (SEED + 1, 21)):
        set_seed(torch_seed)
        made = loader(door, batch_size=1, seed=seed)
        epoch_source(made, door).set_epoch(0)
        orders.append(lists(prepare_data_loader(made, num_processes=ranks, process_index=0)))
    assert orders[0] == orders[1] != orders[2]


def test_skipped_batches_are_the_first_of_the_draws():
    sampler = FlowSampler(weights(), seed=SEED)
    sampler.set_epoch(0)
    batches = BatchSampler(sampler, 4, drop_last=False)
    assert list(SkipBatchSampler(batches, 2)) == batches_of(plan(), 4)[2:]


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("door", DOORS)
def test_a_loader_that_skips_gives_the_rest_of_the_draws(door, stateful):
    made = loader(door, SkipDataLoader, skip_batches=2, use_stateful_dataloader=stateful)
    epoch_source(made, door).set_epoch(0)
    assert isinstance(made, StatefulDataLoader if stateful else DataLoader)
    assert lists(made) == batches_of(plan(), 4)[2:]


@pytest.mark.parametrize("door", DOORS)
def test_first_batches_are_skipped_and_the_rest_stay_what_they_are(door):
    made = loader(door)
    epoch_source(made, door).set_epoch(0)
    assert lists(skip_first_batches(made, num_batches=2)) == batches_of(plan(), 4)[2:]


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_the_end_of_each_pass_is_seen(door, kind, stateful):
    made = loader(door, kind, use_stateful_dataloader=stateful)
    for epoch in range(2):
        made.set_epoch(epoch)
        seen = [(made.end_of_dataloader, batch.tolist()) for batch in made]
        assert [end for end, _ in seen] == [False, False, False, True]
        assert [batch for _, batch in seen] == batches_of(plan(epoch=epoch), 4)


@pytest.mark.parametrize("door", DOORS)
def test_the_epoch_that_is_named_reaches_who_draws(door):
    made = Accelerator(cpu=True).prepare_data_loader(loader(door))
    source = epoch_source(made, door)
    assert source.epoch == 0
    made.set_epoch(1)
    assert source.epoch == 1
    assert lists(made) == batches_of(plan(epoch=1), 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_a_loader_that_skips_goes_on_in_the_epoch_that_was_named(door, kind):
    made = loader(door, kind)
    made.set_epoch(1)
    assert made.iteration == 1
    rest = skip_first_batches(made, num_batches=2)
    assert rest.iteration == 1
    assert next(iter(rest)).tolist() == plan(epoch=1)[8:12]


@pytest.mark.parametrize("door", DOORS)
def test_a_loader_is_let_go_with_whoever_has_it(door):
    class Owner:
        def __init__(self):
            self.accelerator = Accelerator(cpu=True)
            self.loader = self.accelerator.prepare_data_loader(loader(door))
            self.loader.set_epoch(0)
            self.batches = iter(self.loader)

    owner = Owner()
    assert next(owner.batches).tolist() == plan()[:4]
    kept = owner.accelerator, owner.loader, owner.loader.gradient_state
    kept = [weakref.ref(thing) for thing in kept]
    source = weakref.ref(epoch_source(owner.loader, door))
    del owner
    gc.collect()
    assert [thing() for thing in (*kept, source)] == [None] * 4


@pytest.mark.parametrize("kind", [*KINDS, SkipDataLoader])
def test_loaders_stay_of_the_classes_that_they_are_of(kind):
    for stateful, base in ((False, DataLoader), (True, StatefulDataLoader)):
        made = loader("data set", kind, use_stateful_dataloader=stateful)
        assert isinstance(made, kind)
        assert isinstance(made, base)
        assert isinstance(made.base_dataloader, base)
        assert kind is SkipDataLoader or isinstance(made, DataLoaderStateMixin)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_a_state_in_the_middle_of_a_pass_leads_to_the_rest_of_it(door, kind, workers):
    options = {"use_stateful_dataloader": True, "num_workers": workers}
    made = loader(door, kind, **options)
    made.set_epoch(0)
    seen = []
    for number, batch in enumerate(made):
        seen.append(batch.tolist())
        if number == 1:
            state = made.state_dict()
    assert seen == batches_of(plan(), 4)
    resumed = loader(door, kind, **options)
    resumed.set_epoch(0)
    resumed.load_state_dict(state)
    assert lists(resumed) == seen[2:]


@pytest.mark.parametrize("workers", WORKERS)
def test_states_are_those_of_torchdata_whichever_loader_takes_them(workers):
    def begin(kind, **options):
        made = loader(
            "data set",
            kind,
            num_workers=workers,
            generator=torch.Generator().manual_seed(42),
            **options,
        )
        made.dataset.set_epoch(0)
        return made

    def take(made):
        batches = []
        for batch in made:
            batches.append(batch.tolist())
            if len(batches) == 2:
                break
        if hasattr(made, "end"):
            made.end()
        return batches, made.state_dict()

    adapted = [
        lambda kind=kind: begin(kind, use_stateful_dataloader=True)
        for kind in (*KINDS, SkipDataLoader)
    ]
    expected, state = take(begin(StatefulDataLoader))
    taken = [take(make()) for make in adapted]
    assert [batches for batches, _ in taken] == [expected] * 3
    assert {key: [found[key] for _, found in taken] for key in state} == {
        key: [value] * 3 for key, value in state.items()
    }
    resumed = begin(StatefulDataLoader)
    resumed.load_state_dict(state)
    rest = lists(resumed)
    for make in adapted:
        made = make()
        made.load_state_dict(state)
        assert lists(made) == rest
