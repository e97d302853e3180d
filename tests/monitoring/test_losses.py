"""Current losses by decile: their means, and forgetting."""

import functools

import matplotlib
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flowdata import FlowSampler, FlowWeights, Monitor

matplotlib.use("Agg")
ROWS = 1000


def of(figures, name):
    return [figures.get(f"flowdata/{name}/decile_{decile}") for decile in range(1, 11)]


def test_means_are_over_the_last_samples_and_compare_the_same_rows():
    rng = np.random.default_rng(5)
    scored = rng.exponential(size=50)
    tenths = scored.argsort().argsort() * 10 // 50
    monitor = Monitor(FlowWeights.from_losses(scored), over=64)
    rows = rng.integers(0, 50, (40, 16))
    losses = torch.from_numpy(rng.exponential(size=rows.shape)).float()
    for batch, values in zip(rows, losses, strict=True):
        monitor.log_losses(torch.from_numpy(batch), values.requires_grad_())
    # A batch counts e times less, 64 samples later.
    weight = np.repeat(np.exp(-np.arange(39, -1, -1) * 16 / 64), 16)
    rows, losses = rows.ravel(), losses.detach().numpy().ravel()
    for decile, (now, change) in enumerate(
        zip(of(monitor.figures(), "loss"), of(monitor.figures(), "loss_change"), strict=True)
    ):
        own = tenths[rows] == decile
        mean = np.average(losses[own], weights=weight[own])
        then = np.average(scored[rows[own]], weights=weight[own])
        assert (now, change) == pytest.approx((mean, mean - then))


def test_losses_that_are_no_numbers_are_left_out_and_counted():
    monitor = Monitor(FlowWeights.from_losses([1.0, 2.0, 3.0]))
    monitor.log_losses([0, 1, 2], [1.5, float("nan"), float("inf")])
    known = [value for value in of(monitor.figures(), "loss") if value is not None]
    assert known == [1.5]
    assert "2 of 3 losses were no finite numbers" in monitor.summary()


@pytest.mark.parametrize(
    ("rows", "losses", "message"),
    [
        ([0, 1], [1.0], r"shapes \(2,\) and \(1,\)"),
        ([0.0], [1.0], "row numbers, got dtype float64"),
        ([3], [1.0], r"in \[0, 3\), got 3 to 3"),
        ([-1], [1.0], "got -1 to -1"),
        ([[0]], [[1.0]], "a number for each sample"),
    ],
)
def test_rows_and_losses_that_do_not_fit_are_refused(rows, losses, message):
    monitor = Monitor(FlowWeights.from_losses([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match=message):
        monitor.log_losses(rows, losses)
    assert monitor.figures() == {}


def losses_of(model, features, targets):
    return F.cross_entropy(model(features), targets, reduction="none")


@functools.cache
def fine_tuned(alpha):
    """A Monitor of a run on rows of which a fifth contradict what the model knew, and the model."""
    torch.manual_seed(0)
    features = torch.randn(ROWS, 10)
    known = (features[:, 0] > 0).long()
    model = torch.nn.Linear(10, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        losses_of(model, features, known).mean().backward()
        optimizer.step()
    targets = torch.where(torch.rand(ROWS) < 0.2, 1 - known, known)
    scored = losses_of(model, features, targets).detach().numpy()
    sampler = FlowSampler(FlowWeights.from_losses(scored), alpha=alpha, epoch_size=5000, seed=1)
    monitor = Monitor(sampler, over=1000)
    for images, labels in DataLoader(TensorDataset(features, targets), 50, sampler=sampler):
        losses = losses_of(model, images, labels)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        monitor.log_losses(monitor.step(50), losses)
    with torch.no_grad():
        now = losses_of(model, features, targets).numpy()
    change = (now - scored)[scored.argsort()].reshape(10, -1).mean(axis=1)
    return monitor, change


def test_forgetting_shows_as_a_rise_in_easy_deciles_and_flow_keeps_them():
    (plain, changed), (flow, kept) = fine_tuned(alpha=0.0), fine_tuned(alpha=1.0)
    rise = np.array(of(plain.figures(), "loss_change"))
    # What the model had known well it knows less well, and of what it had wrong it learns some.
    assert (rise[:5] > 0.05).all()
    assert rise[-1] < -0.5
    assert rise == pytest.approx(changed, abs=0.15)
    under_flow = np.array(of(flow.figures(), "loss_change"), dtype=float)
    assert (under_flow[:5] < 0.01).all()
    assert under_flow[:5] == pytest.approx(kept[:5], abs=0.05)


def test_the_summary_and_the_picture_show_draws_and_losses():
    monitor, _ = fine_tuned(alpha=0.0)
    lines = monitor.summary().splitlines()
    assert lines[0] == "5,000 draws, 1,000 of 1,000 rows of positive weight seen (100.0%)"
    assert lines[2].split("  ")[0] == "decile of loss"
    assert lines[2].endswith("change")
    cells = lines[3].split()
    figures = monitor.figures()
    assert cells[:3] == ["1", "10.0%", f"{figures['flowdata/draws/decile_1']:.1%}"]
    assert float(cells[4]) == pytest.approx(figures["flowdata/loss/decile_1"], rel=1e-3)
    axes = monitor.plot()
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([100 * share for share in of(figures, "draws")])
    right = next(other for other in axes.figure.axes if other is not axes)
    assert right.lines[1].get_ydata() == pytest.approx(of(figures, "loss"))
