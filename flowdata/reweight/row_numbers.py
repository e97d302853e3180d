"""Row numbers that do not identify rows: streams, and weights that were looked up by a count."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

_BY_KEY = (
    "look each weight up by a column that identifies the row, weight_of = dict(zip(keys, "
    "weights.values)) and stream.map(lambda row: {**row, '__weight__': "
    "float(weight_of[row['key']])}), and give reweight that stream alone; for tar shards use "
    "FlowShards(..., mode='reweight')"
)


def is_stream(dataset: Any) -> bool:
    """Whether samples come as they come, and not by their row number."""
    # datasets 5.2: an IterableDataset is torch's only from its first use with torch on.
    return isinstance(dataset, IterableDataset) or hasattr(dataset, "_ex_iterable")


def require_rows(dataset: Any) -> None:
    """Make sure that a weight for each row number can be given to a data set.

    Raises:
        TypeError: for a stream, a generator, and whatever else has no rows by number.
    """
    numbered = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if is_stream(dataset) or not numbered:
        raise TypeError(
            f"{type(dataset).__name__} has no rows by number, so n weights cannot be told apart: "
            "which sample comes when depends on shards, shuffling, workers and ranks. Its samples "
            f"have to bring their weights: {_BY_KEY}"
        )


def refuse_counted_rows(stream: Any) -> None:
    """Make sure that a stream of datasets does not number its rows as they come.

    Raises:
        TypeError: for ``map(..., with_indices=True)``, ``add_column``, and columns that are
            joined by position.
    """
    for stage in _stages_of(getattr(stream, "_ex_iterable", None)):
        # datasets 5.2, iterable_dataset.py: `MappedExamplesIterable` counts the rows that reach
        # it, in this worker of this rank. A filter may do so, but puts no number into a row.
        names = [base.__name__ for base in type(stage).__mro__]
        if "FilteredExamplesIterable" in names:
            continue
        counts = "MappedExamplesIterable" in names and getattr(stage, "with_indices", False)
        if counts or "HorizontallyConcatenatedMultiSourcesExamplesIterable" in names:
            how = (
                "numbers its rows, by map(..., with_indices=True) or add_column"
                if counts
                else "has columns that are joined by position, by concatenate_datasets(axis=1)"
            )
            raise TypeError(
                f"this stream {how}: such a number counts what one worker of one rank sees after "
                "shuffling, and is not the row's own, so weights looked up by it would be those of "
                f"other rows. Instead {_BY_KEY}"
            )


def _stages_of(stage: Any) -> Iterator[Any]:
    """A stage of a stream of datasets and those before it; none where they are not as expected."""
    if stage is None:
        return
    yield stage
    before = [getattr(stage, "ex_iterable", None), *(getattr(stage, "ex_iterables", None) or ())]
    for each in before:
        yield from _stages_of(each)
