"""Packs over many epochs: how often each row is in one, and which rows meet."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from test_pack_plan import counts_of
from test_packing import KINDS, lengths_like

from flowdata import EpochPlan, PackPlan, Strata


@pytest.mark.parametrize("options", [{}, {"arrange": "strata"}, {"scheme": "multinomial"}])
def test_long_run_counts_follow_the_weights_in_whole_epochs_and_in_any_pack(options):
    """Over 2,000 epochs, |z| < 6 for each of 8 rows: false alarm below 1e-7."""
    weights = np.array([1.0, 2.0, 3.0, 2.5, 0.5, 3.0, 1.0, 0.7])
    lengths = np.array([3, 3, 5, 2, 8, 1, 4, 4])
    if "arrange" in options:
        options = {"arrange": Strata(np.arange(8) % 2, 2, levels=1)}
    packs = PackPlan(EpochPlan(weights, epoch_size=11, seed=7, **options), lengths, 9)
    epochs = [packs.at_epoch(epoch) for epoch in range(2000)]
    expected = packs.plan.weights.expected_counts(11)
    for counts, mean in (
        ([epoch.plan.counts() for epoch in epochs], expected),
        ([counts_of(epoch[:1], 8) for epoch in epochs], expected / len(packs)),
        ([counts_of(epoch[-1:], 8) for epoch in epochs], expected / len(packs)),
    ):
        error = np.std(counts, axis=0) / len(epochs) ** 0.5
        assert (np.abs(np.mean(counts, axis=0) - mean) < 6 * error + 1e-9).all()


def test_a_place_of_an_epoch_has_each_row_as_often_as_the_weights_say():
    """Over 2,500 epochs, one row in each pack: chi-square, false alarm below 1e-6."""
    weights = np.array([1.0, 2.0, 3.0, 2.5, 0.5, 3.0])
    packs = PackPlan(EpochPlan(weights, epoch_size=7, seed=3), np.full(6, 5), 5)
    seen = np.zeros((7, 6))
    epochs = 2500
    for epoch in range(epochs):
        seen[np.arange(7), np.concatenate(packs.at_epoch(epoch)[:])] += 1
    for place in range(7):
        expected = weights / weights.sum() * epochs
        assert stats.chisquare(seen[place], expected).pvalue > 1e-7


def shares_of_pairs(packs, epochs):
    """Of two draws of one row, and of any two draws, the share that is in one pack."""
    same = together = draws = 0
    for epoch in epochs:
        drawn = packs.at_epoch(epoch)
        for pack in drawn[:]:
            counts = np.unique(pack, return_counts=True)[1]
            same += (counts * (counts - 1)).sum()
            together += pack.size * (pack.size - 1)
        counts = drawn.plan.counts()
        draws += (counts * (counts - 1)).sum()
    return same / draws, together / (len(epochs) * len(packs.plan) * (len(packs.plan) - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_one_row_do_not_stay_together(kind):
    """They are neighbours in the pass; where they stayed so, 40 to 80 % would share a pack."""
    lengths, capacity = lengths_like(kind, 2000)
    weights = np.exp(-np.random.default_rng(1).gamma(2, 0.5, 2000))
    packs = PackPlan(EpochPlan(weights), lengths, capacity)
    same, any_two = shares_of_pairs(packs, range(3))
    assert same < 0.12 + any_two


def test_draws_of_a_heavy_row_are_spread_over_packs():
    lengths, capacity = lengths_like("chat", 400)
    lengths[7] = 101
    weights = np.ones(400)
    weights[7] = 20.0
    packs = PackPlan(EpochPlan(weights), lengths, capacity)
    times = [np.count_nonzero(pack == 7) for pack in packs[:]]
    assert sum(times) >= 18
    assert max(times) <= 9


def test_rows_meet_others_in_every_epoch():
    lengths, capacity = lengths_like("chat", 2000)
    packs = PackPlan(EpochPlan(np.ones(2000)), lengths, capacity)
    met = []
    for epoch in range(4):
        met.append(
            {
                (one, other)
                for pack in packs.at_epoch(epoch)[:]
                for one in pack.tolist()
                for other in pack.tolist()
                if one < other
            }
        )
    again = [len(one & other) / len(one) for one, other in pairwise(met)]
    assert np.mean(again) < 0.25
