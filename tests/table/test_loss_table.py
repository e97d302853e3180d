"""LossTable: one loss a row, and where it came from."""

import numpy as np
import pytest
import torch
from torch import nn

from flowdata import (
    InvalidLossError,
    LossTable,
    MismatchError,
    Provenance,
)

LOSSES = np.random.default_rng(8).exponential(size=30).astype(np.float32)

ROWS = [(torch.full((3,), float(row)), row % 4) for row in range(30)]


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 4)


def with_tokens():
    return LossTable(
        np.array([0.5, 1.0, 2.0], dtype=np.float32),
        Provenance(rows=3, loss="causal_lm", options='{"max_length": 7}', truncated=1),
        n_tokens=np.array([2, 0, 3], dtype=np.int32),
        token_losses=np.array([0.25, 0.75, 1.0, 2.0, 3.0], dtype=np.float32),
    )


@pytest.mark.parametrize("losses", [LOSSES, LOSSES.tolist(), torch.tensor(LOSSES), LOSSES[:]])
def test_a_table_holds_losses_as_read_only_single_precision(losses):
    table = LossTable.from_losses(losses)
    assert table.losses.dtype == np.float32
    assert table.losses.tolist() == LOSSES.tolist()
    assert len(table) == 30
    with pytest.raises(ValueError, match="read-only"):
        table.losses[0] = 1.0


def test_a_table_does_not_change_with_the_array_it_was_made_from():
    array = LOSSES.copy()
    table = LossTable.from_losses(array)
    array[:] = 0.0
    assert table.losses.tolist() == LOSSES.tolist()


def test_a_table_keeps_invalid_losses_for_the_weights_to_decide_on():
    table = LossTable.from_losses([1.0, np.nan, np.inf, -1.0, 3.0])
    np.testing.assert_array_equal(table.losses, np.float32([1.0, np.nan, np.inf, -1.0, 3.0]))
    with pytest.raises(InvalidLossError, match="3 of 5 losses"):
        table.weights()
    assert np.flatnonzero(table.weights(on_invalid="drop").values).tolist() == [0, 4]


def test_weights_of_a_table_take_temperature_and_normalisation():
    weights = LossTable.from_losses(LOSSES).weights("mean", normalize="sum")
    assert weights.temperature == pytest.approx(LOSSES.mean(dtype=np.float64))
    assert weights.values.sum() == pytest.approx(1.0)
    assert LossTable.from_losses(LOSSES).weights(0.5).temperature == 0.5


def test_losses_that_are_not_a_row_of_numbers_are_refused():
    with pytest.raises(InvalidLossError, match="losses are empty"):
        LossTable.from_losses([])
    with pytest.raises(ValueError, match=r"shape \(n,\), got shape \(3, 1\)"):
        LossTable.from_losses(np.ones((3, 1)))
    for unusual in (["high"], ["0.5", "1.5"], [1.0 + 2.0j]):
        with pytest.raises(ValueError, match=r"could not convert string|must be numbers"):
            LossTable.from_losses(unusual)


def test_losses_and_provenance_must_agree_on_the_number_of_rows():
    with pytest.raises(ValueError, match="2 losses for provenance of 3 rows"):
        LossTable(np.zeros(2, dtype=np.float32), Provenance(rows=3))


def test_losses_of_another_number_of_rows_than_the_data_set_are_refused():
    with pytest.raises(MismatchError, match="29 losses, but the data set has 30 rows"):
        LossTable.from_losses(LOSSES[:29], dataset=ROWS)


def test_token_weights_have_a_temperature_over_all_tokens():
    weights = with_tokens().token_weights()
    assert weights.temperature == 1.0
    np.testing.assert_allclose(weights.values, np.exp([-0.25, -0.75, -1.0, -2.0, -3.0]), rtol=1e-12)
    assert with_tokens().token_weights("mean", normalize="max").temperature == pytest.approx(1.4)


def test_a_table_without_tokens_says_how_to_get_them():
    table = LossTable.from_losses(LOSSES)
    with pytest.raises(ValueError, match="not made by CausalLM"):
        table.token_offsets  # noqa: B018
    with pytest.raises(ValueError, match=r"CausalLM\(token_losses=True\).*tokens=True"):
        table.token_weights()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_may_be_a_tensor_that_is_part_of_a_graph(dtype):
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=dtype, requires_grad=True)
    assert LossTable.from_losses(losses * 2).losses.tolist() == [2.0, 4.0, 6.0]


def tokens_table(losses, tokens, n_tokens):
    return LossTable(
        np.array(losses, dtype=np.float32),
        LossTable.from_losses(losses).provenance,
        n_tokens=np.array(n_tokens, dtype=np.int32),
        token_losses=np.array(tokens, dtype=np.float32),
    )


def test_tokens_of_a_dropped_row_have_weight_zero_and_no_say_in_the_temperature():
    tokens = [1.0, 3.0, 900.0, np.nan, 900.0, 2.0]
    table = tokens_table([2.0, np.nan, np.nan, 2.0], tokens, [2, 3, 0, 1])
    weights = table.token_weights(on_invalid="drop")
    assert weights.temperature == 2.0
    assert weights.values == pytest.approx([np.exp(-0.5), np.exp(-1.5), 0, 0, 0, np.exp(-1.0)])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 5.0])
def test_a_token_without_a_valid_loss_is_named_with_its_row(bad):
    row = np.nan if bad == 5.0 else 2.0
    table = tokens_table([2.0, 1.0, row, 2.0], [1.0, 3.0, 1.0, bad, 2.0], [2, 1, 1, 1])
    with pytest.raises(InvalidLossError, match=r"1 tokens in rows \[2\] .*token 3 .*on_invalid="):
        table.token_weights()
    assert np.flatnonzero(table.token_weights(on_invalid="drop").values).tolist() == [0, 1, 2, 4]
