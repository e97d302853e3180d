"""Per-sample losses of models that map an input to logits or values."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from flowdata.scoring.inference import to_device
from flowdata.scoring.scored_rows import ScoredRows

_IGNORED = -100

LossFunction: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> losses of shape (batch size,); the batch is what the collate_fn made."""


def classification(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy, binary cross-entropy or squared error, by the type of the target.

    Class indices (integers, one axis fewer than the logits) mean cross-entropy; booleans, or
    integers of the shape of the logits, mean binary cross-entropy with logits; floats mean
    squared error. Further axes (pixels, labels, outputs) are averaged.
    """
    output, target = predict(model, batch)
    if target.is_floating_point():
        return _mse(output, target)
    if target.dtype == torch.bool or target.shape == output.shape:
        return _bce(output, target)
    return _cross_entropy(output, target)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of logits (B, C, ...) with class indices (B, ...) or probabilities."""
    return _cross_entropy(*predict(model, batch))


def bce(model: nn.Module, batch: Any) -> Tensor:
    """Binary cross-entropy of logits with 0/1 targets of the same shape, averaged per sample."""
    return _bce(*predict(model, batch))


def mse(model: nn.Module, batch: Any) -> Tensor:
    """Squared error of outputs and targets of the same shape, averaged per sample."""
    return _mse(*predict(model, batch))


LOSS_FUNCTIONS: dict[str, LossFunction] = {
    "classification": classification,
    "cross_entropy": cross_entropy,
    "bce": bce,
    "mse": mse,
}


@dataclass(frozen=True)
class FunctionPass:
    """Scores rows by a loss function; the rows that are read at a time are a batch."""

    function: LossFunction
    model: nn.Module
    device: torch.device
    rows_per_read: int
    collate: Callable[[list[Any]], Any] | None = None

    def score_rows(self, rows: NDArray[np.int64], batch: Any) -> Iterator[ScoredRows]:
        """Losses of one batch.

        Raises:
            ValueError: when the function does not return one loss a row.
        """
        losses = torch.as_tensor(self.function(self.model, to_device(batch, self.device)))
        if losses.shape != (rows.size,):
            raise ValueError(
                f"the loss function returned shape {tuple(losses.shape)} for a batch of "
                f'{rows.size} samples, ({rows.size},) is needed: use reduction="none" and '
                "average per sample"
            )
        # A copy: a loss function may give its own buffer, to be filled anew by the next batch.
        yield ScoredRows(rows, losses.float().cpu().numpy().copy())


def predict(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The output and the target of a batch: (input, target), or a dict with "labels".

    Raises:
        TypeError: for a batch of another kind; then a loss function of one's own is needed.
    """
    match batch:
        case (inputs, target):
            output = model(inputs)
        case Mapping() if "labels" in batch:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            output, target = model(**inputs), batch["labels"]
        case _:
            raise TypeError(
                f"a batch must be (input, target) or a dict with 'labels', got {type(batch)}; "
                "pass loss=function(model, batch) for any other kind"
            )
    # Models of transformers give an output object (ModelOutput), others the tensor itself.
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        raise TypeError(
            f"model output and target must be tensors, got {type(logits)} and {type(target)}; "
            "pass loss=function(model, batch) for any other kind"
        )
    return logits.float(), target


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point():
        return _per_sample(F.cross_entropy(output, target.to(output.dtype), reduction="none"))
    # F.cross_entropy (torch 2.13) takes int64 and uint8 only, and data sets have any integers.
    target = target.long()
    losses = F.cross_entropy(output, target, reduction="none", ignore_index=_IGNORED)
    counted = (target != _IGNORED).reshape(len(target), -1).sum(dim=1)
    # No target at all is 0 / 0: NaN, an invalid loss, not the smallest one.
    return losses.reshape(len(target), -1).sum(dim=1) / counted


def _bce(output: Tensor, target: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none")
    return _per_sample(loss)


def _mse(output: Tensor, target: Tensor) -> Tensor:
    # (B, 1) minus (B,) would broadcast to (B, B).
    if output.shape != target.shape:
        raise ValueError(
            f"squared error needs outputs and targets of one shape, got {tuple(output.shape)} "
            f"and {tuple(target.shape)}"
        )
    return _per_sample((output - target.to(output.dtype)).square())


def _per_sample(losses: Tensor) -> Tensor:
    return losses.reshape(losses.shape[0], -1).mean(dim=1)
