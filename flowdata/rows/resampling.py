"""resample_rows: a stream that drops and repeats rows, found by key."""

import sys
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from numpy.typing import ArrayLike
from torch.utils.data import IterableDataset

from flowdata.core.plan import EpochSize, Scheme
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.rows.lookup import KeyedWeights, OnMismatch, RowTask, Table
from flowdata.rows.plain import KeyedRows
from flowdata.rows.tasks import Draws


def resample_rows(
    stream: Iterable[dict[str, Any]],
    table: Table,
    weights: FlowWeights | HasWeights | ArrayLike | None = None,
    *,
    key: str | None = None,
    seed: int = 0,
    epoch_size: EpochSize = "full",
    scheme: Scheme = "systematic",
    alpha: float = 1.0,
    window: int = 1000,
    on_missing: OnMismatch = "raise",
    on_repeated: OnMismatch = "raise",
) -> Any:
    """A stream in which each row comes as often as it is drawn.

    How often is a pure function of (seed, epoch, weights), that of `EpochPlan.counts`: over all
    workers and ranks together, however the stream is sharded, split and shuffled, before or after.
    The epoch is that of ``set_epoch``, as for all that datasets does; without it each pass is
    epoch 0. A ``datasets.IterableDataset`` stays one, with all its methods, types and format; of
    any other iterable of dicts comes a torch IterableDataset with ``set_epoch``, ``state_dict``
    and ``load_state_dict``. States go on at any row.

    Args:
        stream: a ``datasets.IterableDataset``, a torch IterableDataset of dicts, or any iterable
            of them.
        table: a loss table whose rows have keys, or its path.
        weights: default those of the table.
        key: the column of the stream that has the keys; default the one that the table was scored
            with.
        seed, epoch_size, scheme, alpha: see `EpochPlan`.
        window: rows that are read ahead, whose draws come out in a random order: so the copies of a
            row are apart. 1 leaves all rows in their order.
        on_missing: "drop" leaves out rows whose key the table does not have, and warns at the end
            of the pass; the others are drawn as often as ever.
        on_repeated: the same of rows whose key has come before in what one process reads.

    Raises:
        InvalidLossError: for weights that cannot be sampled.
        MismatchError: for weights of another length, a table without keys, and, in the pass and
            naming them, for keys that the table does not have, or that come twice.
        RuntimeError: for a release of datasets that does not tell the epoch.
        TypeError: for a data set with rows by number: a sampler draws those.
        ValueError: for an unknown option, or a column that there is not.
    """
    require_one_data_set(stream)
    if not isinstance(stream, list | tuple | IterableDataset) and hasattr(stream, "__getitem__"):
        raise TypeError(
            f"a {type(stream).__name__} has rows by number: draw them with FlowSampler, or take "
            "dataset.to_iterable_dataset()"
        )
    known = KeyedWeights(table, weights, key, on_missing, on_repeated)
    options = {"seed": seed, "epoch_size": epoch_size, "scheme": scheme, "alpha": alpha}
    return stream_of(stream, Draws(known, window=window, **options))  # type: ignore[arg-type]


def require_one_data_set(rows: Any) -> None:
    """Make sure that data is one data set of rows.

    Raises:
        TypeError: for a dict of several, or of columns, a frame, or what has no rows.
    """
    if isinstance(rows, Mapping):
        raise TypeError(f"pass one data set, this is a {type(rows).__name__} of {list(rows)[:5]}")
    if hasattr(rows, "iloc"):
        raise TypeError(f"pass datasets.Dataset.from_pandas(frame), not a {type(rows).__name__}")
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable | Sized):
        raise TypeError(
            f"rows are a stream of dicts or map-style data, got a {type(rows).__name__}"
        )


def stream_of(stream: Any, task: RowTask) -> Any:
    """What a task makes of the rows of a stream, of the same kind where that is one of datasets."""
    # Who has such a stream has imported it; it takes a second.
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(stream, datasets.IterableDataset):
        from flowdata.rows.streams import keyed_stream

        return keyed_stream(stream, task)
    return KeyedRows(stream, task)
