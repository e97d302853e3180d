import itertools

import numpy as np
import pytest
from scipy import stats

from flowdata.core.permutation import KeyedPermutation, Purpose, random_bits, shuffled

TABLE = 65_536
FALSE_ALARM = 1e-7


def permuted(size, *, seed=0, epoch=0, purpose=Purpose.DRAW_ORDER):
    order = KeyedPermutation(size, seed=seed, epoch=epoch, purpose=purpose)
    return order(np.arange(size))


def is_bijection(values):
    return np.array_equal(np.sort(values), np.arange(values.size))


def test_it_is_a_bijection_for_every_size_up_to_2000():
    assert all(is_bijection(permuted(size)) for size in range(1, 2001))


@pytest.mark.parametrize(
    "size", [TABLE - 1, TABLE, TABLE + 1, 256**2 + 256, 300**2, 300**2 - 1, 300**2 + 1, 99_991]
)
def test_it_is_a_bijection_around_the_end_of_the_table_and_around_squares(size):
    assert is_bijection(permuted(size))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1_000_003, 2**22, 10**7])
def test_it_is_a_bijection_for_large_sizes(size):
    assert is_bijection(permuted(size))


@pytest.mark.parametrize("size", [50, TABLE + 50])
def test_any_positions_give_what_all_positions_give(size):
    order = KeyedPermutation(size, seed=3, epoch=1, purpose=Purpose.DRAW_ORDER)
    everything = order(np.arange(size))
    positions = np.random.default_rng(0).integers(0, size, size=1000)
    assert np.array_equal(order(positions), everything[positions])
    assert order(np.array([], dtype=np.int64)).size == 0
    assert len(order) == size


@pytest.mark.parametrize("size", [1000, 100_000])
def test_seeds_epochs_and_purposes_give_unrelated_orders(size):
    orders = [
        permuted(size, seed=seed, epoch=epoch, purpose=purpose)
        for seed in (0, 1)
        for epoch in (0, 1)
        for purpose in (Purpose.DRAW_ORDER, Purpose.BLOCK_ORDER)
    ]
    for one, two in itertools.combinations(orders, 2):
        # The number of agreements of two random orders is Poisson(1).
        assert np.count_nonzero(one == two) < stats.poisson.isf(FALSE_ALARM, 1)
        assert abs(np.corrcoef(one, two)[0, 1]) * np.sqrt(size) < stats.norm.isf(FALSE_ALARM)


@pytest.mark.parametrize("size", [40_000, 250_000, 1_000_000])
def test_neighbours_in_order_are_independent_of_each_other_and_of_their_place(size):
    bins = 32
    order = permuted(size, seed=5)
    coarse = order * bins // size
    root = int(np.sqrt(size - 1)) + 1
    limit = stats.chi2.isf(FALSE_ALARM, (bins - 1) ** 2)
    for lag in (1, 2, root - 1, root, root + 1):
        pairs = np.bincount(coarse[:-lag] * bins + coarse[lag:], minlength=bins**2)
        expected = (size - lag) / bins**2
        assert ((pairs - expected) ** 2 / expected).sum() < limit
    place = np.arange(size) * bins // size
    pairs = np.bincount(place * bins + coarse, minlength=bins**2)
    assert ((pairs - size / bins**2) ** 2 / (size / bins**2)).sum() < limit
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) * np.sqrt(size) < 6


def test_a_short_shuffle_makes_every_order_equally_often():
    bits = random_bits(0, 0, Purpose.ROW_ORDER)
    rounds = 24_000
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for _ in range(rounds):
        counts[tuple(shuffled(4, bits).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > FALSE_ALARM


def test_a_shuffle_of_the_largest_size_is_an_order():
    assert is_bijection(shuffled(TABLE, random_bits(1, 0, Purpose.ROW_ORDER)))


def test_the_order_is_the_same_in_every_release():
    # A checkpoint of an older release must go on with the draws that were left.
    assert permuted(8, seed=1, epoch=2).tolist() == [0, 3, 1, 6, 7, 4, 2, 5]
    assert permuted(100_000, seed=1, epoch=2)[:4].tolist() == [43445, 47430, 86440, 62548]


@pytest.mark.parametrize("size", [(1 << 32) - 5, 3 << 31, 1 << 40])
def test_positions_beyond_32_bits_are_places_of_their_own(size):
    # As many as cannot be listed: neighbours at both ends, and some from everywhere.
    order = KeyedPermutation(size, seed=3, epoch=0, purpose=Purpose.DRAW_ORDER)
    random = np.random.default_rng(0).integers(0, size, 20_000)
    positions = np.unique(np.concatenate([np.arange(20_000), size - 1 - np.arange(20_000), random]))
    places = order(positions)
    assert places.dtype == np.int64
    assert np.unique(places).size == positions.size
    assert 0 <= places.min() < 0.001 * size
    assert 0.999 * size < places.max() < size
    # Each tenth of the range gets its share, within ten standard deviations.
    shares = np.bincount(places * 10 // size, minlength=10) / positions.size
    assert (np.abs(shares - 0.1) < 10 * np.sqrt(0.09 / positions.size)).all()
