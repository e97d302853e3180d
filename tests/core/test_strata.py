"""Plans whose batches are filled from strata."""

import json
import pickle

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowdata import EpochPlan, FlowSampler, FlowWeights, MismatchError, Strata

laws = examples(150)
rows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(-3, 3)), min_size=1, max_size=80
).filter(lambda pairs: any(weight for weight, _ in pairs))


def parts_of(pairs):
    weights, groups = zip(*pairs, strict=True)
    return np.array(weights), np.array(groups)


@laws
@given(rows, st.integers(1, 300), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**63))
def test_counts_are_those_of_systematic_draws(pairs, draws, batch_size, levels, seed):
    weights, groups = parts_of(pairs)
    strata = Strata(groups, batch_size, levels)
    counts = EpochPlan(weights, epoch_size=draws, seed=seed, strata=strata).counts()
    expected = draws * weights / weights.sum()
    assert counts.sum() == draws
    assert (np.floor(expected - 1e-9) <= counts).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()


@laws
@given(rows, st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**63))
def test_every_batch_has_the_share_of_every_group_up_to_two_draws(pairs, draws, batch, seed):
    weights, groups = parts_of(pairs)
    plan = EpochPlan(weights, epoch_size=draws, seed=seed, strata=Strata(groups, batch))
    whole = draws // batch * batch
    batches = groups[plan[:whole]].reshape(-1, batch)
    for group in np.unique(groups):
        counts = (batches == group).sum(axis=1)
        assert counts.size == 0 or counts.max() - counts.min() <= 2


def test_easy_and_hard_samples_are_spread_too():
    random = np.random.default_rng(0)
    weights = FlowWeights.from_weights(random.random(2000))
    levels = Strata(np.zeros(2000, int), 40, 4).codes(weights)
    assert np.bincount(levels).tolist() == [500] * 4
    assert weights.values[levels == 0].min() >= weights.values[levels == 3].max()
    plan = EpochPlan(weights, strata=Strata(np.zeros(2000, int), 40, 4))
    heavy = (levels[plan[:]] == 0).reshape(-1, 40).sum(axis=1)
    assert heavy.max() - heavy.min() <= 1
    # Independent of strata, it would be about 3.
    assert heavy.std() < 0.6


def test_long_run_counts_follow_the_weights_at_every_place_of_an_epoch():
    weights, groups = np.array([1.0, 2.0, 3.0, 2.5, 0.5, 3.0]), np.array([0, 1, 0, 1, 2, 2])
    plan = EpochPlan(weights, epoch_size=7, seed=3, strata=Strata(groups, 3, levels=2))
    seen = np.zeros((7, 6))
    epochs = 12_000
    for epoch in range(epochs):
        seen[np.arange(7), plan.at_epoch(epoch)[:]] += 1
    expected = np.tile(weights / weights.sum(), (7, 1)) * epochs
    # Each place by itself: places of one epoch depend on each other.
    for place in range(7):
        assert stats.chisquare(seen[place], expected[place]).pvalue > 1e-4


def test_neighbours_of_a_batch_are_any_of_their_strata():
    """Which rows of two groups meet in a batch is independent."""
    groups = np.repeat([0, 1], 4)
    plan = EpochPlan(np.ones(8), seed=1, strata=Strata(groups, 2, levels=1))
    met = np.zeros((4, 4))
    for epoch in range(6000):
        for pair in plan.at_epoch(epoch)[:].reshape(-1, 2):
            first, second = sorted(pair)
            met[first, second - 4] += 1
    assert met.sum() == 24_000
    assert stats.chisquare(met.ravel()).pvalue > 1e-4


def test_batches_are_less_noisy_where_groups_explain_the_gradient():
    random = np.random.default_rng(1)
    groups = random.integers(0, 10, 5000)
    weights = random.random(5000)
    values = groups + 0.5 * random.standard_normal(5000)

    def noise(**options):
        plan = EpochPlan(weights, seed=2, **options)
        return values[plan[:]].reshape(-1, 50).mean(axis=1).var()

    assert noise(strata=Strata(groups, 50)) < 0.1 * noise()


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_ranks_share_batches_and_resume_on_another_number(replicas):
    groups, weights = np.arange(60) % 4, np.linspace(0.1, 1, 60)
    strata = Strata(groups, 12)
    plan = EpochPlan(weights, seed=5, strata=strata)[:].tolist()

    def samplers(count):
        return [
            FlowSampler(weights, seed=5, strata=strata, num_replicas=count, rank=rank)
            for rank in range(count)
        ]

    drawn = [list(sampler) for sampler in samplers(replicas)]
    assert sorted(row for rows in drawn for row in rows) == sorted(plan)
    state = json.loads(json.dumps(samplers(2)[0].state_dict(position=24)))
    left = []
    for sampler in samplers(replicas):
        sampler.load_state_dict(state)
        left += list(sampler)
    assert sorted(left) == sorted(plan[24:])


def test_a_state_of_other_strata_is_refused():
    groups = np.arange(6) % 2
    state = FlowSampler(np.ones(6), strata=Strata(groups, 2)).state_dict()
    for other in (None, Strata(groups, 3), Strata(groups, 2, levels=1), Strata(1 - groups, 2)):
        with pytest.raises(MismatchError, match="strata"):
            FlowSampler(np.ones(6), strata=other).load_state_dict(state)
    FlowSampler(np.ones(6), strata=Strata(groups.tolist(), 2)).load_state_dict(state)


def test_a_plan_is_the_same_after_pickling():
    plan = EpochPlan(np.ones(9), strata=Strata(np.arange(9) % 3, 3), seed=4)
    assert pickle.loads(pickle.dumps(plan))[:].tolist() == plan[:].tolist()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Strata([0.5, 1.0], 2), ValueError, "return_inverse"),
        (lambda: Strata([[0], [1]], 2), ValueError, r"shape \(2, 1\)"),
        (lambda: Strata([0, 1], 0), ValueError, "batch_size must be at least 1"),
        (lambda: Strata([0, 1], 1, levels=0), ValueError, "levels must be at least 1"),
        (
            lambda: EpochPlan([1.0, 1.0, 1.0], strata=Strata([0, 1], 2)),
            MismatchError,
            "strata are of 2 rows, but there are 3 weights",
        ),
        (
            lambda: EpochPlan([1.0, 1.0], scheme="multinomial", strata=Strata([0, 1], 2)),
            ValueError,
            "systematic",
        ),
        (lambda: EpochPlan([1.0, 1.0], strata=[0, 1]), TypeError, r"flowdata\.Strata\(.* got list"),
        (
            lambda: Strata(range(32), 2, levels=1 << 20).codes(
                FlowWeights.from_weights([1.0] * 32)
            ),
            ValueError,
            "too many",
        ),
    ],
)
def test_what_cannot_be_strata_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_epoch_of_a_million_draws_keeps_counts_and_shares():
    random = np.random.default_rng(6)
    weights, groups = random.gamma(2.0, size=70_001), random.integers(0, 7, 70_001)
    draws = (1 << 20) + 37
    plan = EpochPlan(weights, epoch_size=draws, seed=1, strata=Strata(groups, 64))
    expected = draws * weights / weights.sum()
    assert plan.counts().sum() == draws
    assert (np.abs(plan.counts() - expected) < 1 + 1e-9).all()
    batches = groups[plan[: draws // 64 * 64]].reshape(-1, 64)
    for group in range(7):
        counts = (batches == group).sum(axis=1)
        assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_the_type_of_the_groups_is_of_no_matter(dtype):
    groups = np.arange(40) % 3
    strata, other = Strata(groups, 4), Strata(groups.astype(dtype), 4)
    assert other.fingerprint == strata.fingerprint
    # Nor is how they lie in memory.
    assert Strata(np.repeat(groups, 2).astype(dtype)[::2], 4).fingerprint == strata.fingerprint
    plans = [EpochPlan(np.ones(40), seed=2, strata=made)[:].tolist() for made in (strata, other)]
    assert plans[0] == plans[1]


def test_groups_may_be_true_or_false():
    groups = np.arange(10) % 2
    assert Strata(groups == 1, 2).fingerprint == Strata(groups, 2).fingerprint


def test_the_fingerprint_is_the_same_on_every_machine_and_in_every_release():
    # States hold it: with another one, no run with strata could go on.
    assert Strata([0, 1, 1, -2], batch_size=2).fingerprint == "66a88483d0bac2912f4fc7d475bea93f"


@pytest.mark.parametrize(
    "other",
    [
        Strata([0, 1, 2], 2, 5),
        Strata([0, 1, 1, 1], 2, 5),
        Strata([1, 0, 1], 2, 5),
        Strata([0, 1, 1], 3, 5),
        Strata([0, 1, 1], 2, 4),
    ],
)
def test_the_fingerprint_changes_with_groups_batch_size_and_levels(other):
    assert other.fingerprint != Strata([0, 1, 1], 2, 5).fingerprint
