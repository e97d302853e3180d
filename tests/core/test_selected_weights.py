"""FlowWeights.select: weights of some rows, with all that is known of these rows."""

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata import EpochPlan, FlowWeights, InvalidLossError, LossTable, Monitor

ROWS = 60
RANDOM = np.random.default_rng(8)
LOSSES = RANDOM.exponential(size=ROWS).astype(np.float32)
GROUPS = np.array(["a", "b", "c"])[RANDOM.integers(0, 3, ROWS)]
LENGTHS = RANDOM.integers(1, 90, ROWS).astype(np.int32)
TABLE = LossTable.from_losses(LOSSES, lengths=LENGTHS)
KINDS = {
    "flow": lambda: TABLE.weights(),
    "cold": lambda: TABLE.weights(temperature=1e-3),
    "function": lambda: TABLE.weights(function=lambda losses, tau: losses < tau),
    "groups": lambda: TABLE.weights(groups=GROUPS),
    "shares": lambda: TABLE.weights(groups=GROUPS, shares={"a": 1, "b": 5, "c": 0.5}),
    "scaled": lambda: TABLE.weights(groups=GROUPS, normalize="mean"),
    "product": lambda: TABLE.weights(temperature=1e-3).times(RANDOM.random(ROWS)),
    "power": lambda: TABLE.weights().power(0.3),
    "given": lambda: FlowWeights.from_weights(LOSSES),
}


@examples(120)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=2 * ROWS),
)
def test_some_rows_keep_their_weights_to_each_other_and_what_is_known_of_them(kind, rows):
    weights = KINDS[kind]()
    logarithms = weights.made.relative.logarithms()[rows]
    if np.isneginf(logarithms).all():
        with pytest.raises(InvalidLossError, match="0: no row can be drawn"):
            weights.select(rows)
        return
    some = weights.select(rows)
    expected = np.exp(logarithms - logarithms.max())
    np.testing.assert_allclose(some.relative, expected, rtol=1e-9, atol=1e-150)
    assert some.normalize == weights.normalize
    if weights.normalize is None:
        assert some.log_max == pytest.approx(weights.log_max + logarithms.max(), rel=1e-12)
    else:
        assert some.values.mean() == pytest.approx(1.0)
    if weights.made.losses is not None:
        np.testing.assert_array_equal(some.made.losses, LOSSES[rows])
        np.testing.assert_array_equal(some.made.lengths, LENGTHS[rows])
    assert (some.groups is None) == (weights.groups is None)
    if some.groups is not None:
        assert [some.group_names[code] for code in some.groups] == GROUPS[rows].tolist()
        assert set(some.group_names) == set(GROUPS[rows])
    plan = EpochPlan(some, epoch_size=7)
    assert plan.counts().sum() == 7
    assert plan.counts()[some.relative == 0.0].sum() == 0


def test_each_epoch_of_some_rows_holds_the_share_of_each_group():
    weights = TABLE.weights(groups=GROUPS, shares="equal")
    rows = np.flatnonzero(LENGTHS > 20)
    some, own = weights.select(rows), GROUPS[rows]
    assert some.has_groups
    for epoch in range(20):
        counts = EpochPlan(some, epoch_size=100, epoch=epoch).counts()
        for name in "abc":
            share = some.relative[own == name].sum() / some.total
            assert abs(counts[own == name].sum() - 100 * share) < 1.0


def test_without_groups_they_are_drawn_as_the_numbers_themselves_would_be():
    weights, rows = TABLE.weights(), [5, 3, 3, 40]
    numbers = FlowWeights.from_weights(weights[np.array(rows)])
    assert weights.select(rows).fingerprint == numbers.fingerprint


def test_a_mask_a_slice_and_a_monitor_of_some_rows():
    weights = TABLE.weights(groups=GROUPS)
    mask = LOSSES < 1.0
    some = weights.select(mask)
    np.testing.assert_array_equal(some.relative, weights.select(np.flatnonzero(mask)).relative)
    assert weights.select(slice(0, 7)).groups.size == 7
    assert "temperature of" in str(TABLE.weights().select(mask).summary())
    monitor = Monitor(some)
    assert monitor.groups.names == ("a", "b", "c")
    monitor.log_losses([0, 1], [0.5, 0.5])
    assert monitor.figures()
    with pytest.raises(IndexError, match="no row 60: there are 60"):
        weights.select([60])
