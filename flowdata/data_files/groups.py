"""The group of each row of a loss table, by a field of the rows of data files."""

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.groups import NO_GROUP, Groups
from flowdata.data_files import parquet_rows
from flowdata.data_files.attach import rows_of_batch, table_rows_of
from flowdata.data_files.json_rows import read_rows
from flowdata.data_files.opening import data_paths, format_of, open_lines
from flowdata.data_files.row_weights import TableRows, as_table
from flowdata.errors import DataFileError
from flowdata.table.loss_table import LossTable


def groups_of_files(
    data: str | PathLike[str] | Iterable[str | PathLike[str]],
    table: LossTable | str | PathLike[str],
    field: str,
    *,
    key: str | None = None,
    unchecked: bool = False,
) -> Groups:
    """The rows of a loss table by a field of the data: of ``table.weights(groups=)``.

    Args:
        data, table, key, unchecked: as of `export_file`.
        field: names or whole numbers.

    Raises:
        DataFileError, MismatchError: as of `export_file`; and for a field that no row has.
        ValueError: for values that name no group.
    """
    losses, sources = as_table(table), data_paths(data)
    rows = TableRows(losses, key, sources[0], unchecked=unchecked)
    # Rows of the table that are in no file have no value either.
    numbers: dict[Any, int] = {NO_GROUP: 0}
    codes = np.zeros(len(losses), dtype=np.int32)
    for source in sources:
        rows.read_from(source)
        for found, values in _values(source, rows, field):
            codes[found] = [
                # True is no 1, though they are equal.
                numbers.setdefault((type(value), value), len(numbers)) if value is not None else 0
                for value in values
            ]
    rows.finish()
    if len(numbers) == 1:
        raise DataFileError(f"no row of {sources[0]} has a field {field!r} to group rows by")
    used = np.unique(codes)
    names = [NO_GROUP, *(value for _, value in list(numbers)[1:])]
    return Groups.of_codes(used.searchsorted(codes), [names[code] for code in used.tolist()])


def _values(
    source: Path, rows: TableRows, field: str
) -> Iterator[tuple[NDArray[np.int64], list[Any]]]:
    """The table's rows of a file's rows, and their values, some at a time."""
    if format_of(source) == "JSONL":
        with open_lines(source) as lines:
            for some in read_rows(lines, source):
                values = [content.get(field) for content in some.objects]
                for number, value in zip(some.numbers, values, strict=True):
                    _require_name(value, f"{source}, line {number:,}", field)
                yield table_rows_of(some, rows, source), values
        return
    with parquet_rows.open_rows(source) as file:
        names = file.schema_arrow.names
        for name in filter(None, [field, rows.key]):
            parquet_rows.require_column(file, name, source)
        columns = None if rows.same is not None else [field, *filter(None, [rows.key])]
        for start, batch in parquet_rows.batches(file, columns):
            values = batch.column(names.index(field) if columns is None else 0).to_pylist()
            for number, value in enumerate(values, start):
                _require_name(value, f"{source}, row {number:,}", field)
            yield rows_of_batch(batch, rows), values


def _require_name(value: Any, where: str, field: str) -> None:
    if value is not None and not isinstance(value, str | int):
        raise DataFileError(
            f"{where}: its {field!r} is {value!r:.100}, and groups are names or whole numbers"
        )
