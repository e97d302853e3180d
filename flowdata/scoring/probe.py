"""linear_probe: fit a new head on the frozen backbone before it is scored."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init
from tqdm.auto import tqdm

from flowdata.scoring.fitted_rows import HashingCollate, remember
from flowdata.scoring.forward import predict
from flowdata.scoring.inference import count_rows, device_of, evaluating, read_batches, to_device

_NAMED = 5


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

    Features are computed once, in evaluation mode; the head is then the multinomial logistic
    regression on them, fitted by L-BFGS. The losses of the rows it was fitted on say little, as it
    has learned their labels: `score_probe` fits a head and scores the rows.

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
            the head does not see one feature vector per sample, or what it gives is not what
            the model gives.
    """
    require_options(batch_size, weight_decay)
    layer = find_head(model, head)
    rows = np.arange(count_rows(dataset))
    collate = HashingCollate(collate_fn)
    batches = read_batches(
        dataset, rows, size=batch_size, collate_fn=collate, num_workers=num_workers
    )
    found = compute_features(
        model, layer, batches, device_of(model, device), probing_bar(rows.size, progress)
    )
    require_classes(found, layer)
    fitted = fit_head(layer, found.features, found.targets, weight_decay, max_iter)
    write_head(layer, fitted)
    remember(layer, found.hashes)
    return float(head_losses(fitted, found.features, found.targets).mean())


class Features(NamedTuple):
    """What a head sees, float32 of shape (n, in_features), targets (n,), and hashes of rows."""

    features: Tensor
    targets: Tensor
    hashes: NDArray[np.uint64]


def require_options(batch_size: int, weight_decay: float) -> None:
    """Refuse options out of range, by name."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0.0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")


def probing_bar(rows: int, progress: bool) -> "tqdm[Any]":
    """Progress over the rows whose features are computed."""
    return tqdm(total=rows, desc="probing", unit="samples", disable=not progress)


def find_head(model: nn.Module, head: str) -> nn.Linear:
    """The linear layer of this name."""
    try:
        layer = model.get_submodule(head)
    except AttributeError as error:
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise ValueError(f"no module {head!r}; linear layers are {names}") from error
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"the head must be nn.Linear, {head!r} is {type(layer).__name__}")
    return layer


def compute_features(
    model: nn.Module,
    layer: nn.Linear,
    batches: Iterable[tuple[NDArray[np.int64], Any]],
    device: torch.device,
    bar: "tqdm[Any]",
) -> Features:
    """Run the model once over rows that `HashingCollate` made batches of."""
    seen: list[tuple[Tensor, Tensor]] = []
    features: list[Tensor] = []
    targets: list[Tensor] = []
    hashes: list[NDArray[np.uint64]] = []
    # What goes into the head is the backbone's output, wherever in the model the head is.
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    try:
        with bar, evaluating(model):
            for rows, (of_rows, batch) in batches:
                logits, target = predict(model, to_device(batch, device))
                saw = [tuple(inputs.shape) for inputs, _ in seen]
                if saw != [(rows.size, layer.in_features)]:
                    raise ValueError(
                        "the head must see one feature vector per sample, it saw "
                        f"{', '.join(map(str, saw)) or 'nothing'} for {rows.size} samples"
                    )
                ((inputs, output),) = seen
                if not features:
                    _require_head_last(output, logits)
                # L-BFGS needs the precision, whatever the model computes in.
                features.append(inputs.float())
                targets.append(target)
                hashes.append(of_rows)
                seen.clear()
                bar.update(rows.size)
    finally:
        hook.remove()
    if not features:
        return Features(torch.zeros(0, layer.in_features), torch.zeros(0), hashes_of_none())
    return Features(torch.cat(features), torch.cat(targets), np.concatenate(hashes))


def hashes_of_none() -> NDArray[np.uint64]:
    """The hashes of no rows."""
    return np.zeros(0, dtype=np.uint64)


def _require_head_last(output: Tensor, logits: Tensor) -> None:
    """Refuse a model that makes something else of what its head gives."""
    # What log-softmax does not change makes no difference to cross-entropy.
    same = output.shape == logits.shape and torch.allclose(
        output.float().log_softmax(dim=1),
        logits.log_softmax(dim=1),
        rtol=1e-3,
        atol=1e-3,
        equal_nan=True,
    )
    if not same:
        raise ValueError(
            "the model changes what its head gives, so that a head that is fitted alone would not "
            f"fit the model: outputs of shape {tuple(output.shape)} and {tuple(logits.shape)}. "
            "Name the last linear layer, of a model that gives logits"
        )


def require_classes(found: Features, layer: nn.Linear) -> None:
    """Refuse targets that are no classes of the head, and features that are not finite."""
    targets = found.targets
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.ndim != 1:
        raise TypeError(
            f"targets must be class indices of shape (n,), got {targets.dtype} of shape "
            f"{tuple(targets.shape)}"
        )
    none = (targets < 0) | (targets >= layer.out_features)
    if none.any():
        raise ValueError(
            f"class indices run from {int(targets.min())} to {int(targets.max())}, the head has "
            f"{layer.out_features} outputs: {_named(none)} of no class; leave such rows out"
        )
    bad = ~found.features.isfinite().all(dim=1)
    if bad.any():
        raise ValueError(
            f"the head sees NaN or infinite features in {_named(bad)}: look at the data and the "
            "model"
        )


def _named(chosen: Tensor) -> str:
    """The first of the rows that are chosen, and how many there are."""
    rows = chosen.nonzero().flatten().tolist()
    few = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
    return f"{len(rows):,} of {len(chosen):,} rows ({few})"


def fit_head(
    layer: nn.Linear,
    features: Tensor,
    targets: Tensor,
    weight_decay: float,
    max_iter: int,
    *,
    from_zero: bool = False,
) -> nn.Linear:
    """A head like this one in float32, fitted to features and classes from where it stands."""
    # Without drawing parameters: the caller's random numbers stay untouched.
    fitted: nn.Linear = skip_init(  # type: ignore[no-untyped-call]
        nn.Linear,
        *(layer.in_features, layer.out_features, layer.bias is not None),
        device=features.device,
    )
    with torch.no_grad():
        for parameter, values in zip(fitted.parameters(), layer.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(values) if from_zero else values)
    optimizer = torch.optim.LBFGS(
        fitted.parameters(), max_iter=max_iter, line_search_fn="strong_wolfe"
    )
    targets = targets.long()

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(fitted(features), targets)
        penalised = loss + 0.5 * weight_decay * fitted.weight.square().sum()
        penalised.backward()  # type: ignore[no-untyped-call]
        return penalised.item()

    # The caller may have gradients switched off.
    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return fitted


def head_losses(fitted: nn.Linear, features: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample under a head."""
    with torch.no_grad():
        return F.cross_entropy(fitted(features), targets.long(), reduction="none")


def write_head(layer: nn.Linear, fitted: nn.Linear) -> None:
    """Put the parameters of a fitted head into that of the model."""
    with torch.no_grad():
        for parameter, values in zip(layer.parameters(), fitted.parameters(), strict=True):
            parameter.copy_(values)
