"""Weights of a column that is not held: bit for bit those of the same losses in an array."""

import pickle
import warnings

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata import EpochPlan, FlowDataWarning, FlowWeights, InvalidLossError
from flowdata.core.column import PIECE, sum_pairwise
from flowdata.core.sorted_losses import warn_if_sorted

TEMPERATURES = ("median", "mean", "quantile:0.2", "quantile:0.999", 0.7)
BAD = (np.nan, np.inf, -np.inf, -1.0, -1e-30)


class Column:
    """An array that can only be sliced, and counts how often each row is read."""

    def __init__(self, values):
        self._values = values
        self.dtype = values.dtype
        self.read = 0

    def __len__(self):
        return self._values.size

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        part = self._values[rows]
        self.read += part.size
        return part


def losses_of(rows, seed, kind="any"):
    rng = np.random.default_rng(seed)
    losses = rng.exponential(size=rows).astype(np.float32)
    if kind == "few values":
        losses = (losses * 3).round() / 4
    if kind == "all scales":
        losses = np.exp2(rng.uniform(-149, 120, rows)).astype(np.float32)
    losses[rng.integers(0, rows, rows // 9)] = rng.choice([0.0, -0.0, 0.5])
    return losses


def both(losses, **options):
    """Weights of an array, and of a column."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlowDataWarning)
        return (
            FlowWeights.from_kept_losses(losses, **options),
            FlowWeights.from_kept_losses(Column(losses), **options),
        )


def refusal(source, **options):
    """Why no weights can be made of losses, empty if they can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlowDataWarning)
        try:
            FlowWeights.from_kept_losses(source, **options)
        except InvalidLossError as error:
            return str(error)
    return ""


def figures(weights):
    figures = [weights.temperature, weights.total, weights.ess, weights.fingerprint]
    return [*figures, weights.mean, weights.max, weights.summary(), repr(weights)]


def parts(weights, step=40_001):
    return np.concatenate(
        [weights.part(start, start + step) for start in range(0, len(weights), step)]
    )


@examples(25)
@given(
    st.integers(1, 4 * PIECE),
    st.integers(0, 2**32),
    st.sampled_from(TEMPERATURES),
    st.sampled_from(["any", "few values", "all scales"]),
    st.sampled_from([None, "mean", "sum"]),
)
def test_all_figures_have_the_bits_of_those_of_an_array(rows, seed, temperature, kind, normalize):
    losses = losses_of(rows, seed, kind)
    errors = [refusal(source, temperature=temperature) for source in (losses, Column(losses))]
    assert errors[0] == errors[1]
    if errors[0]:
        assert "is 0 because" in errors[0]
        return
    held, read = both(losses, temperature=temperature, normalize=normalize)
    assert figures(read) == figures(held)
    assert np.array_equal(parts(read), held.relative)
    assert np.array_equal(read.relative, held.relative)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("bad", [*BAD, BAD])
def test_rows_that_are_dropped_have_no_part_in_any_figure(temperature, bad):
    losses = losses_of(3 * PIECE + 17, 5)
    places = np.random.default_rng(0).integers(0, losses.size, 4000)
    losses[places] = np.resize(bad, places.size)
    held, read = both(losses, temperature=temperature, on_invalid="drop")
    assert figures(read) == figures(held)
    assert np.array_equal(parts(read), held.relative)
    assert not read.relative[places].any()
    for alpha in (0.0, 0.4):
        assert np.array_equal(parts(read.power(alpha)), held.power(alpha).relative)


@pytest.mark.parametrize("count", [1, 5, 6, 4000])
def test_invalid_losses_are_refused_in_the_same_words(count):
    losses = losses_of(2 * PIECE + 5, 1)
    losses[np.random.default_rng(count).permutation(losses.size)[:count]] = np.resize(BAD, count)
    errors = []
    for source in (losses, Column(losses)):
        with pytest.raises(InvalidLossError) as error:
            FlowWeights.from_kept_losses(source)
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert f"{count:,} of {losses.size:,} losses" in errors[0]
    losses[:] = -1
    for source in (losses, Column(losses)):
        with pytest.raises(InvalidLossError, match="none of the 131,077 losses is finite"):
            FlowWeights.from_kept_losses(source, on_invalid="drop")


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("invalid", [0, 100])
def test_powers_and_residuals_are_those_of_an_array(alpha, invalid):
    losses = losses_of(2 * PIECE + 100, 9)
    losses[:invalid] = np.nan
    held, read = both(losses, on_invalid="drop")
    assert figures(read.power(alpha)) == figures(held.power(alpha))
    assert np.array_equal(parts(read.power(alpha)), held.power(alpha).relative)
    for more in (0.0, 0.7):
        twice = held.power(alpha).power(more)
        assert figures(read.power(alpha).power(more)) == figures(twice)
        assert np.array_equal(parts(read.power(alpha).power(more)), twice.relative)
    residual = held.residual_of_draws(alpha)
    assert np.array_equal(read.residual_of_draws(alpha), residual)
    # As streams make those of a shard.
    scale = read.power(alpha).total / read.total
    part = read.power(1.0 - alpha).part(70, 90_000) * scale
    assert np.array_equal(part, residual[70:90_000])
    assert np.array_equal(read.residual(alpha), held.residual(alpha))


@pytest.mark.parametrize(("temperature", "passes"), [(2.0, 2), ("median", 3), ("mean", 3)])
def test_a_column_is_read_two_or_three_times_and_its_parts_where_they_are_asked_for(
    temperature, passes
):
    column = Column(losses_of(3 * PIECE, 2))
    weights = FlowWeights.from_kept_losses(column, temperature=temperature)
    figures = weights.total, weights.ess, weights.fingerprint, weights.mean
    assert column.read == passes * len(column)
    assert weights.part(1000, 2000).size == 1000
    assert column.read == passes * len(column) + 1000
    assert (weights.total, weights.ess, weights.fingerprint, weights.mean) == figures
    drawn = weights.power(0.5)
    assert (weights.power(0.5) is drawn, drawn.total) == (True, weights.power(0.5).total)


def test_an_epoch_of_rows_holds_the_weights_that_it_goes_through_again():
    column = Column(losses_of(2 * PIECE, 6))
    weights = FlowWeights.from_kept_losses(column, temperature=1.0)
    plan = EpochPlan(weights, seed=3)
    read = column.read
    counts = plan.counts()
    assert column.read == read + len(column)
    assert plan.at_epoch(1).counts().sum() == len(column)
    assert column.read == read + len(column)
    assert np.array_equal(
        counts,
        EpochPlan(
            FlowWeights.from_kept_losses(losses_of(2 * PIECE, 6), temperature=1.0), seed=3
        ).counts(),
    )


def test_weights_of_a_column_travel_without_what_was_made_of_it():
    weights = FlowWeights.from_kept_losses(Column(losses_of(3 * PIECE, 3)))
    known = len(pickle.dumps(weights))
    relative = weights.relative
    assert len(pickle.dumps(weights)) == known < relative.nbytes
    again = pickle.loads(pickle.dumps(weights))
    assert (again.fingerprint, again.total) == (weights.fingerprint, weights.total)
    assert np.array_equal(again.relative, relative)
    with pytest.raises(ValueError, match="read-only"):
        relative[0] = 1.0


@examples(60)
@given(st.integers(0, 5 * PIECE), st.integers(0, 2**32))
def test_sums_over_pieces_have_the_bits_of_a_sum_over_all(rows, seed):
    values = np.random.default_rng(seed).random(rows) ** 8
    asked = []

    def sums(start, stop):
        asked.append((start, stop))
        return np.array([values[start:stop].sum(), np.square(values[start:stop]).sum()])

    assert sum_pairwise(sums, 0, rows).tolist() == [values.sum(), np.square(values).sum()]
    assert [start for start, _ in asked] == [0, *(stop for _, stop in asked[:-1])]
    assert asked[-1][1] == rows


def test_sorted_losses_are_noticed_piece_by_piece():
    losses = np.sort(losses_of(2 * PIECE + 30, 4))
    losses[PIECE - 5 : PIECE + 5] = np.nan
    for source in (Column(losses), losses):
        with pytest.warns(FlowDataWarning, match="in ascending order"):
            warn_if_sorted(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_sorted(Column(losses_of(2 * PIECE, 4)))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_weights_that_were_given_travel_once(alpha):
    weights = FlowWeights.from_weights(np.random.default_rng(0).random(1000)).power(alpha)
    relative = weights.relative
    # Beside them, what they were made from, of which there is a hash.
    assert len(pickle.dumps(weights)) < 2.5 * relative.nbytes
    again = pickle.loads(pickle.dumps(weights))
    assert (again.relative == relative).all()
    assert again.fingerprint == weights.fingerprint
