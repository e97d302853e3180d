"""What a head sees of each row: the model runs once, whatever is fitted to that then."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.language.head import vocabulary_of
from flowdata.scoring.language.model_inputs import accepted_names
from flowdata.scoring.language.padded_pass import pad_of, padded_places
from flowdata.scoring.language.text_rows import CollateText, TextBatch
from flowdata.scoring.models.batch_dependence import require_lasting_attention, rotary_limit
from flowdata.scoring.models.classification import LossFunction
from flowdata.scoring.models.fitted_rows import HashingCollate
from flowdata.scoring.models.forward import predict
from flowdata.scoring.models.inference import read_these, require_read, to_device
from flowdata.scoring.models.loss_formulas import IGNORED
from flowdata.scoring.models.row_batches import split_batch

CLASSES = "cross_entropy"
"""The loss of which targets are class indices."""

_NAMED = 5
# Features of padded rows differ from those of rows alone by rounding.
_SHARE = 1e-4


def hashing_collate(
    model: nn.Module, collate_fn: Callable[[list[Any]], Any] | None
) -> HashingCollate:
    """What makes batches of rows as `score` does, by default: of tokens, padded ones."""
    known = (accepted_names(model), pad_of(model), IGNORED, vocabulary_of(model))
    return HashingCollate(collate_fn or CollateText(*known))


def read_first_rows(dataset: Any, size: int, collate: HashingCollate) -> Any:
    """Hashes and a batch of the first rows."""
    first = np.arange(min(size, len(dataset)))
    return next(read_these(dataset, [first], collate_fn=collate, num_workers=0))


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
    read_first: Callable[[], Any],
) -> Iterator[Features]:
    """Run a model in evaluation mode over rows that `HashingCollate` made batches of.

    Args:
        model: backbone and head.
        head: the part of it that is fitted.
        batches: numbers of rows, rising, with hashes and a batch of these.
        device: where batches go.
        loss: that the head is fitted to.
        read_first: gives the same for the first rows of the data set, by which all who share
            these rows decide alike.

    Raises:
        TypeError, ValueError: for a model or a batch to which no head can be fitted; rows are
            named.
    """
    require_lasting_attention(model)
    with _Backbone(model, head, device, read_first) as backbone:
        is_first = True
        for rows, (hashes, batch) in batches:
            require_read(batch, rows)
            parts: list[Features] = []
            for places, part in split_batch(rows.size, batch):
                for some, found in backbone.run(rows[places], part):
                    if is_first:
                        _require_head_last(found.output, found.logits, loss)
                    is_first = False
                    # Fitting needs the precision, whatever the model computes in.
                    features = np.array(found.features.float().cpu().numpy())
                    targets = _as_array(found.target)
                    _require_targets(targets, some, found.output.shape[-1], loss)
                    _require_finite(features, some)
                    parts.append(Features(some, features, targets, hashes[: 0 if parts else None]))
            yield sort_features(concatenate_features(parts))


class _Found(NamedTuple):
    """What a head sees and gives, and the model gives, for some rows."""

    features: Tensor
    output: Tensor
    logits: Tensor
    target: Tensor


class _Backbone:
    """Runs a model, and takes what goes into its head, wherever in the model the head is.

    Rows of tokens are padded where that does not move features of the first rows.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        device: torch.device,
        read_first: Callable[[], Any],
    ) -> None:
        self._model, self._head, self._device = model, head, device
        self._read_first = read_first
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._has_decided = False
        self._pads: bool | None = None

    def __enter__(self) -> "_Backbone":
        self._hook = self._head.register_forward_hook(
            lambda _, inputs, output: self._seen.append((inputs[0], output))
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def run(
        self, rows: NDArray[np.int64], batch: Any
    ) -> Iterator[tuple[NDArray[np.int64], _Found]]:
        """What is found of these rows, or of those of each length in turn."""
        if not isinstance(batch, TextBatch) or not batch.of_tokens:
            yield rows, self._of(batch, rows.size)
            return
        if not self._has_decided:
            is_first = np.array_equal(rows, np.arange(rows.size))
            # What is wrong with the first rows is said by who has them.
            with contextlib.suppress(TypeError, ValueError):
                self._pads = self._is_unseen(batch if is_first else self._read_first()[1])
            self._has_decided = True
        # First rows of one length decide nothing.
        if self._is_unseen(batch) if self._pads is None else self._pads:
            yield rows, self._of(batch, rows.size)
            return
        for places, part in batch.alike():
            yield rows[places], self._of(part, len(places))

    def _of(self, batch: Any, rows: int) -> _Found:
        self._seen.clear()
        logits, target = predict(self._model, to_device(batch, self._device))
        if len(self._seen) == 1:
            self._seen[:] = [_of_sequences(*self._seen[0], logits)]
        _require_one_vector_each(self._seen, rows, getattr(self._head, "in_features", None))
        ((inputs, output),) = self._seen
        self._seen.clear()
        return _Found(inputs, output, logits, target)

    def _is_unseen(self, batch: Any) -> bool | None:
        """Whether padding moves no features of a batch; None where there is none."""
        if not isinstance(batch, TextBatch) or not batch.of_tokens:
            return None
        if rotary_limit(self._model) is not None:
            return False
        padded = self._of(batch, batch.sizes.size).features
        return all(
            _are_alike(padded[place], self._of(batch.cut([place]), 1).features[0])
            for place in padded_places(batch.sizes.max() - batch.sizes)
        )


def _of_sequences(inputs: Any, output: Any, logits: Tensor) -> tuple[Any, Any]:
    """Of sequences that a head sees, the vectors whose outputs are the logits of the rows.

    transformers 5.23, GenericForSequenceClassification.forward: a head of all tokens, of which that
    of the last one is taken. All as it is, where it is not known which was.
    """
    if getattr(inputs, "ndim", 0) != 3 or output.ndim != 3 or logits.ndim != 2:
        return inputs, output
    if output.shape[::2] != logits.shape:
        return inputs, output
    is_taken = (output.float() == logits[:, None]).all(dim=-1)
    one_each = torch.arange(len(inputs), device=inputs.device), is_taken.int().argmax(dim=1)
    # Of a head that is zero, all outputs are alike.
    others = is_taken & (inputs != inputs[one_each][:, None]).any(dim=-1)
    if not is_taken.any(dim=1).all() or others.any():
        return inputs, output
    return inputs[one_each], output[one_each]


def _are_alike(padded: Tensor, alone: Tensor) -> bool:
    share = max(4 * torch.finfo(alone.dtype).eps, _SHARE)
    # What is not finite is said where it is met.
    return not bool((padded - alone).float().norm() > share * alone.float().norm())


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
