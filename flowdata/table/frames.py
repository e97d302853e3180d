"""A loss table as a pandas frame, beside columns of its data."""

from collections.abc import Sequence
from typing import Any

from flowdata.table.data_columns import column_of
from flowdata.table.row_keys import ROW_KEY
from flowdata.table.shard_index import plain_keys
from flowdata.table.stored_table import LENGTH, LOSS, N_TOKENS, TOKEN_LOSSES
from flowdata.table.table_columns import TableColumns
from flowdata.table.token_runs import offsets_of, to_list_array


def to_frame(table: TableColumns, dataset: Any, columns: Sequence[str]) -> Any:
    """A frame of all rows, see `LossTable.to_pandas`."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "to_pandas needs pandas: pip install 'flowdata[pandas]'; any Parquet reader shows a "
            "saved table"
        ) from error
    frame: dict[str, Any] = {LOSS: table.losses[:]}
    if table.n_tokens is not None:
        frame[N_TOKENS] = table.n_tokens[:]
    if table.lengths is not None:
        frame[LENGTH] = table.lengths[:]
    if table.token_losses is not None and table.n_tokens is not None:
        lists = to_list_array(table.token_losses, offsets_of(table.n_tokens[:]))
        frame[TOKEN_LOSSES] = lists.to_pandas()
    if table.keys is not None:
        frame[ROW_KEY] = pd.Series(table.keys.tolist())
    if (index := table.index) is not None:
        frame["shard"] = pd.Categorical.from_codes(index.shard, categories=list(index.shards))
        # pandas 3 makes UTF-8 of texts, and keys of shards may be none.
        frame["key"] = pd.Series(plain_keys(index.keys), dtype=object)
        frame |= {"offset": index.offsets, "size": index.sizes}
    for name in _names(dataset, columns):
        if name in frame:
            raise ValueError(
                f"table and data set both have a column {name!r}: give the data set's another name"
            )
        values = column_of(dataset, name)
        frame[name] = values.to_pandas() if hasattr(values, "to_pandas") else pd.Series(values)
    return pd.DataFrame(frame)


def _names(dataset: Any, columns: Sequence[str]) -> list[str]:
    if isinstance(columns, str):
        raise TypeError(f"columns are a list of names, got the text {columns!r}: [{columns!r}]")
    if (dataset is None) != (not list(columns)):
        what = "columns need the data set that has them" if columns else "name its columns"
        raise ValueError(f"{what}: table.to_pandas(dataset=data, columns=[...])")
    return list(columns)
