"""Advice where a DataLoader's data set has another number of rows than there are weights."""

from collections.abc import Sized

from flowdata.errors import warn
from flowdata.guards.stack import frames
from flowdata.guards.switch import enabled

# torch 2.13, torch/utils/data: an iterator of a DataLoader iterates over its `BatchSampler`, which
# iterates over the sampler; it keeps the loader's data set as `_dataset`. torchdata's and
# accelerate's do the same. Whatever else iterates over a sampler may count other things than rows.
_LOADERS = ("torch.utils.data.", "torchdata.stateful_dataloader.", "accelerate.data_loader")


def advise_length(weights: int) -> None:
    """Warn where a DataLoader that begins to draw has a data set of another length."""
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
        # A view of draws has a length of its own.
        rows = _length(dataset)
        if rows is not None and rows != weights:
            warn(
                f"the sampler has {weights:,} weights, but the data set of the DataLoader has "
                f"{rows:,} rows: {_consequence(rows, weights)}; score this data set, or give the "
                "DataLoader the one that was scored"
            )
        return


def _length(dataset: object) -> int | None:
    if type(dataset).__module__.startswith("flowdata.map_style") or not isinstance(dataset, Sized):
        return None
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _consequence(rows: int, weights: int) -> str:
    if rows > weights:
        return f"rows from {weights:,} on are never drawn"
    return f"there is no row {rows:,} to be drawn"
