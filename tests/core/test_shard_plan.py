import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowdata import EpochPlan, FlowWeights, InvalidLossError, Strata
from flowdata.core.shard_plan import ShardPlan

laws = examples(100)

some_weights = st.lists(
    st.one_of(st.just(0.0), st.sampled_from([1.0, 2.0, 0.5]), st.floats(1e-12, 1.0)),
    min_size=1,
    max_size=60,
).filter(any)
seeds = st.integers(0, 2**63)
epochs = st.integers(0, 10_000)
draws = st.integers(1, 500)
schemes = st.sampled_from(["systematic", "multinomial"])


@st.composite
def in_shards(draw):
    """Weights, and the bounds of shards over them, some of which are empty."""
    weights = draw(some_weights)
    cuts = draw(st.lists(st.integers(0, len(weights)), max_size=8))
    return weights, np.array(sorted([0, *cuts, len(weights)]))


def equal_shards(rows, shards):
    return np.linspace(0, rows, shards + 1).astype(np.int64)


@laws
@given(in_shards(), draws, seeds, epochs)
def test_each_row_is_drawn_floor_or_ceil_of_its_expected_count(given, size, seed, epoch):
    weights, bounds = given
    counts = ShardPlan(weights, bounds, epoch_size=size, seed=seed, epoch=epoch).counts()
    assert counts.sum() == size
    total = sum(map(Fraction, weights))
    slack = Fraction(1, 2**40)
    for count, weight in zip(counts.tolist(), weights, strict=True):
        expected = size * Fraction(weight) / total
        assert math.floor(expected - slack) <= count <= math.ceil(expected + slack)


@laws
@given(in_shards(), draws, seeds, epochs, schemes)
def test_shards_lie_one_after_another_and_have_the_draws_of_their_rows(
    given, size, seed, epoch, scheme
):
    weights, bounds = given
    plan = ShardPlan(weights, bounds, epoch_size=size, seed=seed, epoch=epoch, scheme=scheme)
    assert sorted(plan.shard_order.tolist()) == list(range(bounds.size - 1))
    assert (plan.first_slots[0], plan.first_slots[-1]) == (0, size)
    for shard, drawn in zip(plan.shard_order.tolist(), np.diff(plan.first_slots), strict=True):
        counts = plan.counts_of(shard)
        assert counts.sum() == drawn
        assert counts.size == bounds[shard + 1] - bounds[shard]
        assert not counts[np.array(weights)[bounds[shard] : bounds[shard + 1]] == 0].any()
        before = plan.draws_before(shard, keep=2)
        assert (before[0], before[-1]) == (0, drawn)
        assert np.diff(before).tolist() == counts.tolist()


@laws
@given(in_shards(), draws, seeds)
def test_shards_get_floor_or_ceil_too(given, size, seed):
    """A shard is a run of the pass, so it has as little noise as a row."""
    weights, bounds = given
    plan = ShardPlan(weights, bounds, epoch_size=size, seed=seed)
    total = sum(map(Fraction, weights))
    for shard in range(bounds.size - 1):
        part = sum(map(Fraction, weights[bounds[shard] : bounds[shard + 1]]), Fraction(0))
        expected, slack = size * part / total, Fraction(1, 2**38)
        drawn = plan.counts_of(shard).sum()
        assert math.floor(expected - slack) <= drawn <= math.ceil(expected + slack)


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_counts_have_the_expectation_of_the_weights(scheme):
    """Over 4,000 epochs every mean is within 6 standard errors of M p."""
    weights = np.random.default_rng(0).gamma(1, size=50)
    plan = ShardPlan(weights, np.array([0, 3, 3, 20, 50]), epoch_size=70, scheme=scheme)
    counts = np.array([plan.at_epoch(epoch).counts() for epoch in range(4000)])
    expected = weights / weights.sum() * 70
    error = counts.std(axis=0) / np.sqrt(len(counts)) + 1e-12
    assert (np.abs(counts.mean(axis=0) - expected) < 6 * error).all()


def test_independent_draws_are_multinomial():
    """Chi-square of the number of draws of pairs of rows, false alarms below 1e-6."""
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    plan = ShardPlan(weights, np.array([0, 1, 4]), epoch_size=2, scheme="multinomial")
    counts = np.array([plan.at_epoch(epoch).counts() for epoch in range(20_000)])
    pairs, found = np.unique(counts, axis=0, return_counts=True)
    chances = stats.multinomial(2, weights / weights.sum()).pmf(pairs)
    assert len(pairs) == 10
    assert stats.chisquare(found, chances * len(counts)).pvalue > 1e-6


def test_no_period_in_a_shard_shows():
    """Rows that alternate between drawn once and not are not drawn together, nor apart."""
    plan = ShardPlan(np.ones(200), equal_shards(200, 4), epoch_size=100)
    counts = np.array([plan.at_epoch(epoch).counts() for epoch in range(3000)])
    for step in (1, 2):
        together = (counts[:, :-step] & counts[:, step:]).mean()
        # Half of 50 rows, without repeats: 25 / 50 x 24 / 49.
        assert abs(together - 0.245) < 0.003


def test_a_shard_of_more_rows_than_a_table_has_is_drawn_as_exactly():
    weights = np.random.default_rng(0).gamma(1, size=150_000)
    plan = ShardPlan(weights, np.array([0, 70_000, 150_000]), epoch_size="full")
    counts = plan.counts()
    expected = weights / weights.sum() * counts.size
    assert counts.sum() == counts.size
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()


def test_a_plan_is_a_function_of_weights_seed_and_epoch():
    weights, bounds = np.random.default_rng(0).gamma(1, size=500), equal_shards(500, 9)
    plan = ShardPlan(weights, bounds, seed=3)
    counts = {epoch: plan.at_epoch(epoch).counts().tolist() for epoch in range(3)}
    assert len({tuple(found) for found in counts.values()}) == 3
    plan.first_slots, plan.draws_before(2, keep=1)
    for other in (pickle.loads(pickle.dumps(plan)), plan.released(), ShardPlan(weights, bounds)):
        for epoch, found in counts.items():
            assert other.at_epoch(epoch, seed=3).counts().tolist() == found
    assert ShardPlan(weights, bounds, seed=4).counts().tolist() != counts[0]
    # Shards come in another order in every epoch.
    assert len({tuple(plan.at_epoch(epoch).shard_order) for epoch in range(5)}) == 5


def test_some_shards_are_kept_and_no_more():
    plan = ShardPlan(np.ones(20), equal_shards(20, 5))
    kept = [plan.draws_before(shard, keep=2) for shard in (0, 1)]
    assert plan.draws_before(0, keep=2) is kept[0]
    plan.draws_before(2, keep=2)
    assert plan.draws_before(0, keep=2) is kept[0]
    assert plan.draws_before(1, keep=2) is not kept[1]


def test_a_stratum_gets_its_share_of_a_shard_within_one_draw():
    random = np.random.default_rng(0)
    groups, weights = random.integers(0, 3, 300), np.ones(300)
    bounds = equal_shards(300, 3)
    plan = ShardPlan(weights, bounds, epoch_size=100, strata=Strata(groups, 10, levels=1))
    for epoch in range(50):
        counts = plan.at_epoch(epoch).counts()
        for shard in range(3):
            part = slice(bounds[shard], bounds[shard + 1])
            drawn = np.bincount(groups[part], counts[part], minlength=3)
            shares = np.bincount(groups[part], minlength=3) / 3
            assert (np.abs(drawn - shares) <= 2 + 1e-9).all()
    assert plan.identity()["strata"]


def test_what_a_plan_of_rows_refuses_is_refused_here():
    bounds = np.array([0, 2])
    with pytest.raises(InvalidLossError, match="all 2 weights are 0"):
        ShardPlan([0.0, 0.0], bounds)
    with pytest.raises(ValueError, match="scheme must be"):
        ShardPlan([1.0, 1.0], bounds, scheme="sistematic")
    with pytest.raises(ValueError, match="seed must be an int >= 0"):
        ShardPlan([1.0, 1.0], bounds, seed=-1)


def test_it_is_told_from_others_as_a_plan_of_rows_is():
    weights = FlowWeights.from_losses([1.0, 0.2, 3.0])
    options = {"epoch_size": 5, "scheme": "multinomial", "alpha": 0.5}
    plan = ShardPlan(weights, np.array([0, 3]), **options)
    assert plan.identity() == EpochPlan(weights, **options).identity()
    assert len(plan) == 5
    assert repr(plan) == ("ShardPlan(draws=5, rows=3, epoch=0, seed=0, scheme='multinomial')")


def test_what_only_a_plan_of_rows_has_is_refused_in_words():
    plan = ShardPlan([1.0, 3.0], np.array([0, 1, 2]))
    for ask in (lambda: plan[0], lambda: plan[:], lambda: list(plan), lambda: 1 in plan):
        with pytest.raises(TypeError, match=r"does not list its draws.*counts\(\) says"):
            ask()
    for shard in (-1, 2):
        with pytest.raises(IndexError, match=f"there is no shard {shard}: there are 2"):
            plan.counts_of(shard)
