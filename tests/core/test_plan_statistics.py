"""Long-run statistics of the draws; false alarms of each test are rarer than one in 10^6."""

import itertools

import numpy as np
import pytest
from scipy import stats

from flowdata import EpochPlan, FlowWeights
from flowdata.core.permutation import CHUNK

FALSE_ALARM = 1e-7
LARGE = 2**24 + 1000


def epochs_of(plan, number):
    """Counts of each row in each epoch, shape (epochs, n)."""
    return np.stack([plan.at_epoch(epoch).counts() for epoch in range(number)])


@pytest.mark.parametrize(
    "weights",
    [
        np.random.default_rng(0).gamma(2.0, size=200),
        10.0 ** np.random.default_rng(1).uniform(-12, 0, size=200),
        np.random.default_rng(2).gamma(2.0, size=200) * (np.arange(200) % 3 == 0),
    ],
    ids=["gamma", "12 orders of magnitude", "two thirds zero"],
)
@pytest.mark.parametrize("size", [200, 57])
def test_mean_counts_over_2000_epochs_are_the_expected_ones(weights, size):
    epochs = 2000
    expected = size * weights / weights.sum()
    counts = epochs_of(EpochPlan(weights, epoch_size=size, seed=3), epochs)
    fraction = expected % 1.0
    error = np.sqrt(fraction * (1 - fraction) / epochs)
    # Where less than one draw is expected in all epochs, its count is Poisson, not normal.
    rare = expected * epochs < 30
    drawn = counts.sum(axis=0)
    assert np.all(np.abs(counts.mean(axis=0) - expected)[~rare] <= 6 * error[~rare] + 1e-9)
    assert np.all(drawn[rare] <= stats.poisson.isf(FALSE_ALARM, expected[rare] * epochs + 1e-12))


def test_multinomial_draws_pass_a_chi_square_test():
    weights = np.random.default_rng(0).gamma(2.0, size=300)
    plan = EpochPlan(weights, scheme="multinomial", epoch_size=1_200_000, seed=1)
    expected = plan.weights.expected_counts(len(plan))
    assert expected.min() > 5
    assert stats.chisquare(plan.counts(), expected).pvalue > FALSE_ALARM


def test_multinomial_draws_are_independent_of_the_draw_before():
    plan = EpochPlan([1.0, 2.0, 3.0, 4.0], scheme="multinomial", epoch_size=400_000, seed=2)
    rows = plan[:]
    pairs = np.bincount(rows[:-1] * 4 + rows[1:], minlength=16).reshape(4, 4)
    assert stats.chi2_contingency(pairs).pvalue > FALSE_ALARM


def test_a_row_is_drawn_anywhere_in_the_epoch():
    weights = np.random.default_rng(0).gamma(2.0, size=1000)
    places = np.concatenate(
        [np.flatnonzero(EpochPlan(weights, seed=1, epoch=e)[:] < 10) for e in range(3000)]
    )
    observed = np.bincount(places * 20 // 1000, minlength=20)
    assert stats.chisquare(observed).pvalue > FALSE_ALARM


def assert_no_period_shows(weights, first, size, epochs):
    """Draws from the rows ``first`` stay within 5 standard deviations of independent draws."""
    share = weights[first].sum() / weights.sum()
    plan = EpochPlan(weights, epoch_size=size, seed=1)
    drawn = np.array([plan.at_epoch(epoch).counts()[first].sum() for epoch in range(epochs)])
    deviation = np.sqrt(size * share * (1 - share))
    assert np.abs(drawn - size * share).max() <= 5 * deviation
    # It varies: an order that is fixed would draw the same number every time.
    assert drawn.std() > 0


@pytest.mark.parametrize("size", [5000, 4999, 3333])
@pytest.mark.parametrize("period", [2, 64])
@pytest.mark.parametrize("levels", ["equal", "halves", "alternating"])
def test_a_period_of_the_file_does_not_show_in_any_epoch(size, period, levels):
    place = np.arange(10_000)
    high = {"equal": place < 0, "halves": place < 5000, "alternating": place % 4 < 2}[levels]
    assert_no_period_shows(np.where(high, 3.0, 1.0), place % period == 0, size, 200)


def test_a_period_does_not_show_where_the_rows_are_many_blocks():
    place = np.arange(5 * CHUNK + 99)
    assert_no_period_shows(np.ones(place.size), place % 2 == 0, place.size // 2 - 1, 200)


@pytest.mark.slow
def test_blocks_of_the_file_do_not_take_turns():
    # In file order, with half a draw a block, an epoch would see every second block only.
    place = np.arange(64 * CHUNK)
    assert_no_period_shows(np.ones(place.size), place // CHUNK % 2 == 0, 32, 100)


def test_epochs_and_seeds_choose_rows_independently():
    plan = EpochPlan(np.ones(4000), epoch_size=2000, seed=1)
    chosen = [plan.at_epoch(e, seed=s).counts() for e, s in ((0, 1), (1, 1), (2, 1), (1, 2))]
    assert all(counts.max() == 1 for counts in chosen)
    for one, two in itertools.combinations(chosen, 2):
        # Rows in both of two random halves: hypergeometric.
        both = stats.hypergeom(4000, 2000, 2000)
        assert both.ppf(FALSE_ALARM) <= np.count_nonzero(one & two) <= both.isf(FALSE_ALARM)


def test_distinct_epochs_hold_each_row_at_most_once_and_as_often_as_its_weight():
    epochs = 300
    weights = FlowWeights.from_losses(np.random.default_rng(0).gamma(2.0, size=2000))
    plan = EpochPlan(weights, epoch_size="distinct", seed=1)
    counts = epochs_of(plan, epochs)
    assert counts.max() == 1
    kept = weights.values.sum() / weights.values.max()
    assert np.all(counts.sum(axis=1) == int(kept))
    # Each row is in an epoch with probability w / max w, but for the part of a draw cut off.
    chance = weights.values / weights.values.max() * (int(kept) / kept)
    error = np.sqrt(chance * (1 - chance) / epochs)
    assert np.all(np.abs(counts.mean(axis=0) - chance) <= 6 * error + 1e-9)


def test_an_epoch_mean_varies_at_most_half_as_much_as_with_independent_draws():
    epochs = 600
    random = np.random.default_rng(0)
    losses = random.gamma(2.0, size=1000)
    weights = FlowWeights.from_losses(losses)
    for values in (losses, np.sin(3 * losses) + random.normal(size=1000)):
        variances = {
            scheme: (epochs_of(EpochPlan(weights, scheme=scheme, seed=1), epochs) @ values).var()
            for scheme in ("systematic", "multinomial")
        }
        assert variances["systematic"] <= 0.5 * variances["multinomial"]


@pytest.mark.slow
def test_the_drawn_mass_of_the_top_half_of_more_than_2_to_the_24_rows_is_exact():
    weights = FlowWeights.from_weights(1.0 + np.arange(LARGE) % 7)
    half = LARGE // 2
    top = weights.relative[half:].sum() / weights.total
    counts = EpochPlan(weights, seed=1).counts()
    assert counts[half:].sum() / LARGE == pytest.approx(top, abs=1e-6)


@pytest.mark.slow
def test_independent_draws_from_more_than_2_to_the_24_rows_follow_the_weights():
    weights = FlowWeights.from_weights(1.0 + np.arange(LARGE) % 7)
    rows = EpochPlan(weights, scheme="multinomial", epoch_size=1_000_000, seed=1)[:]
    kinds = np.bincount(rows % 7, minlength=7)
    assert stats.chisquare(kinds, np.arange(1, 8) * (rows.size / 28)).pvalue > FALSE_ALARM
    parts = np.bincount(rows * 64 // LARGE, minlength=64)
    assert stats.chisquare(parts).pvalue > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_rows_beyond_2_to_the_24_are_drawn_under_their_own_number(scheme):
    chosen = np.array([2**24 + 1, 2**24 + 2, LARGE - 1])
    weights = np.zeros(LARGE)
    weights[chosen] = [1.0, 2.0, 5.0]
    plan = EpochPlan(weights, epoch_size=80_000, seed=1, scheme=scheme)
    assert np.array_equal(np.unique(plan[:]), chosen)
    expected = np.array([10_000, 20_000, 50_000])
    assert np.abs(plan.counts()[chosen] - expected).max() <= (
        0 if scheme == "systematic" else 6 * np.sqrt(expected.max())
    )
