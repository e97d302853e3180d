"""Weights that do not fit what is drawn by them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flowdata.core.weights import FlowWeights, HasWeights, as_weights
from flowdata.errors import MismatchError, warn
from flowdata.guards.lengths import other_alpha


def check_drawn(
    dataset: Any,
    weights: FlowWeights | HasWeights | ArrayLike,
    drawn_by: FlowWeights,
    alpha: float,
) -> None:
    """Make sure that a sampler's weights fit the data that is drawn from, as far as it is known.

    Args:
        dataset: the data, or None.
        weights: as they were given.
        drawn_by: the same after ``alpha``.
        alpha: see `EpochPlan`.

    Raises:
        TypeError, MismatchError: where they do not.
    """
    if dataset is not None:
        require_rows(dataset)
        require_length(dataset, len(drawn_by))
        require_alpha(dataset, weights, alpha)
    warn_of_zeros(drawn_by, alpha)


def require_rows(dataset: Any) -> None:
    """Make sure that a data set has rows that can be counted.

    Raises:
        TypeError: for a stream, whose rows nobody can count.
    """
    try:
        len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(
            f"{type(dataset).__name__} has no length: a sampler draws rows by number, of a "
            "map-style data set; for tar shards use FlowShards"
        ) from error


def require_length(dataset: Any, weights: int) -> None:
    """Make sure that there is one weight for each row of a data set.

    Raises:
        MismatchError: saying how many there are of each.
    """
    if len(dataset) != weights:
        raise MismatchError(
            f"the data set has {len(dataset):,} rows, but there are {weights:,} weights; score "
            "this data set, or pass the one that was scored"
        )


def require_alpha(
    dataset: Any, weights: FlowWeights | HasWeights | ArrayLike, alpha: float
) -> None:
    """Make sure that rows that `reweight` made are drawn by the rest of their weights.

    Raises:
        MismatchError: where the same weights are drawn by another alpha than was weighted for.
    """
    # Weights are made of a table only where they are needed.
    weighted = hasattr(type(dataset), "reweighted_for")
    covered = other_alpha(dataset, as_weights(weights), alpha) if weighted else None
    if covered is None:
        return
    raise MismatchError(
        f"the losses of these rows are weighted for draws of alpha={covered}, and they would be "
        f"drawn by the same weights with alpha={alpha}, so that part of them counts twice, or not "
        "at all: give reweight and what draws the same alpha, reweight(rows, weights, alpha=a) and "
        "FlowSampler or FlowDataset(..., weights, alpha=a); to reweight alone, draw by no weights"
    )


def warn_of_zeros(weights: FlowWeights, alpha: float) -> None:
    """Warn where draws that do not depend on weights still leave out rows of weight 0.

    Args:
        weights: after ``alpha``.
        alpha: what they are drawn by.
    """
    kept = int(np.count_nonzero(weights.relative))
    if alpha == 0.0 and kept < len(weights):
        warn(
            f"alpha=0 draws the {kept:,} rows of positive weight alike, and never the other "
            f"{len(weights) - kept:,}, so reweight(..., alpha=0) would weight too much: to "
            "reweight alone leave the sampler out, and pass over all rows (shuffle=True); to draw "
            "some rows alike give a mask of them as weights, without alpha"
        )
