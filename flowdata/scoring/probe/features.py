"""What a head sees of each row: the model runs once, whatever is fitted to that then."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.models.classification import LossFunction
from flowdata.scoring.models.forward import predict
from flowdata.scoring.models.inference import to_device

CLASSES = "cross_entropy"
"""The loss of which targets are class indices."""

_NAMED = 5


@dataclass(frozen=True)
class Features:
    """What a head sees of some rows.

    Attributes:
        rows: row numbers in the data set, int64, shape (m,).
        features: float32, shape (m, d).
        targets: shape (m, ...).
        hashes: of the rows that have content, uint64, in no order.
    """

    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    targets: NDArray[Any]
    hashes: NDArray[np.uint64]

    def __len__(self) -> int:
        return self.rows.size


def concatenate_features(parts: Sequence[Features]) -> Features:
    """All rows of several, in their order.

    Raises:
        ValueError: for targets of several shapes.
    """
    columns = ([getattr(part, name) for part in parts] for name in Features.__annotations__)
    rows, features, targets, hashes = columns
    if len(shapes := {values.shape[1:] for values in targets}) > 1:
        raise ValueError(f"targets of one shape a row are needed, got {sorted(shapes)}")
    return Features(*map(np.concatenate, (rows, features, targets, hashes)))


def sort_features(found: Features) -> Features:
    """The same by row number."""
    order = np.argsort(found.rows)
    if np.array_equal(order, np.arange(order.size)):
        return found
    return Features(found.rows[order], found.features[order], found.targets[order], found.hashes)


def features_of_batches(
    model: nn.Module,
    head: nn.Module,
    batches: Iterable[tuple[NDArray[np.int64], Any]],
    device: torch.device,
    loss: str | LossFunction,
) -> Iterator[Features]:
    """Run a model in evaluation mode over rows that `HashingCollate` made batches of.

    Raises:
        TypeError, ValueError: for a model or a batch to which no head can be fitted; rows are
            named.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    # What goes into the head is the backbone's output, wherever in the model the head is.
    hook = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    is_first = True
    try:
        for rows, (hashes, batch) in batches:
            logits, target = predict(model, to_device(batch, device))
            _require_one_vector_each(seen, rows.size, getattr(head, "in_features", None))
            ((inputs, output),) = seen
            if is_first:
                _require_head_last(output, logits, loss)
            # Fitting needs the precision, whatever the model computes in.
            features = np.array(inputs.float().cpu().numpy())
            targets = _as_array(target)
            _require_targets(targets, rows, output.shape[-1], loss)
            _require_finite(features, rows)
            yield Features(rows, features, targets, hashes)
            is_first = False
            seen.clear()
    finally:
        hook.remove()


def _as_array(target: Tensor) -> NDArray[Any]:
    # numpy has no bfloat16.
    target = target.float() if target.is_floating_point() else target
    return np.array(target.cpu().numpy())


def _require_one_vector_each(seen: Sequence[tuple[Any, Any]], rows: int, width: int | None) -> None:
    saw = [tuple(getattr(inputs, "shape", ())) for inputs, _ in seen]
    fits = len(saw) == 1 and len(saw[0]) == 2 and saw[0] == (rows, width or saw[0][1])
    if not fits:
        raise ValueError(
            "the head must see one feature vector per sample, it saw "
            f"{', '.join(map(str, saw)) or 'nothing'} for {rows} samples"
        )


def _require_head_last(output: Tensor, logits: Tensor, loss: str | LossFunction) -> None:
    """Refuse a model that makes something else of what its head gives."""
    if output.shape[1:] == (1,) and logits.ndim == 1:
        # A model that leaves out the axis of its one number.
        logits = logits[:, None]
    ours, its = output.float(), logits
    if loss == CLASSES and output.ndim == 2:
        # What log-softmax does not change makes no difference to cross-entropy.
        ours, its = ours.log_softmax(dim=1), its.log_softmax(dim=-1)
    same = output.shape == logits.shape and torch.allclose(
        ours, its, rtol=1e-3, atol=1e-3, equal_nan=True
    )
    if not same:
        raise ValueError(
            "the model changes what its head gives, so that a head that is fitted alone would not "
            f"fit the model: outputs of shape {tuple(output.shape)} and {tuple(logits.shape)}. "
            "Name the last linear layer, of a model that gives logits"
        )


def _require_targets(
    targets: NDArray[Any], rows: NDArray[np.int64], outputs: int, loss: str | LossFunction
) -> None:
    """Refuse targets that are no classes of the head, or no numbers."""
    if loss != CLASSES:
        bad = ~np.isfinite(targets).reshape(rows.size, -1).all(axis=1)
        if bad.any():
            raise ValueError(f"NaN or infinite targets in {named(rows[bad])}: leave such rows out")
        return
    if not np.issubdtype(targets.dtype, np.integer) or targets.ndim != 1:
        raise TypeError(
            f"targets must be class indices of shape (n,), got {targets.dtype} of shape "
            f'{targets.shape}; loss="bce" is for several labels a row, loss="mse" for numbers'
        )
    none = (targets < 0) | (targets >= outputs)
    if none.any():
        raise ValueError(
            f"class indices run from {int(targets.min())} to {int(targets.max())}, the head has "
            f"{outputs} outputs: no class in {named(rows[none])}; leave such rows out"
        )


def _require_finite(features: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    bad = ~np.isfinite(features).all(axis=1)
    if not bad.any():
        return
    whole = bad.all() and rows.size > 1
    advice = "the model has diverged" if whole else "look at these samples, and at the model"
    all_ = " (all of their batch)" if whole else f", and not in {(~bad).sum():,} others of a batch"
    raise ValueError(
        f"the head sees NaN or infinite features in {named(rows[bad])}{all_}: {advice}"
    )


def named(rows: NDArray[np.int64]) -> str:
    """The first of some rows, and how many there are."""
    few = ", ".join(map(str, rows[:_NAMED].tolist()))
    if rows.size == 1:
        return f"row {few}"
    return f"{rows.size:,} rows ({few}{', ...' if rows.size > _NAMED else ''})"
