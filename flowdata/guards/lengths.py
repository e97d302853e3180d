"""Advice where a DataLoader's data set does not fit the weights that it is drawn by."""

from collections.abc import Sized

from flowdata.core.weights import FlowWeights
from flowdata.errors import warn
from flowdata.guards.stack import frames
from flowdata.guards.switch import enabled

# torch 2.13, torch/utils/data: an iterator of a DataLoader iterates over its `BatchSampler`, which
# iterates over the sampler; it keeps the loader's data set as `_dataset`. torchdata's and
# accelerate's do the same. Whatever else iterates over a sampler may count other things than rows.
_LOADERS = ("torch.utils.data.", "torchdata.stateful_dataloader.", "accelerate.data_loader")


def advise_rows(weights: FlowWeights) -> None:
    """Warn where a DataLoader that begins to draw has a data set of another length, or weighted.

    Args:
        weights: what rows are drawn by, after ``alpha``.
    """
    if not enabled():
        return
    for module, _, frame in frames():
        if module.startswith("flowdata."):
            continue
        if not module.startswith(_LOADERS):
            return
        dataset = getattr(frame.f_locals.get("self"), "_dataset", None)
        if dataset is None:
            continue
        if type(dataset).__module__.startswith("flowdata.map_style"):
            kind = type(dataset).__name__
            warn(
                f"the sampler draws rows, but the items of the {kind} that the DataLoader has are "
                "draws already: give it the data set in there, or the DataLoader no sampler of "
                "flowdata"
            )
            return
        rows = _length(dataset)
        if rows is not None and rows != len(weights):
            warn(
                f"the sampler has {len(weights):,} weights, but the data set of the DataLoader has "
                f"{rows:,} rows: {_consequence(rows, len(weights))}; score this data set, or give "
                "the DataLoader the one that was scored"
            )
        elif other_alpha(dataset, weights, alpha=1.0) is not None:
            warn(
                "rows are drawn by the weights that reweight multiplies into their losses, so they "
                "count twice: leave the sampler out (shuffle=True), or split the weights, by "
                "reweight(..., alpha=a) and FlowSampler(..., alpha=a)"
            )
        return


def other_alpha(dataset: object, weights: FlowWeights, alpha: float) -> float | None:
    """The alpha of draws that rows were weighted for, if they are drawn by another one.

    Args:
        dataset: the rows.
        weights: that they are drawn by to the power of ``alpha``; None is given for other weights
            than those of their losses, and for equal ones.
        alpha: of the draws.
    """
    # Of the class: a data set's own attributes may be anything.
    if not hasattr(type(dataset), "reweighted_for") or weights.total == len(weights):
        return None
    weighted_for: tuple[str, float] | None = getattr(dataset, "reweighted_for", None)
    if weighted_for is None or weighted_for[1] == alpha:
        return None
    return weighted_for[1] if weighted_for[0] == weights.fingerprint else None


def _length(dataset: object) -> int | None:
    if not isinstance(dataset, Sized):
        return None
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _consequence(rows: int, weights: int) -> str:
    if rows > weights:
        return f"rows from {weights:,} on are never drawn"
    return f"there is no row {rows:,} to be drawn"
