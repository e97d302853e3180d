"""score: one pass of the pre-trained model over the data set."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.errors import FlowDataWarning, InvalidLossError
from flowdata.fingerprint import reads_the_same_twice
from flowdata.losses import LossTable
from flowdata.scoring.classification import LOSSES, LossFunction
from flowdata.scoring.inference import batches, device_of, evaluating
from flowdata.weights import OnInvalid


def score(
    model: nn.Module,
    dataset: Any,
    loss: str | LossFunction = "classification",
    *,
    batch_size: int = 64,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    on_invalid: OnInvalid = "raise",
    model_name: str | None = None,
    progress: bool = True,
) -> LossTable:
    """The loss of every sample under the model as it is: FLOW's f_i(theta*), in one pass.

    The model runs in evaluation and inference mode and gets its modes back. Give the data set
    without training augmentation: a loss under a random crop makes the weight a draw of noise.
    A task-specific head that is new gives meaningless losses: train it first, `linear_probe`.

    Args:
        model: the pre-trained model, on the device where it shall run.
        dataset: map-style data set of n samples.
        loss: "classification" (by the type of the target), "cross_entropy", "bce", "mse", or a
            function (model, batch) -> losses of shape (batch size,).
        batch_size: samples per forward pass.
        collate_fn: makes a batch of samples; default torch's.
        num_workers: DataLoader workers.
        device: where batches go; default the device of the model's parameters.
        on_invalid: "raise" stops at the first NaN, infinite or negative loss; "drop" keeps it in
            the table as NaN, to be given weight 0 by ``table.weights(on_invalid="drop")``.
        model_name: kept as provenance.
        progress: show a progress bar with samples per second and remaining time.

    Returns:
        A LossTable of n rows in the order of the data set.

    Raises:
        InvalidLossError: naming the rows of invalid losses.
        TypeError: for a loader, a stream, or a batch the loss does not understand.
        ValueError: for empty data, an unknown loss, or losses of the wrong shape.
    """
    function = _resolve(loss)
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    losses: NDArray[np.float32] | None = None
    with evaluating(model):
        for start, size, batch in batches(
            dataset,
            device=device_of(model, device),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=collate_fn,
            progress=progress,
            what="scoring",
        ):
            if losses is None:
                losses = np.empty(len(dataset), dtype=np.float32)
            values = _as_losses(function(model, batch), size)
            losses[start : start + size] = _validated(values, start, on_invalid)
    assert losses is not None
    if not reads_the_same_twice(dataset):
        warnings.warn(
            "row 0 reads differently each time, so its loss is a draw of noise: score the data "
            "set without random augmentation",
            FlowDataWarning,
            stacklevel=2,
        )
    return LossTable.from_losses(
        losses,
        dataset=dataset,
        model=model,
        loss=name,
        model_name=model_name or type(model).__name__,
        dtype=_dtype_of(model),
    )


def _resolve(loss: str | LossFunction) -> LossFunction:
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise ValueError(
            f"loss must be one of {sorted(LOSSES)} or a function (model, batch) -> losses, "
            f"got {loss!r}"
        )
    return LOSSES[loss]


def _as_losses(values: Tensor, size: int) -> NDArray[np.float32]:
    if values.shape != (size,):
        raise ValueError(
            f"the loss function returned shape {tuple(values.shape)} for a batch of {size} "
            f'samples, ({size},) is needed: use reduction="none" and average per sample'
        )
    return values.float().cpu().numpy()


def _validated(
    losses: NDArray[np.float32], start: int, on_invalid: OnInvalid
) -> NDArray[np.float32]:
    invalid = ~(np.isfinite(losses) & (losses >= 0))
    if not invalid.any():
        return losses
    if on_invalid == "raise":
        rows = (np.flatnonzero(invalid) + start).tolist()
        raise InvalidLossError(
            f"NaN, infinite or negative losses {losses[invalid][:5].tolist()} at rows {rows[:5]}"
            f"{' and more' if len(rows) > 5 else ''}; look at these samples, or pass "
            'on_invalid="drop" to score on and give them weight 0'
        )
    return np.where(invalid, np.float32(np.nan), losses)


def _dtype_of(model: nn.Module) -> str | None:
    first = next(model.parameters(), None)
    return None if first is None else str(first.dtype).removeprefix("torch.")
