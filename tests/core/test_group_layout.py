"""Rows laid group by group: shares in every epoch, and with strata in every batch."""

import hashlib

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata import EpochPlan, FlowWeights, Strata
from flowdata.core.group_layout import GroupLayout
from flowdata.core.masses import Masses, count_draws, draw_bits
from flowdata.core.permutation import CHUNK

RANDOM = np.random.default_rng(8)


def weights_of(rows, kinds, *, shares=None, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, kinds, rows)
    labels[:kinds] = np.arange(kinds)
    losses = random.exponential(size=rows) * (1 + labels) + 0.01
    return FlowWeights.from_losses(losses, groups=labels, shares=shares)


def test_a_pass_over_blocks_draws_as_if_the_rows_of_a_group_were_laid_side_by_side():
    weights = weights_of(2 * CHUNK + 77, 5, shares="equal")
    draws = 40_000
    bits = draw_bits(draws)
    masses = Masses(weights, draws << bits, bits)
    layout = GroupLayout(weights.groups, masses, bits)
    offset = 12_345_678_901 % (1 << bits)
    carries = layout.carries(offset)
    found = np.zeros(len(weights), dtype=np.int64)
    order = []
    for start in (CHUNK, 2 * CHUNK, 0):
        rows = RANDOM.permutation(min(CHUNK, len(weights) - start))
        laid, counts = layout.count_draws(start, rows, carries)
        assert sorted(laid.tolist()) == sorted(rows.tolist())
        found[start + laid] = counts
        order += (start + laid).tolist()
    order = np.array(order)[weights.groups[order].argsort(kind="stable")]
    side_by_side, left = count_draws(masses.all(len(weights))[order], offset, bits)
    assert found[order].tolist() == side_by_side.tolist()
    assert left == offset
    assert found.sum() == draws


def test_each_row_is_drawn_as_often_as_expected_and_rows_meet_by_chance():
    weights = weights_of(300, 4, shares="equal")
    epochs, draws = 4000, 100
    expected = weights.expected_counts(draws)
    counts = np.array(
        [EpochPlan(weights, epoch=epoch, epoch_size=draws).counts() for epoch in range(epochs)]
    )
    fraction = expected % 1.0
    sigma = np.sqrt(epochs * fraction * (1 - fraction))
    assert (np.abs(counts.sum(axis=0) - epochs * expected) <= 5.5 * sigma + 1e-9).all()
    # Pairs of one group: each is drawn with the other about as often as by chance.
    rows = np.flatnonzero(weights.groups == 2)[:20]
    seen = counts[:, rows] > np.floor(expected[rows])
    both = (seen[:, :, None] & seen[:, None, :]).mean(axis=0)[np.triu_indices(rows.size, 1)]
    alone = np.outer(fraction[rows], fraction[rows])[np.triu_indices(rows.size, 1)]
    assert both.mean() == pytest.approx(alone.mean(), rel=0.05)


def test_weights_without_groups_or_with_one_are_laid_as_ever():
    weights = weights_of(1000, 1)
    plain = FlowWeights.from_losses(weights.made.losses)
    assert EpochPlan(weights, seed=5)[:].tolist() == EpochPlan(plain, seed=5)[:].tolist()


def test_an_epoch_of_groups_has_the_draws_of_a_record():
    losses = np.random.default_rng(0).exponential(size=5000)
    weights = FlowWeights.from_losses(losses, groups=np.arange(5000) % 7, shares="equal")
    strata = Strata(weights.groups, batch_size=16)
    for arrange, record in ((None, "469fc8d87452e692"), (strata, "a86feefd658b8818")):
        rows = EpochPlan(weights, seed=1, arrange=arrange)[:].astype("<i8")
        assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == record


def test_plans_of_other_epochs_and_copies_draw_the_same():
    weights = weights_of(500, 3, shares="equal")
    plan = EpochPlan(weights, seed=5)
    plan.counts()
    for other in (
        plan.at_epoch(3),
        plan.released().at_epoch(3),
        EpochPlan(weights, seed=5, epoch=3),
    ):
        assert other[:].tolist() == plan.at_epoch(3)[:].tolist()
    assert plan.at_epoch(3)[:].tolist() != plan[:].tolist()


@examples(150)
@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.integers(1, 1500),
    st.integers(1, 6),
    st.integers(0, 2**32),
)
def test_with_strata_every_batch_holds_every_share_within_one_draw(
    kinds, batch_size, draws, levels, seed
):
    random = np.random.default_rng(seed)
    shares = dict(enumerate((random.random(kinds) ** 2 + 0.01).tolist()))
    weights = weights_of(400, kinds, shares=shares, seed=seed)
    strata = Strata(weights.made.groups.codes, batch_size, levels)
    plan = EpochPlan(weights, seed=seed % 97, epoch_size=draws, arrange=strata)
    rows = plan[:]
    expected = weights.expected_counts(draws)
    counts = np.bincount(rows, minlength=400)
    assert (np.abs(counts - expected) < 1 + 1e-9).all()
    batches = draws // batch_size
    groups = weights.made.groups.codes[rows]
    whole = groups[: batches * batch_size].reshape(batches, batch_size)
    held = (whole[:, :, None] == np.arange(kinds)).sum(axis=1)
    if batches and kinds > 1:
        assert (held.max(axis=0) - held.min(axis=0)).max() <= 1
        of_batch = batch_size * np.array(list(shares.values())) / sum(shares.values())
        # Of an epoch, a group has its share up to one draw; so has what is left for the last batch.
        assert (np.abs(held - of_batch) < 1 + 2 / batches + 1e-9).all()


def test_which_rows_share_a_batch_is_left_to_chance_where_shares_are_held():
    labels = np.repeat([0, 1, 2], [20, 20, 24])
    weights = FlowWeights.from_losses(np.ones(64), groups=labels, shares={0: 30, 1: 30, 2: 40})
    strata = Strata(weights.groups, batch_size=8, levels=1)
    together = np.zeros((64, 64))
    for epoch in range(2000):
        plan = EpochPlan(weights, epoch=epoch, epoch_size=32, arrange=strata)
        for batch in plan[:].reshape(4, 8):
            together[np.ix_(batch, batch)] += 1
    # 8,000 batches have 28 pairs each, of 2,016: none is kept apart or put together.
    pairs = together[np.triu_indices(64, 1)]
    assert pairs.mean() == pytest.approx(2000 * 4 * 28 / 2016, rel=0.01)
    assert pairs.min() > 0.35 * pairs.mean()
    assert pairs.max() < 2 * pairs.mean()
