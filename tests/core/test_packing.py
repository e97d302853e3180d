"""Items of given lengths in packs."""

from bisect import bisect_left, insort

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata.core.packing import pack, split_packs

laws = examples(150)
capacities = st.integers(1, 60)


def items_of(draw):
    capacity = draw(capacities)
    return np.array(draw(st.lists(st.integers(1, capacity), min_size=1, max_size=80))), capacity


items = st.composite(items_of)()


def best_fit_decreasing(lengths, capacity):
    """Item by item: the number of packs."""
    rooms = []
    for length in sorted(lengths.tolist(), reverse=True):
        at = bisect_left(rooms, length)
        room = rooms.pop(at) if at < len(rooms) else capacity
        insort(rooms, room - length)
    return len(rooms)


@laws
@given(items)
def test_packs_hold_every_item_once_and_none_holds_more_than_its_capacity(given_items):
    lengths, capacity = given_items
    packs = pack(lengths, capacity)
    assert packs.dtype == np.int64
    assert packs.shape == lengths.shape
    loads = np.bincount(packs, weights=lengths)
    assert loads.min() >= 1
    assert loads.max() <= capacity
    assert loads.size >= -(-lengths.sum() // capacity)


@laws
@given(items)
def test_packs_are_as_few_as_best_fit_decreasing_makes_item_by_item(given_items):
    lengths, capacity = given_items
    assert int(pack(lengths, capacity).max()) + 1 <= best_fit_decreasing(lengths, capacity)


@laws
@given(items, st.randoms(use_true_random=False))
def test_the_order_of_items_changes_no_sizes_of_packs(given_items, random):
    lengths, capacity = given_items
    order = np.array(random.sample(range(lengths.size), lengths.size))
    loads = [
        sorted(np.bincount(pack(some, capacity), weights=some))
        for some in (lengths, lengths[order])
    ]
    assert loads[0] == loads[1]


def lengths_like(kind, size):
    """Lengths of five kinds of data, and what a pack has room for."""
    random = np.random.default_rng(17)
    if kind == "long tail":
        return np.clip(np.exp(random.normal(5, 1, size)), 1, 4096).astype(int), 4096
    if kind == "short and long":
        short, long = random.normal(60, 20, size), random.normal(700, 150, size)
        return np.clip(np.where(random.random(size) < 0.8, short, long), 1, 2048).astype(int), 2048
    if kind == "uniform":
        return random.integers(1, 2049, size), 4096
    if kind == "few lengths":
        shares = [0.3, 0.3, 0.2, 0.1, 0.07, 0.03]
        return random.choice([32, 64, 128, 200, 512, 1000], size, p=shares), 4096
    prompt = random.integers(10, 40, size)
    return np.clip(random.gamma(1.5, 180, size) + prompt, 1, 2048).astype(int), 2048


KINDS = ("long tail", "short and long", "uniform", "few lengths", "chat")


@pytest.mark.parametrize("kind", KINDS)
def test_packs_of_real_looking_lengths_are_full(kind):
    lengths, capacity = lengths_like(kind, 20_000)
    packs = int(pack(lengths, capacity).max()) + 1
    assert lengths.sum() / (packs * capacity) >= 0.995


def test_lengths_that_are_all_different_are_packed_without_loss():
    lengths = np.random.default_rng(3).permutation(np.arange(1, 200_001)) * 5
    packs = pack(lengths, 1_000_000)
    loads = np.bincount(packs, weights=lengths)
    assert loads.max() <= 1_000_000
    assert loads.mean() >= 0.995 * 1_000_000


def test_rounding_never_makes_an_item_longer_than_a_pack():
    lengths = np.arange(2**20 - 20_000, 2**20 + 2)
    packs = pack(lengths, 2**20 + 1)
    assert np.array_equal(np.sort(packs), np.arange(lengths.size))


@pytest.mark.parametrize(
    ("lengths", "capacity", "expected"),
    [
        ([], 5, 0),
        ([5], 5, 1),
        ([5, 5, 5], 5, 3),
        ([1] * 10, 1, 10),
        ([1] * 10, 10**6, 1),
        ([3, 3, 2, 2, 2], 6, 2),
        ([10**15, 1, 10**15], 10**15 + 1, 2),
    ],
)
def test_extremes(lengths, capacity, expected):
    packs = pack(np.array(lengths, dtype=np.int64), capacity)
    assert np.unique(packs).tolist() == list(range(expected))


@pytest.mark.parametrize("lengths", [[0, 1], [1, 8], [-3]])
def test_items_that_fit_no_pack_are_refused_with_their_lengths(lengths):
    with pytest.raises(ValueError, match=r"lengths 1 to 7 can be packed, got "):
        pack(np.array(lengths), 7)


@laws
@given(items, st.data())
def test_packs_are_split_into_as_many_as_are_asked_for(given_items, data):
    lengths, capacity = given_items
    packs = pack(lengths, capacity)
    count = data.draw(st.integers(int(packs.max()) + 1, lengths.size))
    split = split_packs(packs, count)
    assert np.array_equal(np.unique(split), np.arange(count))
    # What was apart stays apart.
    origins = {(new, old) for new, old in zip(split.tolist(), packs.tolist(), strict=True)}
    assert len(origins) == count


def test_the_packs_of_the_most_items_are_split_in_halves():
    packs = np.array([0] * 6 + [1] * 4 + [2] * 2)
    assert np.bincount(split_packs(packs, 5)).tolist() == [3, 2, 2, 3, 2]
