"""linear_probe: fit a new head on the frozen backbone before it is scored."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from flowdata.scoring.classification import predict
from flowdata.scoring.inference import count_rows, device_of, evaluating, read_batches, to_device


def linear_probe(
    model: nn.Module,
    dataset: Any,
    *,
    head: str,
    weight_decay: float = 1e-4,
    max_iter: int = 200,
    batch_size: int = 64,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> float:
    """Fit the linear head of a classifier in place, everything else frozen.

    The first step of FLOW for a head that is new (arXiv 2502.02797, vision experiments): probe,
    `score` the probed model, then fine-tune all of it. Features are computed once, in evaluation
    mode; the head is then the multinomial logistic regression on them, fitted by L-BFGS.

    Args:
        model: backbone and head.
        dataset: map-style data set of (input, class index), or dicts with "labels".
        head: name of the ``nn.Linear`` to fit, as in ``model.named_modules()``.
        weight_decay: L2 penalty on its weight matrix, per sample mean of the loss.
        max_iter: most L-BFGS iterations.
        batch_size, collate_fn, num_workers, device, progress: see `score`.

    Returns:
        The mean cross-entropy that was reached, without the penalty.

    Raises:
        TypeError: when ``head`` is no ``nn.Linear`` or targets are no class indices.
        ValueError: when there is no such module, the data set is empty, a class is out of range,
            or the head does not see one feature vector per sample.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0.0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    layer = _find_head(model, head)
    features, targets = _compute_features(
        model,
        layer,
        read_batches(
            dataset,
            np.arange(count_rows(dataset)),
            size=batch_size,
            collate_fn=collate_fn,
            num_workers=num_workers,
        ),
        device_of(model, device),
        tqdm(total=len(dataset), desc="probing", unit="samples", disable=not progress),
    )
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.ndim != 1:
        raise TypeError(f"targets must be class indices of shape (n,), got {targets.dtype}")
    if not 0 <= int(targets.min()) <= int(targets.max()) < layer.out_features:
        raise ValueError(
            f"class indices run from {int(targets.min())} to {int(targets.max())}, the head has "
            f"{layer.out_features} outputs"
        )
    if not features.isfinite().all():
        raise ValueError("the head sees NaN or infinite features: look at the data and the model")
    return _fit_head(layer, features, targets.long(), weight_decay, max_iter)


def _find_head(model: nn.Module, head: str) -> nn.Linear:
    try:
        layer = model.get_submodule(head)
    except AttributeError as error:
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise ValueError(f"no module {head!r}; linear layers are {names}") from error
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"the head must be nn.Linear, {head!r} is {type(layer).__name__}")
    return layer


def _compute_features(
    model: nn.Module, layer: nn.Linear, data: Any, device: torch.device, bar: "tqdm[Any]"
) -> tuple[Tensor, Tensor]:
    """What the head sees, shape (n, in_features), and the targets, shape (n,)."""
    seen: list[Tensor] = []
    targets: list[Tensor] = []
    # What goes into the head is the backbone's output, wherever in the model the head is.
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with bar, evaluating(model):
            for rows, batch in data:
                targets.append(predict(model, to_device(batch, device))[1])
                saw = [tuple(part.shape) for part in seen[len(targets) - 1 :]]
                if saw != [(rows.size, layer.in_features)]:
                    raise ValueError(
                        "the head must see one feature vector per sample, it saw "
                        f"{', '.join(map(str, saw)) or 'nothing'} for {rows.size} samples"
                    )
                bar.update(rows.size)
    finally:
        hook.remove()
    return torch.cat(seen), torch.cat(targets)


def _fit_head(
    layer: nn.Linear, features: Tensor, targets: Tensor, weight_decay: float, max_iter: int
) -> float:
    # L-BFGS needs the precision, whatever the model computes in.
    features, fitted = features.float(), copy.deepcopy(layer).float().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        fitted.parameters(), max_iter=max_iter, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(fitted(features), targets)
        penalised = loss + 0.5 * weight_decay * fitted.weight.square().sum()
        penalised.backward()  # type: ignore[no-untyped-call]
        return penalised.item()

    # The caller may have gradients switched off.
    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter, values in zip(layer.parameters(), fitted.parameters(), strict=True):
            parameter.copy_(values)
        return F.cross_entropy(fitted(features), targets).item()
