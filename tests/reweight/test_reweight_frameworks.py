"""Accelerate, Lightning and metrics on batches with weighted targets."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from weighted_loading import weighted_loader

from flowdata import FlowWeights
from flowdata.reweight import UnweightedLossError, WeightedTarget, plain

ROWS, BATCH, RATE = 24, 6, 0.1


@pytest.fixture
def weights():
    losses = np.random.default_rng(0).gamma(2, size=ROWS)
    return FlowWeights.from_losses(losses, normalize="mean")


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(ROWS, 5, generator=generator),
        torch.randint(0, 3, (ROWS,), generator=generator),
    )


def by_hand(model, data, weights, batches_a_step=1):
    values = torch.from_numpy(weights.values).float()
    inputs, targets = data.tensors
    for rows in torch.arange(ROWS).split(BATCH * batches_a_step):
        losses = F.cross_entropy(model(inputs[rows]), targets[rows], reduction="none")
        model.zero_grad()
        (losses * values[rows]).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad
    return flat(model)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_accelerate_keeps_the_weights_also_over_accumulated_batches(data, weights):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    # A loader that another test has left in the middle would say when to step.
    accelerator.gradient_state.dataloader_references = [None]
    model = nn.Linear(5, 3)
    expected = by_hand(copy.deepcopy(model), data, weights, batches_a_step=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loader = weighted_loader(data, weights, batch_size=BATCH)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(flat(model), expected, rtol=1e-6, atol=1e-7)


def test_gathered_targets_are_those_of_metrics(data, weights):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(weighted_loader(data, weights, batch_size=BATCH))
    gathered = [accelerator.gather_for_metrics(targets) for _, targets in loader]
    assert torch.cat(gathered).tolist() == data.tensors[1].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_trains_as_by_hand(data, weights, tmp_path, workers):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def training_step(self, batch, _):
            inputs, targets = batch
            return F.cross_entropy(self.layer(inputs), targets)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=RATE)

    module = Module()
    expected = by_hand(copy.deepcopy(module.layer), data, weights)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, weighted_loader(data, weights, batch_size=BATCH, num_workers=workers))
    torch.testing.assert_close(flat(module.layer), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [1, 3])
def test_torchmetrics_see_plain_targets(data, weights, count):
    metrics = pytest.importorskip("torchmetrics.classification")
    predicted = torch.randint(0, 3, (ROWS,), generator=torch.Generator().manual_seed(2))
    kinds = (
        metrics.MulticlassAccuracy,
        metrics.MulticlassConfusionMatrix,
        metrics.MulticlassF1Score,
    )
    for kind in kinds:
        weighted, unweighted = kind(num_classes=3), kind(num_classes=3)
        for part in torch.arange(ROWS).chunk(count):
            target = data.tensors[1][part]
            weighted.update(predicted[part], WeightedTarget(target, torch.rand(len(part))))
            unweighted.update(predicted[part], target)
        assert torch.equal(weighted.compute(), unweighted.compute())
        assert type(weighted.compute()) is torch.Tensor


def test_torchmetrics_make_one_hot_rows_of_targets(data):
    torchmetrics = pytest.importorskip("torchmetrics")
    scores = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(2))
    target = WeightedTarget(data.tensors[1], torch.rand(ROWS))
    options = {"task": "multiclass", "num_classes": 3}
    for made in (
        torchmetrics.Accuracy(**options, top_k=2),
        torchmetrics.HingeLoss(**options),
        torchmetrics.HingeLoss(**options, multiclass_mode="one-vs-all"),
        lambda _, labels: torchmetrics.utilities.data.to_onehot(labels, 3),
        lambda given, labels: torchmetrics.functional.accuracy(given, labels, **options, top_k=2),
    ):
        found = made(scores, target)
        assert type(found) is torch.Tensor
        assert torch.equal(found, made(scores, plain(target)))


@pytest.mark.parametrize("kind", [torch.long, torch.float32])
def test_accelerate_pads_targets_for_other_processes(kind, monkeypatch):
    from accelerate.utils import operations

    # As in a run of two processes, of which the other has rows of 4 labels.
    monkeypatch.setattr(operations, "gather", lambda size: torch.stack([size[0], size[0] + 1]))
    target = WeightedTarget(torch.ones(2, 3, dtype=kind), torch.rand(2))
    padded = operations.pad_across_processes(target, dim=1, pad_index=-100)
    assert padded.tolist() == [[1, 1, 1, -100]] * 2


def test_a_metric_that_sorts_in_place_needs_a_plain_target(data):
    regression = pytest.importorskip("torchmetrics.regression")
    predicted, target = data.tensors[0][:, 0], data.tensors[0][:, 1]
    metric, expected = regression.KendallRankCorrCoef(), regression.KendallRankCorrCoef()
    weighted = WeightedTarget(target, torch.rand(ROWS))
    metric.update(predicted, weighted)
    with pytest.raises(UnweightedLossError, match=r"metric.*plain\(target\)"):
        metric.compute()
    metric.reset()
    metric.update(predicted, plain(weighted))
    expected.update(predicted, target)
    assert torch.equal(metric.compute(), expected.compute())
