"""The file of a loss table, read without believing it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import TableFileError
from flowdata.table.columns import StoredColumn, StoredFile, can_stay, compact_texts
from flowdata.table.origins import are_parts
from flowdata.table.parquet import Kind, ParquetColumns, flattened, open_parquet
from flowdata.table.provenance import SCHEMA_VERSION, Provenance
from flowdata.table.row_keys import ROW_KEY, RowKeys
from flowdata.table.shard_index import INDEX_KINDS, MOST_ROWS_HELD, ShardIndex
from flowdata.table.table_columns import TableColumns
from flowdata.table.token_runs import offsets_of, runs_of, to_list_array
from flowdata.table.writing import write_parquet

METADATA_KEY = b"flowdata"
LOSS = "loss"
N_TOKENS = "n_tokens"
LENGTH = "length"
TOKEN_LOSSES = "token_losses"

_REMEDY = "score the data again or restore the file"
_KINDS = {
    LOSS: Kind.FLOAT32,
    N_TOKENS: Kind.INT32,
    LENGTH: Kind.INT32,
    TOKEN_LOSSES: Kind.FLOAT32_LISTS,
    # Or of texts.
    ROW_KEY: Kind.INT64,
} | INDEX_KINDS


def read_table(path: str | PathLike[str], *, tokens: bool) -> TableColumns:
    """Read a file, its token losses only if they are asked for.

    Raises:
        TableFileError: for a file that is missing, cannot be read, is damaged, or no loss table.
    """
    with open_parquet(path, what="loss table", remedy=_REMEDY) as file:
        provenance = _read_provenance(path, file)
        # Token losses are many times the rest, and only reweighting tokens needs them.
        wanted = {
            name: kind
            for name, kind in _KINDS.items()
            if name in file.names and (tokens or name != TOKEN_LOSSES)
        }
        if file.has(ROW_KEY, Kind.TEXT):
            wanted[ROW_KEY] = Kind.TEXT
        if file.rows > MOST_ROWS_HELD and not tokens and can_stay(file):
            return _left_in_file(provenance, file, wanted)
        columns = file.read(wanted)
        n_tokens, token_losses = read_tokens(file, columns)
        lengths = read_counts(file, columns, LENGTH)
        index = ShardIndex.from_file(file, columns) if INDEX_KINDS.keys() & wanted else None
        losses = columns[LOSS].to_numpy()
        keys = _keys_held(columns[ROW_KEY], wanted[ROW_KEY]) if ROW_KEY in wanted else None
        return TableColumns(provenance, losses, n_tokens, lengths, token_losses, index, keys)


def write_table(path: str | PathLike[str], table: TableColumns) -> None:
    """Write a file, atomically.

    Raises:
        OSError: when it cannot be written.
        TableFileError: for a path that is none.
    """
    metadata, block = {METADATA_KEY: table.provenance.to_json().encode()}, b""
    columns = stored_columns(table)
    if table.index is not None:
        columns |= table.index.columns()
        of_shards, block = table.index.lists().stored()
        metadata |= of_shards
    write_parquet(path, "loss table", table.provenance.rows, columns, metadata, block)


def _keys_held(column: Any, kind: Kind) -> RowKeys:
    return RowKeys(compact_texts(column) if kind is Kind.TEXT else column.to_numpy())


def stored_columns(table: TableColumns) -> dict[str, Callable[[slice], Any]]:
    """For each column of a file, what gives the Arrow array of a run of rows."""
    columns = {LOSS: runs_of(table.losses)}
    for name, counts in ((N_TOKENS, table.n_tokens), (LENGTH, table.lengths)):
        if counts is not None:
            columns[name] = runs_of(counts)
    if table.token_losses is not None and table.n_tokens is not None:
        lists = to_list_array(table.token_losses, offsets_of(table.n_tokens[:]))
        columns[TOKEN_LOSSES] = lists.__getitem__
    if table.keys is not None:
        columns[ROW_KEY] = table.keys.arrow_run
    return columns


def _left_in_file(
    provenance: Provenance, file: ParquetColumns, wanted: Mapping[str, Kind]
) -> TableColumns:
    file.check_kinds(wanted)
    stored = StoredFile(file)
    losses = StoredColumn(stored, LOSS, Kind.FLOAT32)
    n_tokens, lengths = (
        StoredColumn(stored, name, Kind.INT32, lowest=0) if name in wanted else None
        for name in (N_TOKENS, LENGTH)
    )
    index = ShardIndex.in_file(file, stored) if INDEX_KINDS.keys() & wanted else None
    keys = None
    if (kind := wanted.get(ROW_KEY)) is not None:
        keys = RowKeys(StoredColumn(stored, ROW_KEY, kind), text=kind is Kind.TEXT)
    return TableColumns(provenance, losses, n_tokens, lengths, None, index, keys)


def read_counts(
    file: ParquetColumns, columns: Mapping[str, Any], name: str
) -> NDArray[np.int32] | None:
    """A column of numbers of tokens, where a file has it.

    Raises:
        DamagedFileError: for one below 0.
    """
    if name not in columns:
        return None
    counts: NDArray[np.int32] = columns[name].to_numpy()
    if counts.size and counts.min() < 0:
        raise file.damaged(f"row {counts.argmin():,} has {counts.min()} in {name}")
    return counts


def read_tokens(
    file: ParquetColumns, columns: dict[str, Any]
) -> tuple[NDArray[np.int32] | None, NDArray[np.float32] | None]:
    """The tokens of each row, and their losses, row after row, where a file has them.

    Raises:
        DamagedFileError: where they contradict each other.
    """
    n_tokens = read_counts(file, columns, N_TOKENS)
    if TOKEN_LOSSES not in columns:
        return n_tokens, None
    if n_tokens is None:
        raise file.damaged(f"it has {TOKEN_LOSSES}, but no {N_TOKENS}")
    # Out of the dict: it is by far the largest column, and copied here.
    lists = columns.pop(TOKEN_LOSSES)
    row = 0
    for chunk in lists.chunks:
        lengths = chunk.value_lengths().to_numpy()
        expected = n_tokens[row : row + len(chunk)]
        if (wrong := np.flatnonzero(lengths != expected)).size:
            raise file.damaged(
                f"row {row + wrong[0]:,} has {expected[wrong[0]]} tokens, but losses of "
                f"{lengths[wrong[0]]}"
            )
        row += len(chunk)
    return n_tokens, flattened(lists).to_numpy()


def _read_provenance(path: str | PathLike[str], file: ParquetColumns) -> Provenance:
    if LOSS not in file.names and INDEX_KINDS.keys() <= set(file.names):
        raise TableFileError(
            f"{path} is an index of tar shards, not a loss table: {file.rows:,} samples without "
            "losses; make a table of it and of losses, or score the shards"
        )
    if METADATA_KEY not in file.metadata or LOSS not in file.names:
        raise TableFileError(
            f"{path} is Parquet, but not a loss table of flowdata (columns: {file.names[:20]}); "
            "for losses in a file of your own use LossTable.from_losses(array)"
        )
    values = file.json(METADATA_KEY)
    version, rows = values.get("schema"), values.get("rows")
    if type(version) is not int or type(rows) is not int or version < 1 or rows < 0:
        raise file.damaged(f"its provenance has schema={version!r:.50}, rows={rows!r:.50}")
    if version > SCHEMA_VERSION:
        raise TableFileError(
            f"{path} was written by flowdata {values.get('flowdata')} with schema version "
            f"{version}, this version reads up to {SCHEMA_VERSION}: upgrade flowdata"
        )
    if rows != file.rows:
        raise file.damaged(f"it says that it has {rows:,} rows, but holds {file.rows:,}")
    # Fields that a later version adds to the same schema are none of its meaning.
    known = {field.name: values[field.name] for field in fields(Provenance) if field.name in values}
    for field in fields(Provenance):
        value = known.get(field.name)
        # Their types are written as texts or unions of plain types.
        if field.name in known and not isinstance(value, field.type):  # type: ignore[arg-type]
            raise file.damaged(f"its provenance has {field.name}={value!r:.50}")
    if known.get("options") is not None and not _is_json_object(known["options"]):
        raise file.damaged(f"its provenance has options={known['options']!r:.50}")
    if known.get("parts") is not None and not are_parts(known["parts"], rows):
        raise file.damaged(f"its provenance has parts={known['parts']!r:.50}")
    return Provenance(**known)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
