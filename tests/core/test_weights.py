"""FlowWeights: exp(-loss / temperature), its scale, its powers and what it says about itself."""

import datasets
import numpy as np
import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowdata import FlowDataError, FlowDataWarning, FlowWeights, InvalidLossError, LossTable
from flowdata.core.weights import as_weights

LAW = examples()
LOSSES = np.random.default_rng(5).exponential(size=40)
LOSS_ARRAYS = arrays(np.float64, st.integers(2, 50), elements=st.floats(2.0**-10, 2.0**10))
ALPHAS = st.floats(0.0, 1.0)
# np.average, which the law is compared with, has no digits left for subnormal weights.
PLAIN = st.floats(0.0, 1e6, allow_subnormal=False)
NORMALIZATIONS = (None, "mean", "max", "sum")


def make(losses=LOSSES, **options):
    return FlowWeights.from_losses(losses, **options)


@LAW
@given(LOSS_ARRAYS, st.floats(0.5, 2000.0))
def test_a_weight_is_exp_of_minus_loss_over_temperature(losses, tau):
    weights = make(losses, temperature=tau)
    np.testing.assert_allclose(weights.values, np.exp(-losses / tau), rtol=1e-12, atol=1e-300)
    assert weights.temperature == tau


def test_the_temperature_is_the_median_unless_asked_otherwise():
    assert make().temperature == np.median(LOSSES)
    assert make(temperature="mean").temperature == pytest.approx(LOSSES.mean(), rel=1e-14)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_normalisation_divides_by_the_statistic_it_is_named_for(normalize):
    plain = np.exp(-LOSSES / np.median(LOSSES))
    divisor = 1.0 if normalize is None else getattr(np, normalize)(plain)
    weights = make(normalize=normalize)
    np.testing.assert_allclose(weights.values, plain / divisor, rtol=1e-13)
    assert weights.values.dtype == np.float64
    assert weights.mean == pytest.approx(weights.values.mean(), rel=1e-13)
    assert weights.max == pytest.approx(weights.values.max(), rel=1e-13)
    np.testing.assert_array_equal(weights[[3, 1]], weights.values[[3, 1]])
    assert weights[7] == weights.values[7]


def test_an_unknown_normalisation_is_refused():
    for build in (FlowWeights.from_losses, FlowWeights.from_weights):
        with pytest.raises(ValueError, match=r"normalize must be None.*got 'median'"):
            build([1.0, 2.0], normalize="median")


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("temperature", ["median", "mean", 1e-6, 1e6])
@pytest.mark.parametrize("losses", [np.logspace(-6, 6, 25), np.logspace(-12, 12, 25)])
def test_losses_many_orders_apart_neither_overflow_nor_lose_the_largest_weight(
    losses, temperature, normalize
):
    weights = make(losses, temperature=temperature, normalize=normalize)
    assert np.isfinite(weights.values).all()
    assert weights.values[0] == weights.max > 0.0
    assert (np.diff(weights.values) <= 0).all()


def test_weights_of_more_than_a_million_rows_are_those_of_the_formula():
    losses = np.random.default_rng(3).exponential(size=2**20 + 3).astype(np.float32)
    expected = np.exp(-losses.astype(np.float64) / 0.7)
    np.testing.assert_allclose(make(losses, temperature=0.7).values, expected, rtol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e3, 2.0**40])
def test_a_huge_offset_of_all_losses_keeps_their_relative_weights(offset):
    steps = np.arange(5.0)
    weights = make(offset + steps, temperature=0.25)
    np.testing.assert_allclose(weights.relative, np.exp(-steps / 0.25), rtol=1e-12)
    shares = make(offset + steps, temperature=0.25, normalize="sum").values
    assert shares.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("offset", [0.0, 1e3, 2.0**40])
def test_a_huge_offset_of_all_losses_keeps_their_powers(offset):
    steps = np.arange(5.0)
    drawn = make(offset + steps, temperature=0.3).power(0.5)
    np.testing.assert_allclose(drawn.relative, np.exp(-steps / 0.6), rtol=1e-9)


def test_weights_that_are_given_keep_their_values():
    given_weights = np.array([0.0, 3.0, 1e-12, 1e12])
    weights = FlowWeights.from_weights(given_weights)
    np.testing.assert_allclose(weights.values, given_weights, rtol=1e-12)
    assert weights.temperature is None
    assert weights.max == pytest.approx(1e12)


@LAW
@given(LOSS_ARRAYS)
def test_the_effective_sample_size_is_the_one_of_kish(losses):
    weights = make(losses)
    plain = np.exp(-losses / np.median(losses))
    assert weights.ess == pytest.approx(plain.sum() ** 2 / np.square(plain).sum(), rel=1e-10)
    assert 1.0 - 1e-12 < weights.ess < losses.size * (1 + 1e-12)


def test_an_effective_sample_size_below_one_percent_warns():
    losses = np.r_[0.0, np.full(999, 50.0)]
    with pytest.warns(
        FlowDataWarning, match=r"effective sample size is 1\.0 of 1,000 rows"
    ) as all_:
        weights = make(losses, temperature=1.0)
    assert [warning.filename for warning in all_] == [__file__]
    assert "raise the temperature" in str(weights.summary())


def test_the_warning_points_to_the_caller_of_the_weights_of_a_table_too():
    with pytest.warns(FlowDataWarning, match="effective sample size") as all_:
        LossTable.from_losses(np.r_[0.0, np.full(999, 50.0)]).weights(1.0)
    assert [warning.filename for warning in all_] == [__file__]


def test_an_effective_sample_size_of_just_one_percent_does_not_warn():
    losses = np.r_[np.zeros(10), np.full(990, 5000.0)]
    weights = make(losses, temperature=1.0)
    assert weights.ess == 10.0
    assert weights.summary().notes == ()


def test_nearly_equal_weights_are_noted():
    (note,) = make(np.full(10, 2.0)).summary().notes
    assert "effective sample size is 100.0% of the rows" in note
    assert "smaller learning rate" in note


def test_the_summary_has_the_figures_numpy_computes():
    losses = np.r_[np.random.default_rng(2).exponential(size=299), [np.nan] * 2, np.full(9, 30.0)]
    weights = make(losses, on_invalid="drop")
    summary, values = weights.summary(), weights.values
    counts = values / values.sum() * values.size
    assert (summary.rows, summary.dropped) == (310, 2)
    assert summary.temperature == np.nanmedian(losses)
    assert summary.mean == pytest.approx(values.mean())
    assert summary.max == pytest.approx(values.max())
    assert summary.mean_over_max == pytest.approx(values.mean() / values.max())
    assert summary.ess == pytest.approx(values.sum() ** 2 / np.square(values).sum())
    assert summary.ess_fraction == pytest.approx(summary.ess / 310)
    assert summary.largest_expected_count == pytest.approx(counts.max())
    assert summary.rarely_drawn == np.mean(counts < 0.01) > 10 / 310


def test_the_summary_prints_its_figures_with_their_units():
    text = str(FlowWeights.from_weights([0.0, 1.0, 1.0, 2.0]).summary())
    assert text.splitlines() == [
        "rows                     4 (1 of weight 0)",
        "temperature              given weights",
        "mean weight              1",
        "mean / max weight        0.5",
        "effective sample size    2.7 (66.7% of the rows)",
        "largest expected count   2 in an epoch",
        "rarely drawn             25.0% of the rows (< 1 in 100 epochs)",
    ]
    assert "temperature              0.75\n" in str(make([0.75, 0.1, 3.0]).summary())
    assert "note: " in str(make([1.0, 1.0]).summary())


def test_the_representation_names_rows_temperature_and_sample_size():
    assert repr(make([1.0, 1.0])) == "FlowWeights(rows=2, temperature=1.0, mean=0.3679, ess=2.0)"


def test_the_fingerprint_is_equal_for_equal_losses_and_temperature():
    assert make().fingerprint == make(LOSSES.tolist(), normalize="sum").fingerprint
    given_weights = FlowWeights.from_weights(LOSSES)
    assert given_weights.fingerprint == FlowWeights.from_weights(LOSSES[:]).fingerprint


def test_the_fingerprint_changes_with_a_loss_its_place_the_temperature_and_the_kind():
    changed = LOSSES.copy()
    changed[17] = np.nextafter(changed[17], 9)
    tau = float(np.median(LOSSES))
    all_ = [make(), make(changed, temperature=tau), make(LOSSES[::-1]), make(temperature="mean")]
    all_ += [
        FlowWeights.from_weights(LOSSES),
        make(LOSSES[:-1], temperature=tau),
        make().power(0.5),
    ]
    assert len({weights.fingerprint for weights in all_}) == len(all_)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-9])
def test_invalid_losses_and_weights_are_refused_with_their_rows_and_values(bad):
    values = [1.0, 2.0, bad, 3.0]
    for build, what in ((FlowWeights.from_losses, "losses"), (FlowWeights.from_weights, "weights")):
        with pytest.raises(InvalidLossError, match=f"1 of 4 {what}") as error:
            build(values)
        assert f"(row 2: {bad})" in str(error.value)
        assert isinstance(error.value, FlowDataError)
        assert isinstance(error.value, ValueError)


def test_only_the_first_five_invalid_rows_are_listed():
    with pytest.raises(InvalidLossError, match=r"7 of 8 losses .*row 5: nan, \.\.\.\)") as error:
        make([1.0] + [np.nan] * 7)
    assert "row 6" not in str(error.value)
    assert 'on_invalid="drop"' in str(error.value)


def test_dropped_rows_have_weight_exactly_zero_and_no_part_in_the_temperature():
    valid = np.array([0.5, 1.0, 2.5])
    losses = np.array([np.nan, 0.5, -3.0, 1.0, np.inf, 2.5], dtype=np.float32)
    for temperature in ("median", "mean", "quantile:0.9"):
        weights = make(losses, temperature=temperature, on_invalid="drop")
        alone = make(valid, temperature=temperature)
        assert weights.temperature == alone.temperature
        assert weights.values[[0, 2, 4]].tolist() == [0.0, 0.0, 0.0]
        assert weights.values[[1, 3, 5]].tolist() == alone.values.tolist()
        assert weights.total == alone.total


def test_dropping_every_row_is_an_error():
    with pytest.raises(InvalidLossError, match="none of the 3 losses is finite and non-negative"):
        make([np.nan, np.inf, -1.0], on_invalid="drop")


def test_an_unknown_treatment_of_invalid_losses_is_refused():
    with pytest.raises(ValueError, match=r"on_invalid must be .* got 'ignore'"):
        make(on_invalid="ignore")


@pytest.mark.parametrize("build", [FlowWeights.from_losses, FlowWeights.from_weights])
def test_values_that_are_not_a_row_of_numbers_are_refused(build):
    with pytest.raises(InvalidLossError, match="empty"):
        build([])
    with pytest.raises(ValueError, match=r"shape \(n,\), got shape \(2, 1\)"):
        build(np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        build(1.0)
    for unusual in (["1.0", "2.0"], [1.0 + 0j], [None, 1.0], ["1.0", None], "12", b"12", {0: 1.0}):
        with pytest.raises(ValueError, match="must be numbers, got dtype"):
            build(unusual)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(InvalidLossError, match="all 3 weights are 0"):
        FlowWeights.from_weights(np.zeros(3))


@pytest.mark.parametrize(
    "losses",
    [[1, 2, 3], (1.0, 2.0, 3.0), np.array([1, 2, 3], np.uint8), torch.tensor([1.0, 2.0, 3.0])]
    + [np.array([1, 2, 3], dtype) for dtype in (np.int64, np.float16, np.float32, ">f8")],
    ids=lambda losses: f"{type(losses).__name__} {getattr(losses, 'dtype', '')}",
)
def test_lists_tensors_integers_and_all_float_types_give_the_same_weights(losses):
    assert make(losses).values.tolist() == make([1.0, 2.0, 3.0]).values.tolist()


def test_read_only_losses_are_accepted_and_left_as_they_are():
    losses = LOSSES.copy()
    losses.flags.writeable = False
    assert make(losses).values.tolist() == make().values.tolist()
    writeable = LOSSES.copy()
    make(writeable)
    FlowWeights.from_weights(writeable)
    assert writeable.flags.writeable
    assert writeable.tolist() == LOSSES.tolist()


def test_weights_cannot_be_written_to():
    weights = make()
    with pytest.raises(ValueError, match="read-only"):
        weights.relative[0] = 1.0
    before = weights.values.tolist()
    weights.values[0] = 9.0
    assert weights.values.tolist() == before


@pytest.mark.parametrize("build", [FlowWeights.from_losses, FlowWeights.from_weights])
def test_weights_do_not_change_when_the_array_they_were_made_from_does(build):
    array = LOSSES.copy()
    weights = build(array)
    array[:20] = 1.0
    assert weights.values.tolist() == build(LOSSES).values.tolist()
    assert weights.power(0.5).values.tolist() == build(LOSSES).power(0.5).values.tolist()
    assert weights.fingerprint == build(LOSSES).fingerprint


def test_expected_counts_add_up_to_the_size_of_the_epoch():
    weights = make(normalize="max")
    shares = weights.values / weights.values.sum()
    np.testing.assert_allclose(weights.expected_counts(), shares * 40, rtol=1e-12)
    np.testing.assert_allclose(weights.expected_counts(1000), shares * 1000, rtol=1e-12)
    assert not weights.expected_counts(0).any()
    assert len(weights) == 40


def test_anything_that_has_weights_or_is_an_array_of_them_can_stand_for_weights():
    weights, table = make(), LossTable.from_losses([1.0, 2.0, 3.0])
    assert as_weights(weights) is weights
    assert as_weights(table).values.tolist() == table.weights().values.tolist()
    assert as_weights([1, 3]).values.tolist() == pytest.approx([1.0, 3.0])


def test_a_column_of_a_data_set_makes_weights():
    column = datasets.Dataset.from_dict({"sequence_weights": [0.5, 0.25, 1.0]})["sequence_weights"]
    assert as_weights(column).values.tolist() == [0.5, 0.25, 1.0]
