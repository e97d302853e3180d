"""What torchdata asserts of samplers, with FlowSampler and DistributedFlowSampler in their place.

The assertions are those of torchdata's test/stateful_dataloader/test_state_dict.py, test_sampler.py
and test_dataloader.py about samplers, in our words; README.md lists what does not apply.
"""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import BatchSampler

from flowdata import DistributedFlowSampler, FlowSampler

ROWS = 60
WEIGHTS = np.random.default_rng(4).random(ROWS)
EQUAL = np.ones(ROWS)
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def plain():
    return FlowSampler(WEIGHTS, seed=7)


def of_a_rank():
    return DistributedFlowSampler(WEIGHTS, seed=7, num_replicas=2, rank=1)


SAMPLERS = [plain, of_a_rank]


def make_loader(sampler, workers=0, batch_size=7, **options):
    if workers == 0:
        options.pop("persistent_workers", None)
    return StatefulDataLoader(
        range(ROWS), batch_size, sampler=sampler, collate_fn=list, num_workers=workers, **options
    )


def taken(iterator, batches):
    return [next(iterator) for _ in range(batches)]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("persistent", "every"), [(False, 1), (True, 1), (True, 2), (True, 5)])
@pytest.mark.parametrize("make", SAMPLERS)
def test_a_new_loader_with_the_state_of_another_gives_what_that_one_gave_after_it(
    make, persistent, every, workers
):
    options = {"persistent_workers": persistent, "snapshot_every_n_steps": every}
    for size, interrupt in itertools.product([1, 7], [0, 1, 4]):
        loader = make_loader(make(), workers, size, **options)
        batches = iter(loader)
        taken(batches, interrupt)
        state = loader.state_dict()
        expected = list(batches)
        again = make_loader(make(), workers, size, **options)
        again.load_state_dict(state)
        assert list(again) == expected


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("persistent", [False, True])
def test_the_state_before_the_first_batch_leads_to_all_of_them_in_the_same_loader(
    persistent, workers
):
    options = {"persistent_workers": persistent, "snapshot_every_n_steps": 10}
    loader = make_loader(plain(), workers, **options)
    batches = iter(loader)
    state = loader.state_dict()
    expected = list(batches)
    loader.load_state_dict(state)
    assert list(loader) == expected


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("persistent", "every"), [(False, 1), (True, 15)])
def test_a_loader_goes_on_from_its_own_state_and_then_from_an_earlier_one(
    persistent, every, workers
):
    options = {"persistent_workers": persistent, "snapshot_every_n_steps": every}
    loader = make_loader(plain(), workers, **options)
    batches = iter(loader)
    first = loader.state_dict()
    whole = taken(batches, 4)
    loader.load_state_dict(loader.state_dict())
    whole += list(loader)
    loader.load_state_dict(first)
    assert list(loader) == whole


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_the_state_at_the_end_leads_to_the_next_epoch_also_in_a_loader_that_has_begun(
    size, persistent, workers
):
    options = {"persistent_workers": persistent, "snapshot_every_n_steps": 10}
    loader = make_loader(plain(), workers, size, **options)
    list(loader)
    at_its_end = loader.state_dict()
    following = list(loader)
    fresh, begun = (make_loader(plain(), workers, size, **options) for _ in range(2))
    taken(iter(begun), 2)
    for again in (fresh, begun):
        again.load_state_dict(at_its_end)
        assert list(again) == following


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_a_state_of_another_number_of_workers_is_refused(before, after):
    loader = make_loader(plain(), before)
    iter(loader)
    state = loader.state_dict()
    assert state
    again = make_loader(plain(), after)
    again.load_state_dict(state)
    with pytest.raises(AssertionError):
        iter(again)


@pytest.mark.slow
@pytest.mark.parametrize(("every", "interrupt"), [(1, 3), (5, 6)])
def test_a_state_that_is_asked_for_before_each_worker_has_given_a_batch_is_right(every, interrupt):
    options = {"persistent_workers": True, "snapshot_every_n_steps": every}
    loader = make_loader(plain(), 3, 4, **options)
    batches = iter(loader)
    taken(batches, interrupt)
    state = loader.state_dict()
    taken(batches, 2)
    expected = list(batches)
    loader.load_state_dict(state)
    taken(iter(loader), 2)
    again = make_loader(plain(), 3, 4, **options)
    again.load_state_dict(loader.state_dict())
    assert list(again) == expected


@pytest.mark.parametrize("workers", WORKERS)
def test_a_state_that_was_stored_as_json_leads_to_the_rest_of_the_second_epoch(workers):
    loader = make_loader(plain(), workers)
    list(loader)
    batches = iter(loader)
    taken(batches, 4)
    stored = json.dumps(loader.state_dict())
    expected = list(batches)
    again = make_loader(plain(), workers)
    again.load_state_dict(json.loads(stored))
    assert list(again) == expected


@pytest.mark.parametrize("workers", WORKERS)
def test_a_stateful_loader_gives_what_torchs_gives(workers):
    stateful = make_loader(plain(), workers)
    torchs = DataLoader(range(ROWS), 7, sampler=plain(), collate_fn=list, num_workers=workers)
    for _ in range(2):
        assert list(stateful) == list(torchs)


@pytest.mark.parametrize("workers", WORKERS)
def test_bulk_loading_reads_every_draw(workers):
    class Bulk(torch.utils.data.Dataset):
        def __len__(self):
            return ROWS

        def __getitem__(self, rows):
            return torch.as_tensor(rows)

    sampler = FlowSampler(EQUAL)
    batches = BatchSampler(sampler, 4, False)
    loader = StatefulDataLoader(Bulk(), batch_size=None, sampler=batches, num_workers=workers)
    assert set(torch.cat(list(loader)).tolist()) == set(range(ROWS))


def test_a_sampler_is_not_assigned_to_a_loader_that_was_made():
    loader = make_loader(plain())
    for name in ("sampler", "batch_sampler"):
        with pytest.raises(ValueError, match="should not be set"):
            setattr(loader, name, plain())


def test_what_a_loader_takes_instead_of_a_sampler_is_not_given_beside_it():
    batches = BatchSampler(plain(), 3, False)
    for options, text in (
        ({"sampler": plain(), "shuffle": True}, "sampler option is mutually exclusive"),
        ({"batch_sampler": batches, "batch_size": 11}, "batch_sampler option is mutually"),
        ({"batch_sampler": batches, "shuffle": True}, "batch_sampler option is mutually"),
        ({"batch_sampler": batches, "drop_last": True}, "batch_sampler option is mutually"),
    ):
        with pytest.raises(ValueError, match=text):
            StatefulDataLoader(range(ROWS), **options)


@pytest.mark.parametrize(
    ("draws", "repeated"),
    [(ROWS, 0), (ROWS + 1, 1), (ROWS - 1, 0), (2 * ROWS, ROWS)],
)
def test_rows_of_equal_weight_are_drawn_once_before_one_is_drawn_twice(draws, repeated):
    counts = Counter(FlowSampler(EQUAL, epoch_size=draws))
    assert sum(count > 1 for count in counts.values()) == repeated
    assert counts.total() == draws
    assert 0 <= min(counts) <= max(counts) < ROWS
    if draws >= ROWS:
        assert set(counts) == set(range(ROWS))


def test_a_sampler_is_as_long_as_it_was_asked_to_be():
    draws = ROWS + 5
    sampler = FlowSampler(WEIGHTS, epoch_size=draws)
    assert len(sampler) == draws == sum(1 for _ in sampler)
    assert len(make_loader(sampler, batch_size=1)) == draws
    assert len(make_loader(sampler, batch_size=6)) == math.ceil(draws / 6)


@pytest.mark.parametrize("rank", [3, -1])
def test_a_rank_that_there_is_not_is_refused(rank):
    with pytest.raises(ValueError, match="rank must be in"):
        DistributedFlowSampler(EQUAL, num_replicas=3, rank=rank)


def test_ranks_that_drop_their_last_batch_see_no_row_twice():
    seen = []
    for rank in range(4):
        sampler = DistributedFlowSampler(np.ones(9), num_replicas=4, rank=rank)
        loader = StatefulDataLoader(range(9), 9 // 4, sampler=sampler, drop_last=True)
        seen += torch.cat(list(loader)).tolist()
    assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize("options", [{}, {"scheme": "multinomial"}, {"epoch_size": "distinct"}])
def test_the_same_seed_gives_the_same_draws_and_another_gives_others(options):
    for epoch in range(2):
        drawn = []
        for seed in (42, 42, 43):
            sampler = FlowSampler(WEIGHTS, seed=seed, **options)
            sampler.set_epoch(epoch)
            torch.manual_seed(len(drawn))
            drawn.append(list(sampler))
        assert drawn[0] == drawn[1] != drawn[2]


def test_a_sampler_has_the_attributes_of_torchs_distributed_sampler():
    options = {"num_replicas": 10, "rank": 3, "seed": 42, "drop_last": True}
    ours = DistributedFlowSampler(EQUAL, **options)
    torchs = DistributedSampler(range(ROWS), **options)
    for name in ("num_replicas", "rank", "seed", "drop_last", "epoch", "num_samples", "total_size"):
        assert getattr(ours, name) == getattr(torchs, name)
    assert len(ours.dataset) == len(torchs.dataset)
    assert len(ours) == len(torchs)


def test_a_loader_that_was_left_and_a_new_one_make_the_whole_pass():
    loader = make_loader(of_a_rank(), batch_size=5)
    taken(iter(loader), 3)
    resumed = make_loader(of_a_rank(), batch_size=5)
    resumed.load_state_dict(loader.state_dict())
    assert list(resumed) == list(make_loader(of_a_rank(), batch_size=5))[3:]


@pytest.mark.parametrize("position", [-1, -5])
def test_a_state_before_the_beginning_is_refused(position):
    sampler = plain()
    with pytest.raises(ValueError, match="position"):
        sampler.load_state_dict(sampler.state_dict() | {"position": position})


def test_a_loaded_position_is_gone_on_from_by_the_next_iterator():
    sampler = of_a_rank()
    whole = list(sampler)
    sampler.set_epoch(0)
    next(iter(sampler))
    assert sampler.state_dict()["position"] == 2
    sampler.load_state_dict(sampler.state_dict(position=10))
    iterator = iter(sampler)
    assert next(iterator) == whole[5]
    assert sampler.state_dict()["position"] == 12


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_rank_has_its_share_rounded_up_or_down(drop_last):
    share = ROWS / 7
    for rank in range(7):
        sampler = DistributedFlowSampler(EQUAL, num_replicas=7, rank=rank, drop_last=drop_last)
        drawn = list(itertools.chain(*make_loader(sampler)))
        assert len(drawn) == (math.floor(share) if drop_last else math.ceil(share))


def test_a_loader_gives_what_its_sampler_gives_where_the_epoch_is_named():
    sampler = DistributedFlowSampler(EQUAL, num_replicas=1, rank=0)
    sampler.set_epoch(0)
    drawn = list(sampler)
    assert drawn != list(range(ROWS))
    assert sorted(drawn) == list(range(ROWS))
    sampler.set_epoch(0)
    assert list(itertools.chain(*make_loader(sampler, batch_size=32))) == drawn


def test_all_replicas_together_see_every_row_once():
    seen = []
    for rank in range(5):
        sampler = DistributedFlowSampler(EQUAL, num_replicas=5, rank=rank)
        seen += itertools.chain(*make_loader(sampler))
    assert sorted(seen) == list(range(ROWS))
