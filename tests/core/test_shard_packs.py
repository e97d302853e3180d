import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowdata import FlowWeights, LossTable, MismatchError, Strata
from flowdata.core import shard_packs
from flowdata.core.clusters import cluster_shards
from flowdata.core.shard_packs import ShardPacks
from flowdata.core.shard_plan import ShardPlan

CAPACITY = 20


@pytest.fixture
def small_clusters(monkeypatch):
    """Clusters of two packs, so that few rows make many."""
    monkeypatch.setattr(shard_packs, "_LEAST_PACKS", 2)


@st.composite
def epochs_of_shards(draw):
    """A plan over shards, some of them empty, and the lengths of its rows."""
    # Long rows only, short ones only, and both: packs of one draw, of many, and of all kinds.
    shortest, longest = draw(st.sampled_from([(1, CAPACITY), (1, 4), (11, CAPACITY), (9, 11)]))
    rows = draw(st.integers(1, 80))
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    lengths = random.integers(shortest, longest + 1, rows)
    weights = random.choice([0.0, 1.0, 2.0, 0.3], rows, p=[0.2, 0.4, 0.2, 0.2])
    weights[random.integers(rows)] = 5.0
    cuts = draw(st.lists(st.integers(0, rows), max_size=8))
    plan = ShardPlan(
        weights,
        np.array(sorted([0, *cuts, rows])),
        epoch_size=draw(st.integers(1, 150)),
        seed=draw(st.integers(0, 2**63)),
        epoch=draw(st.integers(0, 10_000)),
    )
    return plan, lengths


def rows_of(packs):
    return packs.of(np.arange(len(packs)))


def lengths_of(size, longest, seed=0):
    """Lengths as texts have them."""
    return np.random.default_rng(seed).lognormal(4, 1, size).astype(int).clip(1, longest)


def make_packs(rows=3000, shards=6, max_length=512, **options):
    random = np.random.default_rng(1)
    weights = np.exp(-random.gamma(2, size=rows))
    bounds = np.linspace(0, rows, shards + 1).astype(np.int64)
    return ShardPacks(
        ShardPlan(weights, bounds), lengths_of(rows, max_length), max_length, **options
    )


@pytest.mark.usefixtures("small_clusters")
@examples(80)
@given(epochs_of_shards(), st.integers(0, 30))
def test_each_draw_is_in_one_pack_and_every_epoch_has_as_many(given_epoch, later):
    plan, lengths = given_epoch
    packs = ShardPacks(plan, lengths, CAPACITY)
    for epoch in range(plan.epoch, plan.epoch + later, max(later // 4, 1)):
        found = packs.at_epoch(epoch)
        assert len(found) == len(packs)
        rows = rows_of(found)
        assert len(rows) == len(packs)
        assert all(pack.size for pack in rows)
        assert max(int(lengths[pack].sum()) for pack in rows) <= CAPACITY
        counts = np.bincount(np.concatenate(rows), minlength=lengths.size)
        assert counts.tolist() == found.plan.counts().tolist()
        assert counts.sum() == len(plan)


@pytest.mark.usefixtures("small_clusters")
@examples(50)
@given(epochs_of_shards())
def test_rows_are_drawn_floor_or_ceil_of_their_expected_count(given_epoch):
    plan, lengths = given_epoch
    counts = ShardPacks(plan, lengths, CAPACITY).plan.counts().tolist()
    weights = plan.weights.relative.tolist()
    total, slack = sum(map(Fraction, weights)), Fraction(1, 2**38)
    for count, weight in zip(counts, weights, strict=True):
        expected = len(plan) * Fraction(weight) / total
        assert math.floor(expected - slack) <= count <= math.ceil(expected + slack)


@pytest.mark.usefixtures("small_clusters")
@examples(50)
@given(epochs_of_shards(), st.integers(1, 5))
def test_the_number_of_packs_is_a_multiple_of_the_batch_size(given_epoch, batch_size):
    plan, lengths = given_epoch
    least = len(ShardPacks(plan, lengths, CAPACITY))
    expected = -(-least // batch_size) * batch_size
    if expected > len(plan):
        with pytest.raises(ValueError, match="draw more, or take a smaller batch_size"):
            ShardPacks(plan, lengths, CAPACITY, batch_size=batch_size)
        return
    packs = ShardPacks(plan, lengths, CAPACITY, batch_size=batch_size)
    assert len(packs) == expected
    found = rows_of(packs)
    assert all(pack.size for pack in found)
    assert np.bincount(np.concatenate(found)).sum() == len(plan)


@pytest.mark.usefixtures("small_clusters")
@examples(50)
@given(epochs_of_shards())
def test_no_draw_is_longer_than_its_width_in_any_epoch(given_epoch):
    plan, lengths = given_epoch
    packs = ShardPacks(plan, lengths, CAPACITY).plan
    for epoch in range(5):
        laid = packs.at_epoch(epoch)
        for cluster in range(laid.bounds.size - 1):
            widths, rows = laid.widths(cluster), laid.draws_in_order(cluster)
            assert rows.size in (widths.size, widths.size - 1)
            assert (lengths[rows] <= widths[: rows.size]).all()
            if rows.size:
                # What widths waste is less than one of the longest rows.
                assert widths[1 : rows.size].sum() <= lengths[rows][:-1].sum()


def test_rows_have_the_expectation_of_the_weights(small_clusters):
    """Over 1,500 epochs every mean is within 6 standard errors of M p."""
    weights = np.random.default_rng(0).gamma(1, size=50)
    plan = ShardPlan(weights, np.array([0, 3, 3, 20, 50]), epoch_size=70)
    packs = ShardPacks(plan, lengths_of(50, 300), 300).plan
    counts = np.array([packs.at_epoch(epoch).counts() for epoch in range(1500)])
    expected = weights / weights.sum() * 70
    error = counts.std(axis=0) / np.sqrt(len(counts)) + 1e-12
    assert (np.abs(counts.mean(axis=0) - expected) < 6 * error).all()


@pytest.mark.parametrize(
    ("lengths", "least"),
    [
        (lambda random, size: random.lognormal(4, 1, size), 0.99),
        (lambda random, size: random.exponential(300, size), 0.99),
        (lambda random, size: random.pareto(1.2, size) * 50, 0.99),
        # Mostly pairs, of which each has to find the other.
        (lambda random, size: random.uniform(1, 2048, size), 0.96),
        # A row of 1,900 leaves room for three of 40, of which there are not as many.
        (lambda random, size: np.where(random.random(size) < 0.5, 40, 1900), 0.94),
    ],
)
def test_packs_of_large_shards_are_nearly_full(lengths, least):
    random = np.random.default_rng(0)
    found = lengths(random, 40_000).astype(int).clip(1, 2048)
    plan = ShardPlan(np.exp(-random.gamma(2, size=40_000)), np.arange(0, 40_001, 5000))
    packs = ShardPacks(plan, found, 2048)
    assert packs.fill > least
    tokens = packs.at_epoch(3).plan.counts() @ found
    assert tokens / len(packs) / 2048 == pytest.approx(packs.fill, abs=1e-3)


def test_packs_are_a_function_of_seed_and_epoch(small_clusters):
    packs = make_packs()
    again = pickle.loads(pickle.dumps(packs))
    assert [pack.tolist() for pack in rows_of(again)] == [pack.tolist() for pack in rows_of(packs)]
    later = packs.at_epoch(1)
    assert later.at_epoch(0).identity() == packs.identity() == later.identity()
    assert [pack.tolist() for pack in rows_of(later)] != [pack.tolist() for pack in rows_of(packs)]
    numbers = np.array([7, 0, 100, 99, 8])
    some = [pack.tolist() for pack in packs.of(numbers)]
    assert some == [rows_of(packs)[number].tolist() for number in numbers]
    other = packs.at_epoch(0, seed=9)
    assert (other.seed, len(other)) == (9, len(packs))
    assert [pack.tolist() for pack in rows_of(other)] != [pack.tolist() for pack in rows_of(packs)]


def test_rows_meet_others_in_other_epochs():
    """Pairs of rows in a pack are others in the next epoch, but for those that are drawn often."""
    packs = make_packs()

    def pairs(epoch):
        found = (np.unique(pack).tolist() for pack in rows_of(packs.at_epoch(epoch)))
        return {(a, b) for pack in found for a in pack for b in pack if a < b}

    first, second = pairs(0), pairs(1)
    assert len(first & second) < 0.15 * len(first)


def test_draws_of_one_row_seldom_share_a_pack():
    """1.6 % of the draws of a pack, where 2.0 % did if they stayed where the pass has them."""
    random = np.random.default_rng(0)
    lengths = random.lognormal(5, 0.8, 20_000).astype(int).clip(1, 1024)
    weights = np.exp(-random.gamma(2, size=20_000))
    packs = ShardPacks(ShardPlan(weights, np.arange(0, 20_001, 500)), lengths, 1024)
    repeated = [1 - np.unique(pack).size / pack.size for pack in rows_of(packs)]
    assert np.mean(repeated) < 0.018


def test_the_rows_of_a_pack_are_neighbours():
    packs = make_packs(rows=20_000, shards=10)
    clusters = packs.plan.bounds
    assert clusters.size > 10
    for pack in rows_of(packs):
        assert np.unique(np.searchsorted(clusters, pack, side="right")).size == 1


def test_another_identity_for_all_that_decides_packs(small_clusters):
    first = make_packs()
    lengths, plan = lengths_of(3000, 512), ShardPlan(np.ones(3000), first.bounds)
    others = [
        make_packs(max_length=513),
        make_packs(shards=5),
        make_packs(batch_size=2),
        make_packs(too_long="truncate"),
        make_packs(least_draws=200),
        ShardPacks(plan, lengths, 512),
        ShardPacks(plan, lengths[::-1], 512),
    ]
    found = [str(packs.identity()) for packs in [first, *others]]
    assert len(set(found)) == len(found)
    assert str(make_packs().identity()) == found[0]


def test_rows_that_are_too_long_are_refused_or_cut():
    lengths = [5, 30, 8, 40, 0]
    plan = ShardPlan([1.0, 1.0, 1.0, 0.0, 0.0], np.array([0, 2, 5]))
    with pytest.raises(ValueError, match=r"packs hold 20 tokens: 1 of 5 .*row 1: 30.*truncate"):
        ShardPacks(plan, lengths, CAPACITY)
    cut = ShardPacks(plan, lengths, CAPACITY, too_long="truncate")
    assert cut.lengths.tolist() == [5, 20, 8, 20, 0]
    assert not np.isin(np.concatenate(rows_of(cut)), [3, 4]).any()


@pytest.mark.parametrize(
    ("lengths", "options", "error", "message"),
    [
        ([1, 2], {}, MismatchError, "lengths are of 2 rows, but there are 3 weights"),
        ([1, 2, 0], {}, ValueError, "length of at least 1"),
        ([1, 2, 2.5], {}, ValueError, "whole numbers"),
        ([1, 2, 3], {"max_length": 0}, ValueError, "max_length must be an int >= 1, got 0"),
        ([1, 2, 3], {"max_length": 1 << 24}, ValueError, "below 2.24 tokens, got 16,777,216"),
        ([1, 2, 3], {"batch_size": 0}, ValueError, "batch_size must be an int >= 1, got 0"),
        ([1, 2, 3], {"too_long": "cut"}, ValueError, "too_long must be .* got 'cut'"),
        ([1, 2, 3], {"batch_size": 4}, ValueError, "3 draws makes 1 packs.* batch_size=4"),
    ],
)
def test_what_cannot_be_packed_is_refused(lengths, options, error, message):
    plan = ShardPlan([1.0, 1.0, 1.0], np.array([0, 3]))
    with pytest.raises(error, match=message):
        ShardPacks(plan, lengths, **{"max_length": 6} | options)


def test_plans_that_cannot_be_packed_are_refused():
    weights, bounds = np.ones(4), np.array([0, 4])
    with pytest.raises(ValueError, match="need scheme="):
        ShardPacks(ShardPlan(weights, bounds, scheme="multinomial"), weights, 6)
    plan = ShardPlan(weights, bounds, arrange=Strata([0, 0, 1, 1], batch_size=2))
    with pytest.raises(ValueError, match="by length alone"):
        ShardPacks(plan, weights, 6)


def test_lengths_may_be_those_of_a_table():
    table = LossTable.from_losses([0.1, 0.2, 0.3], lengths=[3, 4, 5])
    plan = ShardPlan(FlowWeights.from_weights([1.0, 1.0, 1.0]), np.array([0, 3]))
    packs, given_lengths = ShardPacks(plan, table, 7), ShardPacks(plan, [3, 4, 5], 7)
    assert packs.identity() == given_lengths.identity()
    with pytest.raises(ValueError, match="no lengths"):
        ShardPacks(plan, LossTable.from_losses([0.1, 0.2, 0.3]), 7)


@examples(50)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.3, 1.0, 9.0]), max_size=30), min_size=1, max_size=9),
    st.sampled_from([0.1, 2.0, 7.5]),
)
def test_clusters_are_whole_shards_or_runs_of_one_section(shards, least):
    sizes = np.array([size for shard in shards for size in shard])
    bounds = np.cumsum([0, *map(len, shards)])
    found = cluster_shards(lambda first, last: sizes[first:last], bounds, least)
    assert (found.bounds[0], found.bounds[-1]) == (0, sizes.size)
    assert (np.diff(found.bounds) >= (sizes.size > 0)).all()
    assert (found.sections[0], found.sections[-1]) == (0, found.bounds.size - 1)
    assert (np.diff(found.sections) > 0).all()
    borders = found.bounds[found.sections]
    assert np.isin(borders, bounds).all()
    inside = [sizes[a:b].sum() for a, b in itertools.pairwise(borders)]
    if len(inside) > 1:
        assert min(inside) >= least - 1e-9
    # As many clusters as a section has room for, but for rows that are larger than one.
    for size, clusters in zip(inside, np.diff(found.sections), strict=True):
        assert clusters <= max(int(size // least + 1e-9), 1)


def test_packs_of_long_and_of_short_rows_lie_in_any_order():
    """Of 300 packs, a rank correlation beyond 4.9 standard errors has a chance below 1e-6."""
    packs = make_packs(rows=3000, shards=1, max_length=512)
    sizes = [pack.size for pack in rows_of(packs)]
    assert len(sizes) > 300
    assert abs(stats.spearmanr(sizes, range(len(sizes))).statistic) < 4.9 / len(sizes) ** 0.5
