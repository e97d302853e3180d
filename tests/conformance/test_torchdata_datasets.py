"""What torchdata's tests of states assert of map-style data sets, with FlowDataset around these.

The assertions are those of torchdata's test/stateful_dataloader/test_state_dict.py about map-style
data sets, in our words; README.md lists what does not apply.
"""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import FlowDataset

ROWS, SEED = 30, 1
WEIGHTS = np.random.default_rng(2).random(ROWS)
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


class Table(Dataset):
    """Rows of several columns; with `shuffle`, any row, by torch's global random numbers."""

    def __init__(self, shuffle, has_state=True):
        self.shuffle, self.has_state = shuffle, has_state
        self.rows = [{"id": row, "text": f"row {row}", "list": [row, -row]} for row in range(ROWS)]

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return self.rows[torch.randint(ROWS, (1,)).item() if self.shuffle else row]

    def state_dict(self):
        return {"torch": torch.get_rng_state()} if self.has_state else {}

    def load_state_dict(self, state):
        if self.has_state:
            torch.set_rng_state(state["torch"])


class Counted(Sampler):
    """A sampler whose iterator has a state."""

    def __iter__(self):
        return CountedIterator()

    def __len__(self):
        return ROWS


class CountedIterator:
    def __init__(self):
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == ROWS:
            raise StopIteration
        self.next += 1
        return self.next - 1

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


SAMPLERS = {
    "shuffled": lambda items: RandomSampler(items, generator=torch.Generator().manual_seed(13)),
    "with a state": lambda items: Counted(),
    "in order": lambda items: None,
}


def drawn_from(shuffle=False, **options):
    items = FlowDataset(Table(shuffle, **options), WEIGHTS, seed=SEED)
    # The state of an epoch that nobody named is refused.
    items.set_epoch(0)
    return items


def make(items, workers, sampler="in order", **options):
    persistent = options.pop("persistent_workers", False) and workers > 0
    return StatefulDataLoader(
        items,
        sampler=SAMPLERS[sampler](items),
        num_workers=workers,
        collate_fn=list,
        persistent_workers=persistent,
        **options,
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("taken", [0, 1, 4])
@pytest.mark.parametrize("batch_size", [7, 1])
@pytest.mark.parametrize("workers", WORKERS)
def test_a_new_loader_goes_on_where_the_state_of_another_was_taken(
    workers, batch_size, taken, sampler
):
    loader = make(drawn_from(), workers, sampler, batch_size=batch_size)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = loader.state_dict()
    left = list(batches)
    resumed = make(drawn_from(), workers, sampler, batch_size=batch_size)
    resumed.load_state_dict(state)
    assert list(resumed) == left


@pytest.mark.slow
@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize("taken", [0, 1, 4])
def test_states_that_are_taken_every_few_steps_lead_to_the_same(taken, every):
    options = {"persistent_workers": True, "snapshot_every_n_steps": every, "batch_size": 3}
    loader = make(drawn_from(), 2, "shuffled", **options)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = loader.state_dict()
    left = list(batches)
    resumed = make(drawn_from(), 2, "shuffled", **options)
    resumed.load_state_dict(state)
    assert list(resumed) == left


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("taken", [0, 1, 4])
@pytest.mark.parametrize("workers", WORKERS)
def test_the_random_state_of_the_data_set_goes_on_too(workers, taken, sampler):
    loader = make(drawn_from(shuffle=True), workers, sampler, batch_size=3)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = loader.state_dict()
    left = list(batches)
    resumed = make(drawn_from(shuffle=True), workers, sampler, batch_size=3)
    resumed.load_state_dict(state)
    torch.manual_seed(99)
    assert list(resumed) == left


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("workers", WORKERS)
def test_a_state_before_the_first_batch_leads_to_all_of_them_again(workers, persistent, shuffle):
    loader = StatefulDataLoader(
        drawn_from(shuffle=not shuffle),
        shuffle=shuffle,
        num_workers=workers,
        collate_fn=list,
        persistent_workers=persistent and workers > 0,
        snapshot_every_n_steps=10,
    )
    batches = iter(loader)
    state = loader.state_dict()
    expected = list(batches)
    loader.load_state_dict(state)
    assert list(loader) == expected


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("every", [1, 15])
def test_an_interrupted_pass_is_the_same_again_from_its_first_state(persistent, workers, every):
    loader = StatefulDataLoader(
        drawn_from(shuffle=True),
        shuffle=True,
        num_workers=workers,
        collate_fn=list,
        snapshot_every_n_steps=every,
        persistent_workers=persistent and workers > 0,
    )
    batches = iter(loader)
    first = loader.state_dict()
    seen = [next(batches) for _ in range(4)]
    middle = loader.state_dict()
    loader.load_state_dict(middle)
    seen.extend(loader)
    loader.load_state_dict(first)
    assert list(loader) == seen


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("persistent", [True, False])
def test_a_state_at_the_end_of_a_pass_leads_to_the_next_pass(persistent, batch_size, shuffle):
    def begin():
        return StatefulDataLoader(
            drawn_from(shuffle=not shuffle),
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=2,
            collate_fn=lambda items: items,
            snapshot_every_n_steps=10,
            persistent_workers=persistent,
            generator=torch.Generator().manual_seed(15),
        )

    loader = begin()
    list(loader)
    state = loader.state_dict()
    following = list(loader)
    resumed = begin()
    resumed.load_state_dict(state)
    assert list(resumed) == following


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_a_state_of_another_number_of_workers_is_refused_by_torchdata(before, after):
    loader = make(drawn_from(), before)
    iter(loader)
    state = loader.state_dict()
    assert state
    resumed = make(drawn_from(), after)
    resumed.load_state_dict(state)
    with pytest.raises(AssertionError):
        iter(resumed)


def test_a_stateful_and_a_plain_loader_of_one_data_set_draw_the_same():
    items = drawn_from()
    stateful = list(make(items, 2))
    assert list(DataLoader(items, num_workers=2, collate_fn=list)) == stateful


@pytest.mark.parametrize("workers", WORKERS)
def test_a_state_goes_through_json(workers):
    loader = make(drawn_from(has_state=False), workers, "with a state")
    list(loader)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    text = json.dumps(loader.state_dict())
    left = list(batches)
    resumed = make(drawn_from(has_state=False), workers, "with a state")
    resumed.load_state_dict(json.loads(text))
    assert list(resumed) == left
