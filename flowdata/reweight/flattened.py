"""Batches whose items follow one another in a single row, as samples of a pack do."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_IDS, _POSITIONS = "input_ids", "position_ids"
_FIRST_CLASS = 0


def spans_in_row(batch: Any, items: Sequence[Any]) -> list[slice] | None:
    """Where each of several items is in the one row of a batch; None if it has other rows.

    An item is there with all its tokens, or the first of them, where the batch's ``position_ids``
    say where the next begins. What follows the last item is padding.

    Args:
        batch: what a collate function made.
        items: what it was given: rows of tokens, or packs of them.
    """
    row = _row_of(batch, _IDS)
    if row is None or len(items) < 2:
        return None
    if not all(isinstance(item, Mapping) and _IDS in item for item in items):
        return None
    ids = [_flat(item[_IDS]) for item in items]
    spans = _spans(_row_of(batch, _POSITIONS), items, ids)
    if len(spans) != len(ids) or spans[-1].stop > row.size:
        return None
    found = all(
        span.stop - span.start <= own.size
        and np.array_equal(row[span], own[: span.stop - span.start])
        for span, own in zip(spans, ids, strict=True)
    )
    return spans if found else None


def weights_of_row(
    target: Any, weights: Sequence[Any], names: Sequence[Any], spans: Sequence[slice]
) -> Tensor:
    """Weights for a target of shape (1, T), of items that follow one another in it: shape (1, T).

    Args:
        target: the labels.
        weights: of each item: a number, or those of its labels that are learned.
        names: of the items, for errors.
        spans: where each item is.

    Raises:
        ValueError: for a target of another shape, or with another number of labels than of weights.
    """
    if not isinstance(target, Tensor) or target.ndim != 2 or target.shape[0] != 1:
        raise ValueError(
            f"the {len(spans)} samples of the batch are in one row, so their target needs the "
            f"shape (1, T), got {tuple(getattr(target, 'shape', ()))}"
        )
    made = torch.zeros(target.shape, dtype=torch.float32)
    for number, (span, weight) in enumerate(zip(spans, weights, strict=True)):
        if not isinstance(weight, np.ndarray):
            made[0, span] = weight
            continue
        places = (target[0, span.start + 1 : span.stop] >= _FIRST_CLASS).nonzero()[:, 0]
        if places.numel() != len(weight):
            raise other_labels(names[number], places.numel(), len(weight))
        made[0, places + span.start + 1] = torch.from_numpy(weight)
    return made


def other_labels(name: Any, labels: int, weights: int) -> ValueError:
    """What is wrong with a row whose labels, in the batch, are more or fewer than its weights."""
    return ValueError(
        f"row {name} has {labels:,} labels that are learned in the batch, but weights of "
        f"{weights:,} response tokens: it was scored with other labels or another length, or the "
        "collate_fn changes its labels"
    )


def _spans(
    positions: NDArray[Any] | None, items: Sequence[Any], ids: list[NDArray[Any]]
) -> list[slice]:
    """Of each item from its first token on; fewer than items where they are not to be found."""
    if positions is None:
        stops = np.cumsum([own.size for own in ids]).tolist()
        return [slice(start, stop) for start, stop in itertools.pairwise([0, *stops])]
    starts = np.append(np.flatnonzero(positions == positions[0]), positions.size)
    samples = np.cumsum([0, *(_samples_in(item) for item in items)])
    if samples[-1] >= starts.size:
        return []
    bounds = starts[samples].tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def _samples_in(item: Mapping[str, Any]) -> int:
    """How many samples a pack has; 1 for any other row."""
    if item.get(_POSITIONS) is None:
        return 1
    positions = _flat(item[_POSITIONS])
    return int(np.count_nonzero(positions == positions[0])) if positions.size else 1


def _row_of(batch: Any, name: str) -> NDArray[Any] | None:
    part = batch.get(name) if isinstance(batch, Mapping) else None
    if not isinstance(part, Tensor) or part.ndim != 2 or part.shape[0] != 1 or not part.numel():
        return None
    return part[0].cpu().numpy()


def _flat(values: Any) -> NDArray[Any]:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
