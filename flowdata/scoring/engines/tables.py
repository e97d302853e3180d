"""read_scored: the loss table of what an engine has written of a BatchScorer's batches."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.states import require_same
from flowdata.errors import MismatchError, TableFileError
from flowdata.scoring.engines.batch_scorer import SCORED_BY
from flowdata.scoring.engines.row_order import require_order_of
from flowdata.table.checks import check_length
from flowdata.table.data_columns import keys_of
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys
from flowdata.table.scored_rows import ScoredRows, sort_by_row, table_of_rows
from flowdata.table.stored_table import LENGTH, LOSS, N_TOKENS, TOKEN_LOSSES

_SHOWN = 5


def read_scored(
    scored: Any, *, key: str | None = None, dataset: Any = None, tokens: bool = True
) -> LossTable:
    """The loss table of rows that an engine has scored by `BatchScorer`.

    It knows model and loss as a table of `score` does; with ``dataset`` it is in the order of the
    data set and knows it too, as if `score` had made it.

    Args:
        scored: Parquet that the engine wrote (a file, a folder, several of them, of any place that
            fsspec reads), or what it gave back: a pandas frame, an Arrow table, a
            ``datasets.Dataset``, a dict of columns.
        key: column that identifies a row: engines keep no order. Without it rows are taken as
            they come; with ``dataset`` the columns that both have are compared.
        dataset: map-style data set of these rows; with ``key`` it has that column too.
        tokens: read token losses, where there are any.

    Raises:
        MismatchError: where rows are of several models or losses, or of a key there are none, or
            several, or they are in another order than the data set; naming them.
        TableFileError: for files that cannot be read.
        ValueError: for columns that are not there.
    """
    scored = _open_files(scored) if _are_files(scored) else scored
    table = _as_arrow(scored, key, tokens=tokens)
    if not table.num_rows:
        raise ValueError("there are no rows: nothing was scored")
    said = _said(table.column(SCORED_BY))
    keys = None if key is None else RowKeys.given(table.column(key), table.num_rows)
    scores, provenance = _scores(table), Provenance.now(table.num_rows, dataset=dataset)
    if dataset is None:
        pass
    elif keys is None:
        check_length(dataset, table.num_rows)
        own = (LOSS, N_TOKENS, LENGTH, TOKEN_LOSSES, SCORED_BY)
        require_order_of(dataset, scored, table.num_rows, own)
    else:
        wanted = keys_of(dataset, str(key))
        scores = _in_order_of(wanted, keys, scores, str(key))
        keys = wanted
    known = {**vars(provenance), **said, "key": key}
    return LossTable(**vars(table_of_rows(scores, Provenance(**known), None, keys)))


def _as_arrow(scored: Any, key: str | None, *, tokens: bool) -> Any:
    """The columns that matter, as an Arrow table."""
    import pyarrow as pa
    import pyarrow.dataset as pads

    wanted = [LOSS, SCORED_BY, *([] if key is None else [key])]
    optional = [N_TOKENS, LENGTH, *([TOKEN_LOSSES] if tokens else [])]
    if isinstance(scored, pads.Dataset):
        return _read_files(scored, wanted, optional)
    columns = isinstance(scored, Mapping) or hasattr(scored, "iloc")
    if not columns and not hasattr(scored, "column_names"):
        raise TypeError(
            "rows that were scored are Parquet files, a pandas frame, an Arrow table, a "
            f"datasets.Dataset or a dict of columns, got {type(scored).__name__}"
        )
    names = list(getattr(scored, "column_names", scored))
    some = _present(names, wanted, optional)
    if hasattr(scored, "iloc"):
        return pa.Table.from_pandas(scored[some], preserve_index=False)
    if hasattr(scored, "with_format"):
        return scored.select_columns(some).with_format("arrow")[:]
    if hasattr(scored, "column_names"):
        return scored.select(some)
    return pa.table({name: scored[name] for name in some})


def _are_files(scored: Any) -> bool:
    first = scored[0] if isinstance(scored, list | tuple) and scored else scored
    return isinstance(first, str | PathLike)


def _open_files(scored: Any) -> Any:
    """Parquet files as one data set of Arrow.

    Raises:
        TableFileError: where there are none, or they cannot be read.
    """
    import fsspec
    import pyarrow as pa
    import pyarrow.dataset as pads

    places = [str(place) for place in ([scored] if isinstance(scored, str | PathLike) else scored)]
    try:
        files, paths = None, []
        for place in places:
            files, path = fsspec.core.url_to_fs(place)
            paths.append(path)
        source = paths[0] if len(paths) == 1 else paths
        found = pads.dataset(source, filesystem=files, format="parquet")
        if not found.files:
            raise FileNotFoundError("there are no Parquet files in it")
    except (OSError, pa.ArrowException) as error:
        raise TableFileError(f"what was scored cannot be read, {places[:3]}: {error}") from error
    return found


def _read_files(files: Any, wanted: Sequence[str], optional: Sequence[str]) -> Any:
    import pyarrow as pa

    try:
        return files.to_table(columns=_present(files.schema.names, wanted, optional))
    except (OSError, pa.ArrowException) as error:
        named = list(files.files)[:3]
        raise TableFileError(f"what was scored cannot be read, {named}: {error}") from error


def _present(names: Sequence[str], wanted: Sequence[str], optional: Sequence[str]) -> list[str]:
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(
            f"there are no columns {missing}, there is {list(names)!s:.300}: what a BatchScorer "
            "gives is read, with the key if it is to be found by that"
        )
    return [*wanted, *(name for name in optional if name in names)]


def _said(column: Any) -> dict[str, Any]:
    """What scored all rows.

    Raises:
        MismatchError: where that is not the same for all.
    """
    texts = column.unique().to_pylist()
    try:
        said: list[dict[str, Any]] = [json.loads(text) for text in texts]
    except (TypeError, ValueError) as error:
        raise MismatchError(
            f"the column {SCORED_BY} is not as a BatchScorer writes it: {texts[0]!r:.100}"
        ) from error
    for other in said[1:]:
        # A worker with another release of this package computes the same, or says what differs.
        mine, theirs = (
            {name: value for name, value in some.items() if name not in ("flowdata", "model")}
            for some in (said[0], other)
        )
        require_same(
            mine,
            theirs,
            what="one of the rows, which another model or loss has scored than the first",
            advice="Score these rows again, or read those of each model alone",
        )
    return said[0]


def _scores(table: Any) -> ScoredRows:
    """The columns as arrays, whatever an engine has made of their types."""

    def column(name: str, kind: type) -> NDArray[Any] | None:
        if name not in table.column_names:
            return None
        found: NDArray[Any] = table.column(name).to_numpy()
        if kind is np.int32 and not np.isfinite(found).all():
            raise MismatchError(f"some rows have nothing in {name}: they were scored otherwise")
        return found.astype(kind)

    losses = column(LOSS, np.float32)
    assert losses is not None
    n_tokens, token_losses = column(N_TOKENS, np.int32), None
    if TOKEN_LOSSES in table.column_names and n_tokens is not None:
        lists = table.column(TOKEN_LOSSES).combine_chunks()
        token_losses = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        if token_losses.size != n_tokens.sum():
            raise MismatchError(f"{TOKEN_LOSSES} are not as many as {N_TOKENS} says")
    return ScoredRows(
        np.arange(table.num_rows), losses, n_tokens, token_losses, None, column(LENGTH, np.int32)
    )


def _in_order_of(wanted: RowKeys, keys: RowKeys, scores: ScoredRows, key: str) -> ScoredRows:
    """The scores in the order of a data set that has these keys.

    Raises:
        MismatchError: naming them, for rows that only one of them has.
    """
    places = wanted.find(keys)
    for missing, of, what in (
        (keys.find(wanted) < 0, wanted, "rows of the data set were not scored"),
        (places < 0, keys, "rows were scored that are not in the data set"),
    ):
        if missing.any():
            named = [of[place] for place in np.flatnonzero(missing)[:_SHOWN].tolist()]
            raise MismatchError(
                f"{int(missing.sum()):,} {what}: {key} {named!s:.300}; score these rows too, or "
                "leave them out of the data set"
            )
    moved = {**vars(scores), "rows": places}
    return sort_by_row(ScoredRows(**moved))
