"""linear_probe: fit a new head on the frozen backbone before it is scored."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from flowdata.scoring.models.classification import LossFunction, require_loss_of_batches
from flowdata.scoring.models.fitted_rows import remember
from flowdata.scoring.models.inference import count_rows, device_of, evaluating, read_batches
from flowdata.scoring.probe.features import (
    CLASSES,
    concatenate_features,
    features_of_batches,
    hashing_collate,
    read_first_rows,
)
from flowdata.scoring.probe.head_fits import LOSSES, HeadFit, state_of, write_head

_NAMED = 5


def linear_probe(
    model: nn.Module,
    dataset: Any,
    *,
    head: str,
    loss: str | LossFunction = CLASSES,
    weight_decay: float = 1e-4,
    max_iter: int = 200,
    batch_size: int = 64,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> float:
    """Fit the linear head of a classifier in place, everything else frozen.

    Features are computed once, in evaluation mode; the head is then the multinomial logistic
    regression on them, fitted by L-BFGS. The losses of the rows it was fitted on say little, as it
    has learned their labels: `score_probe` fits a head and scores the rows.

    Args:
        model: backbone and head.
        dataset: map-style data set of (input, target), or dicts with "labels".
        head: name of the ``nn.Linear`` to fit, as in ``model.named_modules()``.
        loss: "cross_entropy" of class indices, "bce" of several labels a row, "mse" of numbers, or
            a function, see `score_probe`.
        weight_decay: L2 penalty on its weight matrix, per sample mean of the loss.
        max_iter: most L-BFGS iterations.
        batch_size, collate_fn, num_workers, device, progress: see `score`.

    Returns:
        The mean loss that was reached, without the penalty.

    Raises:
        TypeError: when ``head`` is no ``nn.Linear`` or targets are no class indices.
        ValueError: when there is no such module, the data set is empty, a class is out of range,
            the head does not see one feature vector per sample, or what it gives is not what
            the model gives.
    """
    require_options(batch_size, weight_decay, loss)
    layer = find_head(model, head)
    require_linear(layer, head)
    rows = np.arange(count_rows(dataset))
    collate = hashing_collate(model, collate_fn)
    batches = read_batches(
        dataset, rows, size=batch_size, collate_fn=collate, num_workers=num_workers
    )
    read_first = partial(read_first_rows, dataset, batch_size, collate)
    parts = []
    with probing_bar(rows.size, progress) as bar, evaluating(model):
        place = device_of(model, device)
        for part in features_of_batches(model, layer, batches, place, loss, read_first):
            parts.append(part)
            bar.update(len(part))
    found = concatenate_features(parts)
    how = HeadFit(layer, loss, weight_decay=weight_decay, max_iter=max_iter)
    fitted = how.fitted(found, rows)
    reached = how.losses(fitted, found, rows, "the head")
    write_head(layer, state_of(fitted))
    remember(layer, found.hashes)
    return float(reached.mean())


def require_options(batch_size: int, weight_decay: float, loss: str | LossFunction) -> None:
    """Refuse options out of range, by name."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0.0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    if not (callable(loss) or loss in LOSSES):
        raise ValueError(
            f"loss must be one of {LOSSES}, or a function (head, (features, targets)) -> losses, "
            f"got {loss!r}"
        )
    require_loss_of_batches(loss)


def probing_bar(rows: int, progress: bool) -> "tqdm[Any]":
    """Progress over the rows whose features are computed."""
    return tqdm(total=rows, desc="probing", unit="samples", disable=not progress)


def find_head(model: nn.Module, head: str) -> nn.Module:
    """The module of this name.

    Raises:
        ValueError: where there is none, or it has nothing to fit.
    """
    try:
        found = model.get_submodule(head)
    except AttributeError as error:
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise ValueError(f"no module {head!r}; linear layers are {names}") from error
    if found is model:
        raise ValueError("the head is the whole model: name the part of it that is new")
    own = {*found.parameters()}
    if not own:
        raise ValueError(f"{head!r} is {type(found).__name__}, which has no parameters to fit")
    inside = {*found.modules()}
    shared = [
        f"{where}.{name}".lstrip(".")
        for where, module in model.named_modules()
        if module not in inside
        for name, parameter in module.named_parameters(recurse=False)
        if parameter in own
    ]
    if shared:
        raise ValueError(
            f"the head {head!r} shares parameters with {shared[:_NAMED]}, which would change with "
            "it: give the model a head of its own"
        )
    return found


def require_linear(layer: nn.Module, head: str) -> None:
    """Refuse a head that L-BFGS is not for."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(
            f"the head must be nn.Linear, {head!r} is {type(layer).__name__}: score_probe fits any "
            "other by a function of yours, fit=function(features, targets) -> module"
        )
