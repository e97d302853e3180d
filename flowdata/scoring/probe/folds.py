"""Folds of rows: each is scored by a head that was fitted on the others."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.permutation import KeyedPermutation, Purpose
from flowdata.scoring.models.classification import LossFunction
from flowdata.scoring.probe.features import CLASSES


def assign_folds(classes: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row: folds differ by one row at most, in all and in each class.

    Raises:
        ValueError: naming the rows that are the only ones of their class.
    """
    _, first, counts = np.unique(classes, return_index=True, return_counts=True)
    if (alone := first[counts == 1]).size:
        known = ", ".join(f"row {row} (class {classes[row]})" for row in sorted(alone.tolist())[:5])
        raise ValueError(
            f"{alone.size:,} classes have one row alone: {known}{', ...' if alone.size > 5 else ''}"
            ". A head that has not seen it does not know its class: leave such rows out, or give "
            "their classes more"
        )
    return _spread(classes, folds, seed)


def _spread(strata: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    size = strata.size
    order = KeyedPermutation(size, seed=seed, epoch=0, purpose=Purpose.FOLDS)(np.arange(size))
    # Class by class, in a random order inside: every `folds`-th row is of the same fold.
    laid = order[np.argsort(strata[order], kind="stable")]
    found = np.empty(size, dtype=np.int64)
    found[laid] = np.arange(size) % folds
    return found


def folds_of(
    targets: NDArray[Any], loss: str | LossFunction, folds: int, seed: int
) -> NDArray[np.int64]:
    """The fold of each row; folds are alike in classes, or in which labels go together.

    Args:
        targets: shape (n, ...).
        loss: of a head; it says what targets are.
        folds: how many.
        seed: of the random order.
    """
    if loss == CLASSES:
        return assign_folds(targets.astype(np.int64), folds, seed)
    if loss != "bce" and np.issubdtype(targets.dtype, np.floating):
        return _spread(np.zeros(len(targets), dtype=np.int64), folds, seed)
    flat = targets.reshape(len(targets), -1)
    return _spread(np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1), folds, seed)
