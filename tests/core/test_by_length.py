"""Plans whose batches are of rows that are about as long."""

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowdata import (
    ByLength,
    DistributedFlowSampler,
    EpochPlan,
    FlowDataset,
    FlowSampler,
    MismatchError,
    Strata,
)
from flowdata.core.arrangement import resolve
from flowdata.core.shard_plan import ShardPlan

laws = examples(150)
SCHEMES = ("systematic", "multinomial")
rows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(1, 9)), min_size=1, max_size=80
).filter(lambda pairs: any(weight for weight, _ in pairs))


def parts_of(pairs):
    weights, lengths = zip(*pairs, strict=True)
    return np.array(weights), np.array(lengths)


def long_tail(rows, seed=0):
    return np.clip(np.exp(np.random.default_rng(seed).normal(5, 1, rows)), 1, 4096).astype(int)


@laws
@given(
    rows,
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 6),
    st.sampled_from(SCHEMES),
    st.sampled_from([1.0, 0.5]),
    st.integers(0, 2**63),
)
def test_windows_have_the_draws_that_they_had_without(
    pairs, draws, batch_size, window, scheme, alpha, seed
):
    weights, lengths = parts_of(pairs)
    options = {"epoch_size": draws, "seed": seed, "scheme": scheme, "alpha": alpha}
    plain = EpochPlan(weights, **options)
    plan = EpochPlan(weights, arrange=ByLength(lengths, batch_size, window), **options)
    assert np.array_equal(plan.counts(), plain.counts())
    size = batch_size * window
    for start in range(0, draws // batch_size * batch_size, size):
        stop = min(start + size, draws)
        inside, before = plan[start:stop], plain[start:stop]
        if start + size > draws:
            # The incomplete batch is of the last window.
            inside, before = plan[start:], plain[start:]
        assert np.array_equal(np.sort(inside), np.sort(before))


@laws
@given(rows, st.integers(1, 300), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**63))
def test_batches_of_a_window_are_runs_of_its_draws_in_order_of_length(
    pairs, draws, batch_size, window, seed
):
    weights, lengths = parts_of(pairs)
    by_length = ByLength(lengths, batch_size, window)
    plan = EpochPlan(weights, epoch_size=draws, seed=seed, arrange=by_length)
    drawn = lengths[plan[:]]
    size = batch_size * window
    for start in range(0, draws, size):
        # The incomplete batch is of any place of its window.
        whole = drawn[start : min(start + size, draws // batch_size * batch_size)]
        batches = whole.reshape(-1, batch_size)
        spans = sorted((batch.min(), batch.max()) for batch in batches)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))


def padding(lengths, batch_size):
    """The share of tokens of whole batches that is padding."""
    batches = lengths[: lengths.size // batch_size * batch_size].reshape(-1, batch_size)
    return 1 - batches.sum() / (batches.max(axis=1).sum() * batch_size)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [20_000, 20_007])
def test_little_of_batches_is_padding(scheme, size):
    lengths = long_tail(20_000)
    weights = np.exp(-np.random.default_rng(2).gamma(2, 0.5, 20_000))
    options = {"epoch_size": size, "scheme": scheme}
    plain = lengths[EpochPlan(weights, **options)[:]]
    arranged = lengths[EpochPlan(weights, arrange=ByLength(lengths, 16), **options)[:]]
    windows = np.split(plain, range(800, size, 800))
    in_order = np.concatenate([np.sort(window) for window in windows])
    least = padding(in_order, 16)
    assert abs(padding(arranged, 16) - least) < 0.02
    assert padding(plain, 16) > least + 0.4


def test_batches_come_in_an_order_that_has_nothing_to_do_with_their_length():
    """Rank correlations over 60 epochs: |z| < 6, false alarm below 1e-8."""
    lengths = long_tail(1600)
    by_length = ByLength(lengths, 16, window=100)
    plan = EpochPlan(np.ones(1600), arrange=by_length)
    places, lags = [], []
    for epoch in range(60):
        batches = lengths[plan.at_epoch(epoch)[:]].reshape(100, 16).mean(axis=1)
        places.append(stats.spearmanr(np.arange(100), batches).statistic)
        lags.append(stats.spearmanr(batches[:-1], batches[1:]).statistic)
    # A rank correlation of m random values has mean 0, or -1 / m between neighbours.
    for found, mean in ((places, 0.0), (lags, -1 / 100)):
        assert abs(np.mean(found) - mean) * np.sqrt(60 * 99) < 6


def test_ranks_that_share_a_batch_are_alike():
    """The draw of each rank is as long: |z| < 6 for 4 ranks, false alarm below 1e-8."""
    lengths = np.random.default_rng(0).permutation(4000) + 1
    plan = EpochPlan(np.ones(4000), arrange=ByLength(lengths, 8))
    drawn = np.concatenate([lengths[plan.at_epoch(epoch)[:]] for epoch in range(10)])
    batches = np.argsort(drawn.reshape(-1, 8), axis=1, kind="stable").argsort(axis=1)
    for rank in range(4):
        own = batches[:, rank::4].sum(axis=1)
        assert abs(own.mean() - 7) < 6 * own.std() / np.sqrt(own.size)


def test_the_incomplete_batch_is_the_last_and_has_each_draw_as_often():
    """So no row is drawn less than others where a loader leaves that batch out."""
    lengths = np.arange(1, 104)
    plan = EpochPlan(np.ones(103), arrange=ByLength(lengths, 10, window=20))
    last = np.sort([lengths[plan.at_epoch(epoch)[100:]] for epoch in range(400)])
    # Neighbours, or some of the longest and some of the shortest.
    assert set(np.ptp(last, axis=1).tolist()) <= {2, 102}
    seen = np.bincount(last[:, 0][np.ptp(last, axis=1) == 2], minlength=102)[1:]
    # Of 103 places 101 are of neighbours, with 3.9 of 400 in expectation: false alarm below 1e-6.
    assert stats.chisquare(seen).pvalue > 1e-6
    assert 0 < np.count_nonzero(np.ptp(last, axis=1) == 102) < 30


def test_neighbours_of_a_batch_are_any_of_their_length():
    plan = EpochPlan(np.ones(8), seed=1, arrange=ByLength(np.repeat([3, 9], 4), 2))
    met = np.zeros((4, 4))
    for epoch in range(3000):
        for pair in plan.at_epoch(epoch)[:].reshape(-1, 2):
            if pair.max() < 4:
                met[pair.min(), pair.max()] += 1
    # Each of 6 pairs in a third of the epochs: false alarm below 1e-6.
    assert stats.chisquare(met[np.triu_indices(4, 1)]).pvalue > 1e-7


def test_an_epoch_is_a_pure_function_and_any_part_of_it_the_same():
    lengths = long_tail(300)
    plan = EpochPlan(np.ones(300), seed=4, arrange=ByLength(lengths, 8, window=3))
    first = plan.at_epoch(5)[:]
    assert np.array_equal(plan.at_epoch(7).at_epoch(5)[:], first)
    assert np.array_equal(plan.at_epoch(5)[40:90], first[40:90])
    assert np.array_equal(pickle.loads(pickle.dumps(plan)).at_epoch(5)[:], first)
    assert not np.array_equal(plan.at_epoch(6)[:], first)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ranks_share_an_epoch_and_a_state_goes_on_with_another_number_of_them(scheme):
    by_length = ByLength(long_tail(96), 12, window=2)
    options = {"arrange": by_length, "scheme": scheme, "seed": 3}
    whole = EpochPlan(np.ones(96), **options)[:]
    samplers = [FlowSampler(np.ones(96), num_replicas=3, rank=rank, **options) for rank in range(3)]
    dealt = np.array([list(sampler) for sampler in samplers]).T.reshape(-1)
    assert np.array_equal(dealt, whole)
    sampler = FlowSampler(np.ones(96), **options)
    running = iter(sampler)
    [next(running) for _ in range(36)]
    state = json.loads(json.dumps(sampler.state_dict()))
    left = []
    for rank in range(2):
        other = DistributedFlowSampler(np.ones(96), num_replicas=2, rank=rank, **options)
        other.load_state_dict(state)
        left.append(list(other))
    assert np.array_equal(np.array(left).T.reshape(-1), whole[36:])


def test_a_data_set_serves_the_batches_in_order():
    lengths = long_tail(60)
    by_length = ByLength(lengths, 6)
    items = FlowDataset(range(60), np.ones(60), arrange=by_length, seed=2)
    plan = EpochPlan(np.ones(60), arrange=by_length, seed=2)
    assert items[:] == plan[:].tolist()


def test_states_belong_to_their_arrangement():
    lengths = long_tail(60)
    makes = [
        lambda: FlowSampler(np.ones(60)),
        lambda: FlowSampler(np.ones(60), arrange=ByLength(lengths, 6)),
        lambda: FlowSampler(np.ones(60), arrange=ByLength(lengths, 5)),
        lambda: FlowSampler(np.ones(60), arrange=ByLength(lengths, 6, window=3)),
        lambda: FlowSampler(np.ones(60), arrange=ByLength(lengths[::-1], 6)),
        lambda: FlowSampler(np.ones(60), arrange=Strata(lengths % 3, 6)),
    ]
    for one, make in enumerate(makes):
        state = make().state_dict()
        for other, load in enumerate(makes):
            if one == other:
                load().load_state_dict(state)
            else:
                with pytest.raises(MismatchError):
                    load().load_state_dict(state)


def test_a_plan_without_lengths_says_nothing_of_them():
    """Saved states of earlier versions stay as they are."""
    assert sorted(EpochPlan([1.0]).identity()) == [
        "alpha",
        "epoch_size",
        "scheme",
        "strata",
        "weights",
    ]
    by_length = EpochPlan([1.0], arrange=ByLength([3], 1))
    assert by_length.identity()["by_length"] == by_length.by_length.fingerprint


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: ByLength([1, 2], 0), ValueError, "batch_size must be an int >= 1, got 0"),
        (lambda: ByLength([1, 2], 2.5), ValueError, "batch_size must be an int >= 1, got 2.5"),
        (lambda: ByLength([1, 2], 2, window=0), ValueError, "window must be an int >= 1, got 0"),
        (lambda: ByLength([1, 2.5], 2), ValueError, r"whole numbers: .*\(row 1: 2.5\)"),
        (lambda: ByLength([[1, 2]], 2), ValueError, "one for each row"),
        (lambda: plan_by([1, 2]), MismatchError, "2 rows, but there are 3 weights"),
        (lambda: plan_by([1, 0, 3]), ValueError, r"at least 1: 1 of 3 .*\(row 1: 0\)"),
    ],
)
def test_what_cannot_be_arranged_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def plan_by(lengths):
    return EpochPlan(np.ones(3), arrange=ByLength(lengths, 2))


def test_lengths_that_change_later_change_nothing():
    lengths = np.array([3, 1, 2])
    by_length = ByLength(lengths, 1)
    before = by_length.fingerprint
    lengths[:] = 9
    assert ByLength([3, 1, 2], 1).fingerprint == before
    assert np.asarray(by_length.lengths).tolist() == [3, 1, 2]


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("longest", [1, 10**15])
def test_extremes(rows, longest):
    lengths = np.linspace(1, longest, rows).astype(np.int64)
    for draws in (1, 6, 500):
        plan = EpochPlan(np.ones(rows), epoch_size=draws, arrange=ByLength(lengths, 3, window=2))
        assert np.bincount(plan[:], minlength=rows).tolist() == plan.counts().tolist()


def test_huge_lengths_are_still_sorted():
    lengths = np.random.default_rng(0).integers(1, 2**62, 400)
    plan = EpochPlan(np.ones(400), arrange=ByLength(lengths, 4, window=25))
    for window in lengths[plan[:]].reshape(4, 25, 4):
        spans = sorted((int(batch.min()), int(batch.max())) for batch in window)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))


DOORS = {
    "EpochPlan": lambda **options: EpochPlan(np.ones(6), **options),
    "ShardPlan": lambda **options: ShardPlan(np.ones(6), np.array([0, 6]), **options),
    "FlowSampler": lambda **options: FlowSampler(np.ones(6), **options).plan,
    "DistributedFlowSampler": lambda **options: (
        DistributedFlowSampler(np.ones(6), num_replicas=1, rank=0, **options).plan
    ),
    "FlowDataset": lambda **options: FlowDataset(range(6), np.ones(6), **options).plan,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_every_door_takes_an_arrangement_and_strata_by_its_old_name(door):
    strata, by_length = Strata([0, 1] * 3, 2), ByLength([1, 2] * 3, 2)
    assert door(strata=strata).identity() == door(arrange=strata).identity()
    assert door(strata=strata).arrange is strata
    assert door(arrange=by_length).arrange is by_length
    assert door().arrange is None
    with pytest.raises(ValueError, match="another name for arrange="):
        door(arrange=strata, strata=strata)
    with pytest.raises(TypeError, match=r"arrange must be .*, got list"):
        door(arrange=[1, 2])
    with pytest.raises(TypeError, match=r"strata must be .*, got ByLength"):
        door(strata=by_length)
    with pytest.raises(ValueError, match="independent draws have none"):
        door(arrange=strata, scheme="multinomial")


def test_no_arrangement_is_resolved_to_none():
    assert resolve(None, None) is None
