"""Tasks of vision: a pre-trained network, what it is fine-tuned on, and what it knew."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from methods import CLIPPED, Tuned, Tuning, accuracy, clipped, outputs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from flowdata import FlowDataWarning, FlowWeights, LossTable, linear_probe, score, score_probe

OWN_ROWS = "FLOW, probe scored on its own rows"
"""FLOW by losses of a new head on the very rows that it was fitted on: the trap."""


class Sizes(NamedTuple):
    """Numbers of samples: to train on, to choose rates by, to measure by."""

    data: int
    held_out: int
    new: int


QUICK = Sizes(100, 50, 100)
"""Enough to see that everything runs."""


@dataclass(frozen=True)
class Samples:
    """What a task is made of; the labels of the first two may be wrong, as ``harmful`` tells."""

    data: TensorDataset
    held_out: TensorDataset
    new: TensorDataset
    harmful: Tensor


def samples_of(images: Tensor, labels: Tensor, harmful: Tensor, sizes: Sizes) -> Samples:
    """Images in a random order, as parts of these sizes."""
    parts = zip(images.split(list(sizes)), labels.split(list(sizes)), strict=True)
    return Samples(*(TensorDataset(*part) for part in parts), harmful[: sizes.data])


@dataclass(frozen=True)
class Task:
    """One task and seed, ready to be fine-tuned on.

    Attributes:
        start: the model that trainings begin with; a new head is fitted.
        head: the name of its last layer.
        before: what is put back to measure the old task, None where the head stays.
        samples: of the new task.
        old: of the old task.
        hardest: rows of the new task that the start finds hardest, a tenth.
        table: losses, of a new head out of fold.
        own_rows: losses of a new head on the rows that it was fitted on.
    """

    start: nn.Module
    head: str
    before: "Before | None"
    samples: Samples
    old: TensorDataset
    hardest: Tensor
    table: LossTable
    own_rows: LossTable | None

    @property
    def weights(self) -> FlowWeights:
        """Weights at the median loss."""
        return self.table.weights()

    def tuning(self, epochs: int, variants: Mapping[str, FlowWeights]) -> Tuning:
        """What trainings are given, with other weights by the names of methods."""
        known = {CLIPPED: self.table.weights(function=clipped)}
        if self.own_rows is not None:
            known[OWN_ROWS] = self.own_rows.weights()
        return Tuning(
            self.samples.data,
            self.weights,
            epochs,
            loss=on_its_device,
            variants={**known, **variants},
        )

    def refitted(self, model: nn.Module) -> nn.Module:
        """A copy of a model whose new head is fitted once more, with the plain loss.

        One that diverged has no features to fit it to, and stays as it is.
        """
        model = copy.deepcopy(model)
        finite = all(bool(values.isfinite().all()) for values in model.state_dict().values())
        if self.before is not None and finite:
            linear_probe(model, self.samples.data, head=self.head, progress=False)
        return model

    def held_out(self, tuned: Tuned) -> float:
        """Accuracy on held-out samples of the fine-tuning data, by which rates are chosen."""
        return accuracy(self.refitted(tuned.model), self.samples.held_out).mean().item()

    def scored(self, tuned: Tuned) -> dict[str, float]:
        """Accuracies of a model, in percent, and what it took."""
        model = self.refitted(tuned.model)
        hits = accuracy(model, self.samples.new)
        new, own = (
            hits.mean().item(),
            accuracy(tuned.model, self.samples.new).mean().item(),
        )
        old = accuracy(model if self.before is None else self.before.put_back(model), self.old)
        kept = old.mean().item()
        return {
            "old": kept,
            "new": new,
            "mean": (kept + new) / 2,
            "hardest": hits[self.hardest].mean().item(),
            "own": own,
            "samples": tuned.samples,
            "seconds": tuned.seconds,
        }

    def drawn(self) -> dict[str, dict[str, float]]:
        """What weights by each table of losses are like, and how often harmful rows are drawn."""
        tables = {"out of fold": self.table, "on its own rows": self.own_rows}
        return {
            name: {
                "temperature": float(weights.temperature or 0.0),
                "mean": weights.mean,
                "ess": weights.ess / len(weights),
                "harmful": float(self.samples.harmful.double().mean()),
                "drawn": float(weights.values[self.samples.harmful.numpy()].sum())
                / float(weights.values.sum()),
            }
            for name, weights in (
                (name, table.weights()) for name, table in tables.items() if table is not None
            )
        }


@dataclass(frozen=True)
class Before:
    """What a network had before it got a new head: the old one, and its batch norms."""

    head: str
    layer: nn.Module
    norms: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, head: str) -> "Before":
        """That of a model as it is."""
        norms = {
            f"{name}.{part}": value.clone()
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
            for part, value in module.state_dict().items()
        }
        return cls(head, copy.deepcopy(model.get_submodule(head)), norms)

    def put_back(self, model: nn.Module) -> nn.Module:
        """A copy of a fine-tuned model with them."""
        model = copy.deepcopy(model)
        model.set_submodule(self.head, copy.deepcopy(self.layer))
        model.load_state_dict(self.norms, strict=False)
        return model


def task_of(
    model: nn.Module,
    head: str,
    samples: Samples,
    old: TensorDataset,
    *,
    classes: int | None = None,
    seed: int,
) -> Task:
    """A task; with so many classes, of a new head that is fitted and scored out of fold."""
    before, own_rows = None, None
    if classes is None:
        table = score(model, samples.data, progress=False)
    else:
        before = Before.of(model, head)
        layer: Any = model.get_submodule(head)
        fresh = nn.Linear(layer.in_features, classes).to(layer.weight.device)
        model.set_submodule(head, fresh)
        table = score_probe(model, samples.data, head=head, seed=seed, progress=False)
        with warnings.catch_warnings():
            # That it was fitted on these rows is what shall be seen.
            warnings.simplefilter("ignore", FlowDataWarning)
            own_rows = score(model, samples.data, progress=False)
    images, labels = samples.new.tensors
    losses = F.cross_entropy(outputs(model, images), labels, reduction="none")
    hardest = losses.argsort(descending=True)[: len(labels) // 10]
    return Task(model, head, before, samples, old, hardest, table, own_rows)


def on_its_device(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a classifier, wherever it is."""
    device = next(model.parameters()).device
    images, labels = (part.to(device) for part in batch)
    return F.cross_entropy(model(images), labels)


def damaged(
    labels: Tensor, share: float, random: np.random.Generator, classes: int = 10
) -> tuple[Tensor, Tensor]:
    """Labels of which a share is wrong, and which are."""
    wrong = torch.from_numpy(random.random(len(labels)) < share)
    shifts = torch.from_numpy(random.integers(1, classes, len(labels)))
    return torch.where(wrong, (labels + shifts) % classes, labels), wrong


def best_rates(
    tried: Sequence[Mapping[str, Sequence[float]]], grid: Sequence[float]
) -> dict[str, float]:
    """The rate of each method that is best (highest) on average.

    Args:
        tried: for each seed, what each method came to at each rate of the grid.
        grid: the rates.
    """
    return {
        method: grid[int(np.argmax(np.mean([found[method] for found in tried], axis=0)))]
        for method in tried[0]
    }
