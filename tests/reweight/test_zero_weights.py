"""A row of weight 0 counts nothing, and changes nothing for the other rows."""

import numpy as np
import pytest
import torch
import webdataset as wds
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import flowdata
from flowdata import FlowSampler, FlowWeights, LossTable, weighted_mean
from flowdata.reweight import WeightedTarget, plain, reweight
from flowdata.table.provenance import Provenance

NORMALIZATIONS = (None, "mean", "max", "sum")
VALUES = st.lists(st.just(0.0) | st.floats(1e-3, 10.0), min_size=1, max_size=30).filter(any)
CASES = {
    "half": [1.0, 1.0, 0.0, 0.0],
    "none": [1.0, 0.25, 0.5],
    "all but one": [0.0, 0.0, 2.0],
    "mask": [True, False, True, True],
}


def normalised(values, normalize):
    values = np.asarray(values, dtype=np.float64)
    return values if normalize is None else values / getattr(np, normalize)(values)


def row_weights(data):
    return np.array([data[row].weight for row in range(len(data))])


@examples()
@given(VALUES, st.sampled_from(NORMALIZATIONS), st.just(0.0) | st.floats(0, 1), st.integers(0, 999))
def test_the_expected_loss_is_the_mean_over_all_rows_for_every_alpha(
    values, normalize, alpha, seed
):
    losses = np.random.default_rng(seed).random(len(values))
    weights = FlowWeights.from_weights(values)
    data, _ = reweight(range(len(values)), weights, normalize=normalize, alpha=alpha)
    drawn = weights.power(alpha).values
    chances = drawn / drawn.sum() if alpha else np.full(len(values), 1 / len(values))
    found = np.sum(chances * row_weights(data) * losses)
    wanted = np.mean(normalised(values, normalize) * losses)
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_loss_of_a_whole_pass_is_the_mean_over_all_rows(values, normalize):
    rows = len(values)
    logits = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows) % 3
    data, collate = reweight(TensorDataset(logits, labels), values, normalize=normalize)
    losses = F.cross_entropy(logits, labels, reduction="none").numpy()
    wanted = normalised(values, normalize)
    for size in (1, rows):
        seen = [
            F.cross_entropy(inputs, targets).item() * len(inputs)
            for inputs, targets in DataLoader(data, size, collate_fn=collate)
        ]
        assert sum(seen) / rows == pytest.approx(np.mean(wanted * losses), rel=1e-5)
    np.testing.assert_allclose(row_weights(data), wanted, rtol=1e-6)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_loss_of_a_whole_epoch_of_draws_is_the_mean_over_all_rows(normalize, alpha):
    values, losses = [4.0, 1.0, 0.0, 0.0, 3.0], torch.tensor([1.0, 2.0, 9.0, 9.0, 4.0])
    data, collate = reweight(
        TensorDataset(losses, torch.zeros(5)), values, normalize=normalize, alpha=alpha
    )
    sampler = FlowSampler(values, alpha=alpha, epoch_size=4000)
    total = sum(
        weighted_mean(batch, targets.weights).item() * len(batch)
        for batch, targets in DataLoader(data, 1000, sampler=sampler, collate_fn=collate)
    )
    wanted = np.mean(normalised(values, normalize) * losses.numpy())
    assert total / 4000 == pytest.approx(wanted, rel=5e-3)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_rows_without_a_valid_loss_leave_the_weights_of_the_others(normalize):
    losses = np.array([1.0, np.nan, 2.0, np.inf])
    weights = FlowWeights.from_losses(losses, on_invalid="drop")
    data, _ = reweight(range(4), weights, normalize=normalize)
    wanted = normalised(weights.values, normalize)
    np.testing.assert_allclose(row_weights(data), wanted, rtol=1e-6)
    assert row_weights(data)[[1, 3]].tolist() == [0.0, 0.0]


@examples()
@given(
    st.lists(st.lists(st.floats(0.1, 3) | st.just(1e9), max_size=4), min_size=1, max_size=6),
    st.sampled_from(NORMALIZATIONS),
)
def test_tokens_of_weight_zero_leave_the_weights_of_the_others(rows, normalize):
    tokens = np.concatenate([np.float32(row) for row in rows])
    # The median token has a weight, those of an enormous loss have none.
    if (tokens < 10).sum() <= tokens.size / 2:
        return
    means = np.array([np.mean(row) if row else 1.0 for row in rows], np.float32)
    counts = np.array([len(row) for row in rows], np.int32)
    table = LossTable(means, Provenance(rows=len(rows)), n_tokens=counts, token_losses=tokens)
    data, _ = reweight(range(len(rows)), table, level="token", normalize=normalize)
    found = np.concatenate([data[row].weight for row in range(len(rows))])
    plain = np.exp(-tokens.astype(np.float64) / np.median(tokens))
    assert (plain == 0).sum() == (tokens > 10).sum()
    np.testing.assert_allclose(found, normalised(plain, normalize), rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_stream_of_shards_gives_the_mean_over_all_rows(tmp_path, alpha):
    rows = 64
    with wds.TarWriter(str(tmp_path / "a.tar")) as tar:
        for row in range(rows):
            tar.write({"__key__": f"{row:03d}", "cls": row})
    index = flowdata.index_shards(tmp_path / "a.tar", progress=False)
    table = LossTable.from_losses(np.random.default_rng(0).gamma(2, size=rows), index=index)
    values = np.where(np.arange(rows) % 2, 0.0, table.weights().values)
    stream = flowdata.FlowShards(
        tmp_path / "a.tar", table, values, mode="reweight", alpha=alpha, epoch_size=64 * 40
    ).decode()
    losses, total, draws = np.random.default_rng(1).random(rows), 0.0, 0
    for sample in stream:
        assert sample["cls"] % 2 == 0
        total, draws = total + sample["__weight__"] * losses[sample["cls"]], draws + 1
    wanted = np.mean(normalised(values, "mean") * losses)
    assert total / draws == pytest.approx(wanted, rel=1e-2)


INFINITE = {
    "mse": (F.mse_loss, [1.0, np.inf], [0.5, 0.0]),
    "nan": (F.mse_loss, [1.0, np.nan], [0.5, 0.0]),
    "cross entropy": (F.cross_entropy, [[1.0, 2.0], [0.0, -np.inf]], [0, 1]),
    "nll": (F.nll_loss, [[-1.0, -2.0], [0.0, -np.inf]], [0, 1]),
    "weighted mean": (
        lambda inputs, targets: weighted_mean((inputs - plain(targets)) ** 2, targets.weights),
        [1.0, np.inf],
        [0.5, 0.0],
    ),
}


@pytest.mark.parametrize(("loss", "inputs", "targets"), INFINITE.values(), ids=INFINITE)
def test_a_row_of_weight_zero_counts_nothing_whatever_its_loss(loss, inputs, targets):
    inputs = torch.tensor(inputs, requires_grad=True)
    targets = torch.tensor(targets)
    weighted = loss(inputs, WeightedTarget(targets, torch.tensor([1.0, 0.0])))
    alone = loss(inputs[:1], WeightedTarget(targets[:1], torch.tensor([1.0])))
    torch.testing.assert_close(weighted, alone / 2)
    weighted.backward()
    assert torch.isfinite(inputs.grad[0]).all()


def test_weights_that_float32_cannot_hold_are_refused():
    huge = FlowWeights.from_losses([1e6, 1e6 + 1], temperature=1.0)
    data, _ = reweight(range(2), huge)
    np.testing.assert_allclose(row_weights(data), normalised([1, np.exp(-1)], "mean"), rtol=1e-6)
    for weights in (huge, FlowWeights.from_weights([1e300, 1.0])):
        with pytest.raises(flowdata.InvalidLossError, match=r"normalize=None .* in float32"):
            reweight(range(2), weights, normalize=None)
