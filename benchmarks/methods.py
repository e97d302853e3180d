"""Ways to fine-tune a model: standard, FLOW in its modes, the paper's baselines, controls."""

import copy
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from flowdata import FlowSampler, FlowWeights, LossTable, Strata
from flowdata.reweight import reweight

T = TypeVar("T")

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
STRATIFIED = "FLOW, stratified"
REWEIGHTED = "FLOW, reweighted"
NORMALIZED = "FLOW, reweighted, mean 1"
HALF = "FLOW, alpha 0.5"
TOKENS = "FLOW, token weights"
CLIPPED = "FLOW, losses clipped"
FLOW_WISE = "FLOW + WiSE-FT 0.5"
WISE_SMALLER, WISE_FEWER = f"{WISE}, lr x mean(w)", f"{WISE}, steps x mean(w)"
METHODS = (
    STANDARD,
    SMALLER_RATE,
    FEWER_STEPS,
    L2,
    WISE,
    WISE_SMALLER,
    WISE_FEWER,
    FLOW,
    MULTINOMIAL,
    DISTINCT,
    REWEIGHTED,
    NORMALIZED,
    HALF,
    CLIPPED,
    FLOW_WISE,
)
# They have the rate of standard fine-tuning, so that less of it is all they are.
CONTROLS = (SMALLER_RATE, FEWER_STEPS)
# And these that of WiSE-FT.
WISE_CONTROLS = (WISE_SMALLER, WISE_FEWER)
# Those that are a training of another one, averaged with where it began.
AVERAGED = {
    WISE: STANDARD,
    WISE_SMALLER: SMALLER_RATE,
    WISE_FEWER: FEWER_STEPS,
    FLOW_WISE: FLOW,
}


def classification(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a classifier."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)


def momentum(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """SGD as it is used for vision."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=MOMENTUM)


def clipped(losses: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
    """Weights by losses that are clipped at their 10 % and 90 % quantiles."""
    return np.exp(-np.clip(losses, *np.quantile(losses, [0.1, 0.9])) / tau)


@dataclass(frozen=True)
class Tuning:
    """What is fine-tuned on, how, and for how long.

    ``variants`` are methods that draw as FLOW does, by other weights than its own.
    """

    data: Any
    weights: FlowWeights
    epochs: int
    batch_size: int = 50
    collate_fn: Callable[[list[Any]], Any] | None = None
    target: int | str = 1
    tokens: LossTable | None = None
    loss: Callable[[nn.Module, Any], Tensor] = classification
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = momentum
    variants: Mapping[str, FlowWeights] = field(default_factory=dict)


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
    torch.manual_seed(seed)
    model = copy.deepcopy(start)
    rate = learning_rate * (tuning.weights.mean if method == SMALLER_RATE else 1.0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = tuning.optimizer(trained, rate)
    anchor = [parameter.detach().clone() for parameter in trained] if method == L2 else []
    samples, began = 0, time.perf_counter()
    model.train()
    loader = loader_of(method, tuning, seed)
    for _ in range(tuning.epochs):
        for batch in loader:
            loss = tuning.loss(model, batch)
            if method == L2:
                loss = loss + PENALTY * distance(trained, anchor)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            samples += len(batch[tuning.target])
    if trained[0].is_cuda:
        torch.cuda.synchronize()
    return Tuned(model, samples, time.perf_counter() - began)


def sharing(
    train: Callable[[str, float], Tuned], start: nn.Module
) -> Callable[[str, float], Tuned]:
    """The same (method, learning rate) -> model, for all methods.

    Those that average a training with its start share it with the method it is of.
    """
    shared = functools.cache(train)

    def tuned(method: str, learning_rate: float) -> Tuned:
        if method in AVERAGED:
            return averaged(start, shared(AVERAGED[method], learning_rate))
        return (shared if method in AVERAGED.values() else train)(method, learning_rate)

    return tuned


def loader_of(method: str, tuning: Tuning, seed: int) -> DataLoader[Any]:
    """The only thing in which FLOW's modes differ: the loop is the same for all of them."""
    data, weights = tuning.data, tuning.weights
    options: dict[str, Any] = {
        "batch_size": tuning.batch_size,
        "collate_fn": tuning.collate_fn,
    }
    samplers: dict[str, dict[str, Any]] = {
        FLOW: {},
        MULTINOMIAL: {"scheme": "multinomial"},
        DISTINCT: {"epoch_size": "distinct"},
    }
    if method == STRATIFIED:
        samplers[method] = {"strata": Strata(data.tensors[tuning.target], tuning.batch_size)}
    if method in tuning.variants:
        return DataLoader(data, sampler=FlowSampler(tuning.variants[method], seed=seed), **options)
    if method in samplers:
        return DataLoader(
            data, sampler=FlowSampler(weights, seed=seed, **samplers[method]), **options
        )
    kinds: dict[str, dict[str, Any]] = {
        REWEIGHTED: {"normalize": None},
        NORMALIZED: {"normalize": "mean"},
        TOKENS: {"normalize": "mean", "level": "token"},
        HALF: {"alpha": 0.5},
    }
    if method in kinds:
        weighted, collate = reweight(
            data,
            tuning.tokens if method == TOKENS else weights,
            target=tuning.target,
            collate_fn=tuning.collate_fn,
            **kinds[method],
        )
        sampler = FlowSampler(weights, alpha=0.5, seed=seed) if method == HALF else None
        options["collate_fn"] = collate
        return DataLoader(weighted, sampler=sampler, shuffle=sampler is None, **options)
    if method == FEWER_STEPS:
        fewer = RandomSampler(data, num_samples=max(round(weights.mean * len(data)), 1))
        return DataLoader(data, sampler=fewer, **options)
    if method.startswith(FLOW):
        raise ValueError(f"{method} has no loader: give its weights in Tuning.variants")
    return DataLoader(data, shuffle=True, **options)


def distance(parameters: Iterable[Tensor], anchor: Iterable[Tensor]) -> Tensor:
    """Squared distance of parameters from where they began."""
    pairs = zip(parameters, anchor, strict=True)
    return torch.stack([(parameter - old).square().sum() for parameter, old in pairs]).sum()


def averaged(start: nn.Module, tuned: Tuned) -> Tuned:
    """The mean of parameters and running statistics before and after (WiSE-FT at alpha 0.5)."""
    model = copy.deepcopy(tuned.model)
    with torch.no_grad():
        for mean, old in [
            *zip(model.parameters(), start.parameters(), strict=True),
            *zip(model.buffers(), start.buffers(), strict=True),
        ]:
            if mean.is_floating_point():
                mean.lerp_(old, 0.5)
    return Tuned(model, tuned.samples, tuned.seconds)


def accuracy(model: nn.Module, data: TensorDataset) -> Tensor:
    """Whether each sample is classified rightly, in percent: shape (n,)."""
    inputs, targets = data.tensors
    return 100.0 * (outputs(model, inputs).argmax(dim=1) == targets).float()


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits, in evaluation mode, some samples at a time."""
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        return torch.cat([model(part.to(device)).cpu() for part in inputs.split(500)])


def by_task(tasks: Iterable[str], jobs: Iterable[Any], found: Iterable[T]) -> dict[str, list[T]]:
    """What was found of each task; that of a job is the first part of it."""
    pairs = list(zip(jobs, found, strict=True))
    return {task: [outcome for job, outcome in pairs if job[0] == task] for task in tasks}


def seeds_of(seeds: int) -> Iterator[int]:
    """Seeds that are measured; the one that rates are chosen by is none of them."""
    return iter(range(1, seeds + 1))
