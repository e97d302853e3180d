"""Ways to fine-tune a classifier: standard, FLOW in its modes, the paper's baselines, controls."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from flowdata import FlowSampler, FlowWeights

PENALTY = 1e-3
MOMENTUM = 0.9

STANDARD = "standard"
SMALLER_RATE = "standard, lr x mean(w)"
FEWER_STEPS = "standard, steps x mean(w)"
L2 = "L2 to theta*"
WISE = "WiSE-FT 0.5"
FLOW = "FLOW"
MULTINOMIAL = "FLOW, multinomial"
DISTINCT = "FLOW, distinct"
REWEIGHTED = "FLOW, reweighted"
NORMALIZED = "FLOW, reweighted, mean 1"
HALF = "FLOW, alpha 0.5"
FLOW_WISE = "FLOW + WiSE-FT 0.5"
METHODS = (
    STANDARD,
    SMALLER_RATE,
    FEWER_STEPS,
    L2,
    WISE,
    FLOW,
    MULTINOMIAL,
    DISTINCT,
    REWEIGHTED,
    NORMALIZED,
    HALF,
    FLOW_WISE,
)
# Those that are a training of another one, averaged with where it began.
AVERAGED = {WISE: STANDARD, FLOW_WISE: FLOW}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Tuning:
    """What is fine-tuned on, and for how long."""

    data: TensorDataset
    weights: FlowWeights
    epochs: int
    batch_size: int = 50


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model, and what it took."""

    model: nn.Module
    samples: int
    seconds: float


def fine_tuned(
    method: str, start: nn.Module, tuning: Tuning, learning_rate: float, seed: int
) -> Tuned:
    """A copy of ``start`` trained by one method; the same seed gives the same order."""
    if method in AVERAGED:
        return averaged(start, fine_tuned(AVERAGED[method], start, tuning, learning_rate, seed))
    torch.manual_seed(seed)
    model = copy.deepcopy(start)
    rate = learning_rate * (tuning.weights.mean if method == SMALLER_RATE else 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)
    anchor = [parameter.detach().clone() for parameter in model.parameters()]
    samples, began = 0, time.perf_counter()
    model.train()
    loader = loader_of(method, tuning, seed)
    for _ in range(tuning.epochs):
        for inputs, targets in loader:
            loss = F.cross_entropy(model(inputs), targets)
            if method == L2:
                loss = loss + PENALTY * distance(model, anchor)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            samples += len(inputs)
    return Tuned(model, samples, time.perf_counter() - began)


def loader_of(method: str, tuning: Tuning, seed: int) -> DataLoader[Any]:
    """The only thing in which FLOW's modes differ: the loop is the same for all of them."""
    data, weights = tuning.data, tuning.weights
    options: dict[str, Any] = {"batch_size": tuning.batch_size}
    samplers: dict[str, dict[str, Any]] = {
        FLOW: {},
        MULTINOMIAL: {"scheme": "multinomial"},
        DISTINCT: {"epoch_size": "distinct"},
    }
    if method in samplers:
        return DataLoader(
            data, sampler=FlowSampler(weights, seed=seed, **samplers[method]), **options
        )
    if method in (REWEIGHTED, NORMALIZED, HALF):
        from flowdata.reweight import reweighting_loader

        kinds: dict[str, dict[str, Any]] = {
            REWEIGHTED: {"normalize": None, "shuffle": True},
            NORMALIZED: {"normalize": "mean", "shuffle": True},
            HALF: {"alpha": 0.5, "seed": seed},
        }
        made: DataLoader[Any] = reweighting_loader(
            data, weights, target=1, **kinds[method], **options
        )
        return made
    if method == FEWER_STEPS:
        fewer = RandomSampler(data, num_samples=max(round(weights.mean * len(data)), 1))
        return DataLoader(data, sampler=fewer, **options)
    return DataLoader(data, shuffle=True, **options)


def distance(model: nn.Module, anchor: list[Tensor]) -> Tensor:
    """Squared distance of the parameters from where they began."""
    pairs = zip(model.parameters(), anchor, strict=True)
    return torch.stack([(parameter - old).square().sum() for parameter, old in pairs]).sum()


def averaged(start: nn.Module, tuned: Tuned) -> Tuned:
    """The mean of the parameters before and after (WiSE-FT at alpha 0.5)."""
    model = copy.deepcopy(tuned.model)
    with torch.no_grad():
        for mean, old in zip(model.parameters(), start.parameters(), strict=True):
            mean.lerp_(old, 0.5)
    return Tuned(model, tuned.samples, tuned.seconds)


def accuracy(model: nn.Module, data: TensorDataset) -> Tensor:
    """Whether each sample is classified rightly, in percent: shape (n,)."""
    inputs, targets = data.tensors
    return 100.0 * (outputs(model, inputs).argmax(dim=1) == targets).float()


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits, in evaluation mode, some samples at a time."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(part) for part in inputs.split(500)])


def seeds_of(seeds: int) -> Iterator[int]:
    """Seeds that are measured; the one that rates are chosen by is none of them."""
    return iter(range(1, seeds + 1))
