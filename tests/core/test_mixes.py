"""Mixes of data sets in a row."""

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

import flowdata
from flowdata import (
    DistributedFlowSampler,
    EpochPlan,
    FlowDataset,
    FlowSampler,
    FlowWeights,
    InvalidLossError,
    LossTable,
    Strata,
    mix,
)

RANDOM = np.random.default_rng(2)
MEDIANS = {"code": (0.4, 300), "chat": (0.9, 500), "maths": (2.8, 400)}
LOSSES = {
    name: (median * RANDOM.gamma(4.0, 1 / 3.67, rows)).astype(np.float32)
    for name, (median, rows) in MEDIANS.items()
}
LENGTHS = {name: RANDOM.integers(1, 1 + rows, rows) for name, (_, rows) in MEDIANS.items()}
TABLES = {name: LossTable.from_losses(LOSSES[name], lengths=LENGTHS[name]) for name in MEDIANS}
BOUNDS = np.cumsum([0, *(rows for _, rows in MEDIANS.values())])
ALL_LENGTHS = np.concatenate(list(LENGTHS.values()))


def shares_of(weights, sizes=None):
    drawn = weights.relative * (1 if sizes is None else sizes)
    return (np.add.reduceat(drawn, BOUNDS[:-1]) / drawn.sum()).tolist()


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        (None, [300 / 1200, 500 / 1200, 400 / 1200]),
        ("equal", [1 / 3] * 3),
        ({"maths": 1, "code": 2, "chat": 1}, [0.5, 0.25, 0.25]),
    ],
)
def test_rows_lie_in_the_order_of_the_data_sets_each_with_its_share(shares, wanted):
    weights = mix(TABLES, shares=shares)
    assert len(weights) == 1200
    assert shares_of(weights) == pytest.approx(wanted)
    assert weights.group_names == ("code", "chat", "maths")
    assert weights.groups.tolist() == [0] * 300 + [1] * 500 + [2] * 400
    for name, start, stop in zip(MEDIANS, BOUNDS[:-1], BOUNDS[1:], strict=True):
        part = weights.relative[start:stop]
        np.testing.assert_allclose(part / part.max(), TABLES[name].weights().relative, rtol=1e-12)
    drawn = np.bincount(weights.groups, weights=EpochPlan(weights, seed=1).counts())
    assert (np.abs(drawn - 1200 * np.array(wanted)) < 1 + 1e-9).all()


def test_a_mix_is_what_groups_of_the_tables_in_one_are():
    together = LossTable.from_losses(np.concatenate(list(LOSSES.values())), lengths=ALL_LENGTHS)
    # Groups are in the order of their names, a mix in the order given.
    labels = np.repeat([0, 1, 2], [rows for _, rows in MEDIANS.values()])
    for by in ("rows", "tokens"):
        mixed = mix(TABLES, shares="equal", by=by)
        grouped = together.weights(groups=labels, shares="equal", by=by)
        np.testing.assert_allclose(mixed.values, grouped.values, rtol=1e-12)
        assert mixed.mean == pytest.approx(grouped.mean)
        assert EpochPlan(mixed)[:].tolist() == EpochPlan(grouped)[:].tolist()


def test_shares_of_tokens_are_those_of_the_tokens_drawn():
    weights = mix(TABLES, shares="equal", by="tokens")
    assert shares_of(weights, ALL_LENGTHS) == pytest.approx([1 / 3] * 3)
    without = TABLES | {"chat": LossTable.from_losses(LOSSES["chat"])}
    with pytest.raises(ValueError, match=r"\['chat'\] do not.*with_lengths"):
        mix(without, shares="equal", by="tokens")
    with pytest.raises(ValueError, match=r"\['chat'\] do not"):
        mix(without, shares="tokens")


def test_the_summary_has_the_figures_of_each_data_set_by_its_name():
    summary = mix(TABLES, shares="equal").summary()
    assert [group.name for group in summary.groups] == list(MEDIANS)
    for group, name in zip(summary.groups, MEDIANS, strict=True):
        assert group.median_loss == pytest.approx(np.median(LOSSES[name]))
        assert group.share_of_draws == pytest.approx(1 / 3)
        assert group.ess == pytest.approx(TABLES[name].weights().ess)
    assert "one for each of 3 data sets" in str(summary)


def test_data_sets_may_have_weights_of_their_own():
    parts = {
        "cold": TABLES["code"].weights(0.05),
        "masked": TABLES["chat"].weights().times(LOSSES["chat"] < 0.7),
        "function": TABLES["maths"].weights(function=lambda losses, tau: losses < tau),
        "numbers": [1.0, 0.0, 3.0],
        "both": mix({"a": TABLES["code"], "b": TABLES["chat"]}, shares={"a": 3, "b": 1}),
    }
    shares = {name: number + 1.0 for number, name in enumerate(parts)}
    weights = mix(parts, shares=shares, normalize="sum")
    start = 0
    for name, part in parts.items():
        values = flowdata.core.weights.as_weights(part).values
        found = weights.values[start : start + len(values)]
        np.testing.assert_allclose(found, values / values.sum() * shares[name] / 15, rtol=1e-9)
        start += len(values)
    assert start == len(weights)


def test_shares_may_be_what_the_values_of_weights_give():
    parts = {"a": TABLES["code"].weights(normalize="mean"), "b": TABLES["chat"].weights()}
    weights = mix(parts, shares="flow")
    expected = np.concatenate([parts["a"].values, parts["b"].values])
    np.testing.assert_allclose(weights.values, expected, rtol=1e-12)


def test_a_mix_of_one_that_has_groups_keeps_them():
    inner = TABLES["code"].weights(groups=np.arange(300) % 2, shares="equal")
    weights = mix({"only": inner})
    assert weights.group_names == (0, 1)
    assert EpochPlan(weights).identity() == EpochPlan(inner).identity()


def test_a_mix_of_one_is_its_weights_bit_for_bit():
    for shares in (None, "equal", {"only": 2}):
        one, plain = mix({"only": TABLES["code"]}, shares=shares), TABLES["code"].weights()
        assert one.relative.tobytes() == plain.relative.tobytes()
        assert one.fingerprint == plain.fingerprint
        assert one.temperature == plain.temperature


@pytest.mark.parametrize(
    ("data_sets", "error", "message"),
    [
        ({}, ValueError, "by name"),
        ([TABLES["code"]], ValueError, "by name"),
        (TABLES | {"bad": [0.0, 0.0]}, InvalidLossError, "in the data set 'bad': all 2 weights"),
        (
            TABLES | {"bad": LossTable.from_losses([np.nan, 1.0])},
            InvalidLossError,
            "'bad': .*row 0: nan",
        ),
    ],
)
def test_what_is_no_mix_is_refused(data_sets, error, message):
    with pytest.raises(error, match=message):
        mix(data_sets)


def test_a_name_without_a_number_is_named():
    with pytest.raises(ValueError, match="no number for 'chat'"):
        mix(TABLES, shares={"code": 1, "maths": 1})
    with pytest.raises(ValueError, match="given for 'mathematics'"):
        mix(TABLES, shares={"code": 1, "maths": 1, "chat": 1, "mathematics": 2})


def test_every_door_takes_a_mix_and_reads_the_rows_of_data_sets_in_a_row():
    weights = mix(TABLES, shares="equal")
    parts = [
        TensorDataset(torch.full((rows,), float(n))) for n, (_, rows) in enumerate(MEDIANS.values())
    ]
    both = ConcatDataset(parts)
    strata = Strata(weights.groups, batch_size=30)
    loaders = [
        DataLoader(both, 30, sampler=FlowSampler(weights, arrange=strata, seed=1)),
        DataLoader(FlowDataset(both, weights, strata=strata, seed=1), 30),
    ]
    for loader in loaders:
        for (batch,) in loader:
            counts = torch.bincount(batch.long(), minlength=3)
            assert ((counts - 10).abs() <= 1).all(), counts
    ranks = [
        list(DistributedFlowSampler(weights, num_replicas=2, rank=rank, seed=1)) for rank in (0, 1)
    ]
    drawn = np.bincount(weights.groups[np.concatenate(ranks)], minlength=3)
    assert drawn.tolist() == [400, 400, 400]
    rows = datasets.concatenate_datasets(
        [
            datasets.Dataset.from_dict({"source": [name] * rows})
            for name, (_, rows) in MEDIANS.items()
        ]
    )
    assert rows["source"][:] == [weights.group_names[code] for code in weights.groups]


def test_shares_of_200_epochs_are_drawn_within_five_sigma_by_independent_draws_too():
    shares = {"code": 0.5, "chat": 0.3, "maths": 0.2}
    weights = mix(TABLES, shares=shares)
    drawn = np.zeros(3)
    for epoch in range(200):
        plan = EpochPlan(weights, epoch=epoch, epoch_size=500, scheme="multinomial")
        drawn += np.bincount(weights.groups[plan[:]], minlength=3)
    wanted = np.array(list(shares.values()))
    sigma = np.sqrt(100_000 * wanted * (1 - wanted))
    assert (np.abs(drawn - 100_000 * wanted) < 5 * sigma).all()


def test_alpha_leaves_shares_to_draws_times_loss_weights():
    weights = mix(TABLES, shares="equal")
    drawn = weights.power(0.5)
    together = drawn.relative / drawn.total * weights.residual(0.5)
    assert np.bincount(weights.groups, weights=together).tolist() == pytest.approx([1 / 3] * 3)
    assert isinstance(drawn, FlowWeights)
    assert drawn.group_names == weights.group_names
