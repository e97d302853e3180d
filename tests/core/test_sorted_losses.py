"""Losses that somebody has sorted are warned of; others are not."""

import warnings

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata import FlowDataWarning, FlowWeights, LossTable

RANDOM = np.random.default_rng(0).lognormal(size=2000)
SORTED = {
    "ascending": np.sort(RANDOM),
    "descending": np.sort(RANDOM)[::-1],
    "ascending, few": np.sort(RANDOM[:60]),
    "ascending, NaN last": np.sort(np.r_[RANDOM, [np.nan] * 100]),
    "ascending, a few at the end": np.r_[np.sort(RANDOM[:1990]), RANDOM[1990:]],
    "descending in each of five parts": np.r_[
        tuple(np.sort(part)[::-1] for part in RANDOM.reshape(5, -1))
    ],
    "ascending, some equal": np.sort(RANDOM.round(2)),
}
UNSORTED = {
    "random": RANDOM,
    "constant": np.full(2000, 2.5),
    "few": np.sort(RANDOM[:50]),
    "of few values": np.repeat(np.arange(1.0, 11), 200),
    "rising with much noise": np.linspace(0, 2, 2000) + RANDOM,
    "many equal": np.where(np.arange(2000) % 2, 1.0, 2.0),
}


@pytest.mark.parametrize("losses", SORTED.values(), ids=SORTED)
def test_sorted_losses_are_warned_of_once_wherever_they_are_given(losses):
    data = range(losses.size)
    for door in (
        lambda: FlowWeights.from_losses(losses, on_invalid="drop"),
        lambda: LossTable.from_losses(losses).weights(on_invalid="drop"),
        lambda: LossTable.from_losses(losses.tolist(), dataset=data),
    ):
        with pytest.warns(FlowDataWarning, match="the losses are in") as found:
            door()
        assert [warning.filename for warning in found] == [__file__]


@pytest.mark.parametrize("losses", UNSORTED.values(), ids=UNSORTED)
def test_losses_of_rows_in_their_own_order_give_no_warning(losses):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlowDataWarning)
        FlowWeights.from_losses(losses)
        LossTable.from_losses(losses, dataset=range(losses.size))


@examples()
@given(st.integers(2, 3000), st.integers(0, 2**32))
def test_losses_in_random_order_never_give_a_warning(rows, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlowDataWarning)
        LossTable.from_losses(np.random.default_rng(seed).random(rows) + 1)


def test_the_warning_says_how_to_silence_it():
    with pytest.warns(FlowDataWarning) as found:
        FlowWeights.from_losses(np.arange(1.0, 101))
    command = str(found[0].message).split("silence this: ")[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlowDataWarning)
        exec(command)
        FlowWeights.from_losses(np.arange(1.0, 101))
