"""Weights group by group, each group with a temperature and a share of its own."""

import pickle

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata import (
    EpochPlan,
    FlowDataError,
    FlowSampler,
    FlowWeights,
    InvalidLossError,
    LossTable,
    MismatchError,
    Strata,
)
from flowdata.core.groups import Groups

RANDOM = np.random.default_rng(3)
ROWS = 3000
MEDIANS = {"web": 2.8, "code": 0.4, "chat": 0.9}
SOURCE = np.array(list(MEDIANS))[RANDOM.integers(0, 3, ROWS)]
LOSSES = (np.array([MEDIANS[name] for name in SOURCE]) * RANDOM.gamma(4.0, 1 / 3.67, ROWS)).astype(
    np.float32
)
LENGTHS = (RANDOM.integers(1, 200, ROWS) * np.where(SOURCE == "web", 5, 1)).astype(np.int32)
TABLE = LossTable.from_losses(LOSSES, lengths=LENGTHS)
SIZES = {name: int((name == SOURCE).sum()) for name in MEDIANS}


def shares_of(weights, sizes=1.0, groups=SOURCE):
    """What each group has of all draws in expectation, counted in sizes."""
    drawn = weights.relative * sizes
    return {str(name): drawn[groups == name].sum() / drawn.sum() for name in np.unique(groups)}


def test_one_median_starves_a_source_and_equal_shares_give_it_a_third():
    plain = shares_of(TABLE.weights())
    assert plain == pytest.approx({"code": 0.56, "chat": 0.36, "web": 0.08}, abs=0.03)
    assert shares_of(TABLE.weights(groups=SOURCE, shares="equal")) == pytest.approx(
        dict.fromkeys(MEDIANS, 1 / 3)
    )


def test_within_a_group_weights_are_those_of_the_group_alone():
    for options in ({}, {"function": lambda losses, tau: 1 / (tau + losses)}, {"temperature": 0.5}):
        weights = TABLE.weights(groups=SOURCE, **options)
        for name in MEDIANS:
            alone = FlowWeights.from_losses(LOSSES[name == SOURCE], **options)
            found = weights.relative[name == SOURCE]
            np.testing.assert_allclose(found / found.max(), alone.relative, rtol=1e-12)
        flow = TABLE.weights(groups=SOURCE, shares="flow", **options)
        np.testing.assert_allclose(
            flow.values[SOURCE == "web"],
            FlowWeights.from_losses(LOSSES[SOURCE == "web"], **options).values,
            rtol=1e-12,
        )
        # Shares move weight from one group to another.
        assert weights.mean == pytest.approx(flow.mean, rel=1e-12)


TOKENS = {name: int(LENGTHS[name == SOURCE].sum()) for name in MEDIANS}
WANTED = {
    "default": (None, SIZES),
    "rows": ("rows", SIZES),
    "tokens": ("tokens", TOKENS),
    "equal": ("equal", dict.fromkeys(MEDIANS, 1)),
    "a dict": ({"web": 1, "code": 0.5, "chat": 3.5}, {"web": 1, "code": 0.5, "chat": 3.5}),
    "percent": ({"web": 20, "code": 30, "chat": 50}, {"web": 20, "code": 30, "chat": 50}),
    "huge": ({"web": 1e308, "code": 1e308, "chat": 1e308}, dict.fromkeys(MEDIANS, 1)),
    "none of one": ({"web": 0, "code": 1, "chat": 1}, {"web": 0, "code": 1, "chat": 1}),
}


@pytest.mark.parametrize("by", ["rows", "tokens"])
@pytest.mark.parametrize("case", WANTED)
def test_shares_are_those_asked_for(case, by):
    shares, wanted = WANTED[case]
    if case == "default" and by == "tokens":
        wanted = TOKENS
    weights = TABLE.weights(groups=SOURCE, shares=shares, by=by)
    found = shares_of(weights, LENGTHS if by == "tokens" else 1.0)
    total = sum(wanted.values())
    assert found == pytest.approx({name: each / total for name, each in wanted.items()}, rel=1e-12)


@pytest.mark.parametrize("by", ["rows", "tokens"])
@pytest.mark.parametrize("draws", [ROWS, 700])
def test_over_200_epochs_shares_are_drawn_and_in_each_within_a_draw(by, draws):
    shares = {"web": 0.5, "code": 0.2, "chat": 0.3}
    weights = TABLE.weights(groups=SOURCE, shares=shares, by=by)
    expected = weights.expected_counts(draws)
    of_group = np.array([shares_of(weights)[name] for name in weights.group_names])
    tokens = np.zeros(3)
    sampler = FlowSampler(weights, epoch_size=draws, seed=4)
    for epoch in range(200):
        counts = EpochPlan(weights, epoch=epoch, seed=4, epoch_size=draws).counts()
        assert ((counts == np.floor(expected)) | (counts == np.ceil(expected))).all()
        drawn = np.bincount(weights.groups, weights=counts)
        assert (np.abs(drawn - draws * of_group) < 1 + 1e-9).all()
        tokens += np.bincount(weights.groups, weights=counts * LENGTHS)
        if epoch == 3:
            sampler.set_epoch(epoch)
            assert (np.bincount(list(sampler), minlength=ROWS) == counts).all()
    if by == "tokens":
        wanted = np.array([shares[name] for name in weights.group_names])
        # Independent draws of one row vary more: five sigma of theirs.
        variance = (weights.relative / weights.total * LENGTHS.astype(float) ** 2).sum()
        sigma = np.sqrt(200 * draws * variance) / tokens.sum()
        assert (np.abs(tokens / tokens.sum() - wanted) < 5 * sigma).all()


@pytest.mark.parametrize("shares", [None, "equal", "flow", "tokens", {"all": 3}])
@pytest.mark.parametrize("by", ["rows", "tokens"])
def test_one_group_is_the_same_as_none_bit_for_bit(shares, by):
    plain = TABLE.weights()
    one = TABLE.weights(groups=["all"] * ROWS, shares=shares, by=by)
    assert one.values.tobytes() == plain.values.tobytes()
    assert (one.fingerprint, one.temperature, one.ess) == (
        plain.fingerprint,
        plain.temperature,
        plain.ess,
    )
    assert EpochPlan(one, seed=2)[:].tolist() == EpochPlan(plain, seed=2)[:].tolist()
    assert EpochPlan(one).identity() == EpochPlan(plain).identity()
    assert one.group_names == ("all",)


def test_low_temperatures_of_groups_far_apart_lose_neither():
    losses = np.r_[np.linspace(50.0, 50.01, 30), np.linspace(0.0, 0.01, 20)]
    groups = np.repeat(["far", "near"], [30, 20])
    weights = FlowWeights.from_losses(losses, temperature=1e-3, groups=groups, shares="equal")
    assert (weights.relative > 0).all()
    assert shares_of(weights, groups=groups) == pytest.approx({"far": 0.5, "near": 0.5})
    near = weights.times(groups == "far")
    np.testing.assert_allclose(near.relative[:30], np.exp(-(losses[:30] - 50.0) / 1e-3), rtol=1e-9)


def test_rows_without_a_valid_loss_are_left_out_of_their_group():
    losses = LOSSES.copy()
    losses[:50] = np.resize([np.nan, -1.0, np.inf], 50)
    weights = LossTable.from_losses(losses).weights(
        groups=SOURCE, shares="equal", on_invalid="drop"
    )
    assert not weights.relative[:50].any()
    assert shares_of(weights) == pytest.approx(dict.fromkeys(MEDIANS, 1 / 3))
    with pytest.raises(InvalidLossError, match="50 of 3,000 losses"):
        LossTable.from_losses(losses).weights(groups=SOURCE)


def test_a_group_of_which_no_row_can_be_drawn_is_named_unless_it_has_no_share():
    losses = np.where(SOURCE == "web", np.nan, LOSSES)
    for weights in (
        lambda **options: FlowWeights.from_losses(
            losses, groups=SOURCE, on_invalid="drop", **options
        ),
        lambda **options: TABLE.weights(
            groups=SOURCE,
            function=lambda losses, tau: losses < (0.0 if 2 < tau < 4 else 9.0),
            **options,
        ),
    ):
        for shares in (None, "equal", {"web": 0.1, "code": 1, "chat": 1}):
            with pytest.raises(InvalidLossError, match="no row of 'web' can be drawn"):
                weights(shares=shares)
        for shares in ("flow", {"web": 0, "code": 1, "chat": 1}):
            assert shares_of(weights(shares=shares))["web"] == 0.0
    with pytest.raises(InvalidLossError, match="all 3,000 weights are 0"):
        TABLE.weights(groups=SOURCE, shares="flow", function=lambda losses, tau: losses < 0)
    with pytest.raises(InvalidLossError, match=r"in the group 'web': temperature='median' is 0"):
        FlowWeights.from_losses(np.where(SOURCE == "web", 0.0, LOSSES), groups=SOURCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": {"web": 1, "code": 1}}, "no number for 'chat'"),
        ({"shares": {"web": 1}}, "no number for 'chat', 'code'"),
        ({"shares": {"web": 1, "code": 1, "chat": 1, "books": 1}}, "given for 'books', but no row"),
        ({"shares": {"web": 1, "code": -1, "chat": 1}}, "finite numbers >= 0"),
        ({"shares": {"web": np.nan, "code": 1, "chat": 1}}, "finite numbers >= 0"),
        ({"shares": {"web": 0, "code": 0, "chat": 0}}, "not all 0"),
        ({"shares": {"web": "x", "code": 0, "chat": 0}}, "shares must be numbers"),
        ({"shares": "uniform"}, "'uniform'"),
        ({"shares": [0.2, 0.3, 0.5]}, r"\[0.2, 0.3, 0.5\]"),
        ({"shares": np.array([0.5, 0.5])}, r"array\(\[0.5, 0.5\]\)"),
        ({"by": "words"}, "'words'"),
    ],
)
def test_shares_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TABLE.weights(groups=SOURCE, **options)


def test_shares_need_groups_and_shares_of_tokens_lengths():
    for options in ({"shares": "equal"}, {"by": "tokens"}, {"shares": {}}):
        with pytest.raises(ValueError, match="give groups= too"):
            TABLE.weights(**options)
    for options in ({"shares": "tokens"}, {"by": "tokens"}, {"by": "tokens", "shares": "equal"}):
        with pytest.raises(ValueError, match="with_lengths"):
            LossTable.from_losses(LOSSES).weights(groups=SOURCE, **options)
    with pytest.raises(ValueError, match="no row has a token"):
        LossTable.from_losses(LOSSES, lengths=np.zeros(ROWS, int)).weights(
            groups=SOURCE, by="tokens"
        )


NAMES = SOURCE.tolist()


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        tuple(NAMES),
        np.array(NAMES, dtype=object),
        pd.Series(NAMES),
        pd.Series(NAMES).astype("category"),
        datasets.Dataset.from_dict({"source": NAMES})["source"],
    ],
    ids=["list", "tuple", "objects", "pandas", "categories", "datasets"],
)
def test_names_may_come_as_any_column(labels):
    weights = TABLE.weights(groups=labels, shares="equal")
    expected = TABLE.weights(groups=SOURCE, shares="equal")
    assert weights.fingerprint == expected.fingerprint
    assert weights.group_names == ("chat", "code", "web")
    assert weights.groups.dtype == np.uint8


def test_groups_are_in_the_order_of_numbers_and_then_of_names():
    labels = np.array([10, "b", 2, "a", 2], dtype=object)
    weights = FlowWeights.from_losses([1.0, 2.0, 3.0, 4.0, 5.0], groups=labels)
    assert weights.group_names == (2, 10, "a", "b")
    assert weights.groups.tolist() == [1, 3, 0, 2, 0]


@pytest.mark.parametrize("kind", [list, tuple, lambda labels: np.array(labels, dtype=object)])
def test_a_number_is_another_group_than_the_text_that_shows_it(kind):
    weights = FlowWeights.from_losses(
        [0.1, 0.5, 0.2, 3.0], groups=kind([1, "1", 1, "1"]), shares={1: 3, "1": 1}
    )
    assert weights.group_names == (1, "1")
    assert (weights.relative[[0, 2]].sum() / weights.total) == pytest.approx(0.75)


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint16, bool, torch.tensor, list])
def test_whole_numbers_and_booleans_are_groups_too(kind):
    numbers = np.arange(ROWS) % 2
    labels = kind(numbers) if kind in (torch.tensor, list) else numbers.astype(kind)
    weights = TABLE.weights(groups=labels, shares={0: 1, 1: 3})
    assert weights.relative[numbers == 1].sum() / weights.total == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (SOURCE[:-1], MismatchError, "2,999 groups for 3,000 rows"),
        (Groups.of(SOURCE[:-1], ROWS - 1), MismatchError, "2,999 groups for 3,000 rows"),
        (SOURCE.reshape(2, -1), ValueError, r"got shape \(2, 1500\)"),
        (np.where(SOURCE == "web", None, SOURCE), ValueError, r"rows have none \(row \d+: None"),
        (np.where(SOURCE == "web", np.nan, 1.0), ValueError, r"float64: .* rows have none"),
        (
            np.where(SOURCE == "web", np.nan, SOURCE.astype(object)).tolist(),
            ValueError,
            "have none",
        ),
        (np.linspace(0, 1, ROWS), ValueError, "got dtype float64"),
        ([["a"]] * ROWS, ValueError, "shape"),
        ("source", ValueError, r"give the column of the data, data\['source'\]"),
    ],
)
def test_labels_that_are_no_groups_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        TABLE.weights(groups=labels)


def test_strata_of_other_labels_give_groups_their_shares_over_epochs():
    weights = TABLE.weights(groups=SOURCE, shares="equal")
    plan = EpochPlan(weights, seed=0, arrange=Strata(np.arange(ROWS) % 7, batch_size=50))
    expected, drawn = weights.expected_counts(), np.zeros((40, 3))
    for epoch in range(40):
        counts = plan.at_epoch(epoch).counts()
        assert (counts >= np.floor(expected - 1e-6)).all()
        assert (counts <= np.ceil(expected + 1e-6)).all()
        drawn[epoch] = np.bincount(weights.groups, weights=counts)
    assert np.abs(drawn.mean(axis=0) / ROWS - 1 / 3).max() < 0.002


def test_labels_may_change_after_weights_were_made_of_them():
    labels = SOURCE.copy()
    weights = TABLE.weights(groups=labels, shares="equal")
    before = weights.groups.tolist(), weights.relative.tolist()
    labels[:] = "web"
    assert (weights.groups.tolist(), weights.relative.tolist()) == before
    with pytest.raises(ValueError, match="read-only"):
        weights.groups[0] = 1


@examples(60)
@given(st.integers(1, 2000), st.integers(1, 700), st.integers(0, 2**32))
def test_any_number_of_groups_of_any_sizes_gets_its_share(rows, kinds, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, kinds, rows)
    losses = random.exponential(size=rows) + 0.1
    names, counts = np.unique(labels, return_counts=True)
    weights = FlowWeights.from_losses(losses, groups=labels)
    found = np.bincount(weights.groups, weights=weights.relative) / weights.total
    np.testing.assert_allclose(found, counts / rows, rtol=1e-11)
    drawn = np.bincount(weights.groups, weights=EpochPlan(weights, seed=seed).counts())
    # As many draws as rows: each group is drawn just as often as it has rows.
    assert (np.abs(drawn - counts) <= 1).all()
    assert weights.group_names == tuple(names.tolist())


def test_weights_of_groups_have_the_same_bits_and_fingerprint_on_every_machine():
    weights = FlowWeights.from_losses(
        LOSSES, groups=SOURCE, shares={"web": 1, "code": 2, "chat": 4}
    )
    assert weights.fingerprint == "3dbb418ae0e2eb357adec829b0627112"
    other = FlowWeights.from_losses(LOSSES, groups=SOURCE, shares={"web": 1, "code": 2, "chat": 5})
    assert other.fingerprint != weights.fingerprint


def test_weights_of_groups_travel_to_other_processes():
    weights = TABLE.weights(groups=SOURCE, shares="equal").power(0.5)
    again = pickle.loads(pickle.dumps(weights))
    assert again.relative.tobytes() == weights.relative.tobytes()
    assert again.fingerprint == weights.fingerprint
    plans = [EpochPlan(each, seed=1)[:].tolist() for each in (weights, again)]
    assert plans[0] == plans[1]
    # Losses and lengths stay, and so do weights, which are made of their logarithms.
    assert len(pickle.dumps(weights)) < 10 * ROWS + 3000


def test_groups_that_are_coded_already_give_the_weights_of_their_names():
    groups = Groups.of(SOURCE, ROWS)
    assert Groups.of(groups, ROWS) is groups
    coded = TABLE.weights(groups=groups, shares="equal")
    assert coded.fingerprint == TABLE.weights(groups=SOURCE, shares="equal").fingerprint


def test_numbers_of_names_are_groups_in_the_order_of_the_names():
    groups = Groups.of_codes(np.array([2, 0, 1, 0, 3]), ["b", "c", "a", "b"])
    assert groups.same_as(Groups.of(["a", "b", "c", "b", "b"], 5))
    assert (groups.codes.dtype, groups.codes.flags.writeable) == (np.uint8, False)


def test_groups_in_a_row_are_numbered_as_they_are_named():
    groups = Groups.of_runs(("b", "a"), [2, 3])
    assert groups.codes.tolist() == [0, 0, 1, 1, 1]
    assert [rows.tolist() for rows in groups.rows()] == [[0, 1], [2, 3, 4]]
    assert groups.same_as(Groups.of_runs(("b", "a"), [2, 3]))
    assert not groups.same_as(Groups.of_runs(("b", "c"), [2, 3]))
    assert issubclass(InvalidLossError, FlowDataError)


def test_a_group_that_gets_no_share_needs_no_temperature():
    losses = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 4.0])
    labels = ["zeros"] * 3 + ["some"] * 3
    weights = FlowWeights.from_losses(losses, groups=labels, shares={"zeros": 0, "some": 1})
    alone = FlowWeights.from_losses(losses[3:])
    np.testing.assert_array_equal(weights.relative, [0.0, 0.0, 0.0, *alone.relative])
    with pytest.raises(InvalidLossError, match="in the group 'zeros': temperature='median' is 0"):
        FlowWeights.from_losses(losses, groups=labels, shares={"zeros": 1, "some": 1})
