"""Streams of datasets, made of others: with a task in them, or the same rows once more."""

import functools
from copy import copy
from typing import Any

import datasets
from datasets.iterable_dataset import ExamplesIterable
from torch.utils.data import get_worker_info

from flowdata.rows.examples import KeyedExamples, loses_rows, with_column
from flowdata.rows.lookup import Found, KeyedWeights, RowTask
from flowdata.rows.plain import require_new
from flowdata.table.loss_table import LossTable


def keyed_stream(stream: datasets.IterableDataset, task: RowTask) -> datasets.IterableDataset:
    """A stream of what a task makes of the rows of a stream.

    Raises:
        ValueError: for a stream that has the task's column already, or not its key.
    """
    if get_worker_info() is None:
        require_epochs()
    names = stream.column_names
    if names is not None and task.known.key not in names:
        raise ValueError(f"the stream has no column {task.known.key!r}, there is {names!s:.300}")
    require_new(task.column, names or ())
    source = vars(stream)["_ex_iterable"]
    return _made_of(stream, KeyedExamples(source, task), column=task.column)


def same_stream(stream: datasets.IterableDataset) -> datasets.IterableDataset:
    """Another stream of the same rows, in which no state was loaded."""
    same = _made_of(stream, vars(stream)["_ex_iterable"])
    same.set_epoch(stream.epoch)
    return same


def forgets_rows(stream: datasets.IterableDataset) -> bool:
    """Whether a stream loses rows when its state is loaded."""
    return loses_rows(vars(stream)["_ex_iterable"])


def _made_of(
    stream: datasets.IterableDataset, ex_iterable: Any, *, column: str | None = None
) -> datasets.IterableDataset:
    # As datasets' own `skip` and `take` do.
    own = vars(stream)
    info = own["_info"].copy()
    info.features = with_column(info.features, column)
    return datasets.IterableDataset(
        ex_iterable,
        info=info,
        split=own["_split"],
        formatting=own["_formatting"],
        distributed=copy(own["_distributed"]),
        token_per_repo_id=own["_token_per_repo_id"],
    )


@functools.cache
def require_epochs() -> None:
    """Make sure that this release of datasets tells the steps of a stream the epoch.

    Raises:
        RuntimeError: if it does not.
    """
    seen: list[int] = []

    class Seen(RowTask):
        def identity(self) -> dict[str, Any]:
            return {}

        def outcome(self, found: Found, epoch: int) -> Found:
            seen.append(epoch)
            return found

    table = LossTable.from_losses([1.0], keys=[0])
    task = Seen(KeyedWeights(table, None, "id", "raise", "raise"), size=1)
    source = ExamplesIterable(lambda: iter([(0, {"id": 0})]), {})
    try:
        stream = datasets.IterableDataset(KeyedExamples(source, task)).map(dict)
        for epoch in (0, 3):
            stream.set_epoch(epoch)
            list(stream)
    except Exception as error:
        raise RuntimeError(_unknown_release()) from error
    if seen != [0, 3]:
        raise RuntimeError(_unknown_release())


def _unknown_release() -> str:
    return (
        f"datasets {datasets.__version__} does not tell the steps of a stream their epoch as 4.8.5 "
        "to 5.2 do, so rows would be drawn alike in all epochs: install one of these"
    )
