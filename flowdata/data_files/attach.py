"""Weights as a further field of each row of a data file."""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.normalization import require_numbers
from flowdata.core.weights import FlowWeights, HasWeights, as_weights
from flowdata.data_files import parquet_rows
from flowdata.data_files.json_rows import (
    ADVICE,
    Rows,
    member,
    read_rows,
    require_name,
    with_members,
    with_value,
)
from flowdata.data_files.opening import (
    create_lines,
    data_paths,
    format_of,
    open_lines,
    output_paths,
)
from flowdata.data_files.row_weights import TableRows, as_table
from flowdata.errors import DataFileError, MismatchError
from flowdata.files import replacing
from flowdata.table.loss_table import LossTable


def attach_file(
    data: str | PathLike[str] | Iterable[str | PathLike[str]],
    table: LossTable | str | PathLike[str],
    output: str | PathLike[str],
    *,
    field: str = "weight",
    key: str | None = None,
    weights: FlowWeights | HasWeights | ArrayLike | None = None,
    overwrite: bool = False,
    unchecked: bool = False,
) -> int:
    """Write data files again, with the weight of each row as a further field; rows written.

    Of JSONL all other bytes stay as they are: order and text of members, line ends, blank lines.
    Of Parquet all other columns do. A file is read once, some rows at a time, and the outputs
    take their places when all are whole.

    Args:
        data: a JSONL file, also one that is compressed by gzip or zstd, or a Parquet file; or
            several of one format, whose rows follow each other in this order; a pattern, as
            ``part-*.jsonl``, is of files in the order of their names.
        table: the loss table of their rows, or the path of that.
        output: the file to write, compressed where its name ends in .gz or .zst; or a folder, in
            which each file has the name that it had: of several it must be one.
        field: name of the field.
        key: a field of the rows that has the table's keys; default the one that it was scored
            with. Without keys, rows are in the table's order.
        weights: of the table's rows; default ``table.weights()``.
        overwrite: replace a field of this name, where rows have one.
        unchecked: take rows in the table's order without comparing some with those that were
            scored, or looking at keys: the same rows in another form are no others.

    Raises:
        DataFileError: naming the line, for what is no row, or has the field already.
        InvalidLossError: for weights that are all too small for numbers.
        MismatchError: for another number of rows, rows that were not scored, and, naming it, a
            key that is missing or there twice.
    """
    require_name(field)
    sources = data_paths(data)
    kind = format_of(sources[0])
    places = output_paths(output, sources, kind, table)
    losses = as_table(table)
    weighed = weights_of(losses, weights)
    require_numbers(weighed.max, weighed.log_max)
    rows = TableRows(losses, key, sources[0], unchecked=unchecked)
    with contextlib.ExitStack() as written:
        for source, place in zip(sources, places, strict=True):
            rows.read_from(source)
            temporary = written.enter_context(replacing(place))
            if kind == "JSONL":
                with open_lines(source) as lines, create_lines(temporary, place) as out:
                    for some in read_rows(lines, source):
                        out.writelines(_weighted(some, rows, weighed, field, overwrite, source))
            else:
                parquet_rows.add_column(
                    source,
                    temporary,
                    field,
                    partial(_of_batch, rows=rows, weights=weighed),
                    key=rows.key,
                    overwrite=overwrite,
                )
        return rows.finish()


def _of_batch(batch: Any, rows: TableRows, weights: FlowWeights) -> NDArray[np.float64]:
    return _of_rows(weights, rows_of_batch(batch, rows))


def weights_of(
    table: LossTable, weights: FlowWeights | HasWeights | ArrayLike | None
) -> FlowWeights:
    """The weights of a table's rows: its own, or others.

    Raises:
        MismatchError: for another number of them.
    """
    found = table.weights() if weights is None else as_weights(weights)
    if len(found) != len(table):
        raise MismatchError(
            f"there are {len(found):,} weights for a loss table of {len(table):,} rows: give "
            "those of its rows"
        )
    return found


def _of_rows(weights: FlowWeights, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The weights of some rows; of those of a large table that follow each other, no others."""
    if rows.size and (np.diff(rows) == 1).all():
        found: NDArray[np.float64] = weights.part(int(rows[0]), int(rows[-1]) + 1) * weights.max
    else:
        found = weights[rows]
    return found


def table_rows_of(some: Rows, rows: TableRows, name: Path) -> NDArray[np.int64]:
    """The table's row of each of some lines."""
    if rows.same is not None:
        start = rows.position
        for row in rows.same.wanted(range(start, start + len(some))):
            rows.same.see(row, some.objects[row - start])
        rows.same.see_columns(some.objects)
    keys = None if rows.key is None else list(_keys(some, rows.key, name))
    return rows.find(len(some), keys, some.numbers)


def _keys(some: Rows, key: str, name: Path) -> Iterator[Any]:
    for number, found in zip(some.numbers, some.objects, strict=True):
        if key not in found:
            raise DataFileError(
                f"{name}, line {number:,}: it has no {key!r}, its fields are {sorted(found)[:20]}"
            )
        value = found[key]
        if type(value) is not str and type(value) is not int:
            raise DataFileError(
                f"{name}, line {number:,}: its {key!r} is {value!r:.100}, and keys are texts or "
                "whole numbers"
            )
        yield value


def rows_of_batch(batch: Any, rows: TableRows) -> NDArray[np.int64]:
    """The table's row of each row of a Parquet file's batch."""
    if rows.same is not None:
        start = rows.position
        for row in rows.same.wanted(range(start, start + len(batch))):
            rows.same.see(row, batch.slice(row - start, 1).to_pylist()[0])
    return rows.find(len(batch), None if rows.key is None else batch.column(rows.key), None)


def _weighted(
    some: Rows,
    rows: TableRows,
    weights: FlowWeights,
    field: str,
    overwrite: bool,
    name: Path,
) -> Iterator[bytes]:
    found = _of_rows(weights, table_rows_of(some, rows, name)).tolist()
    yield some.begins
    begin = member(field, b"")
    for blank, line, content, number, weight in zip(
        some.blank, some.lines, some.objects, some.numbers, found, strict=True
    ):
        yield blank
        text = repr(weight).encode()
        if field not in content:
            yield with_members(line, begin + text)
        elif overwrite:
            yield with_value(line, field, text)
        else:
            raise DataFileError(
                f"{name}, line {number:,}: it has a field {field!r} already: {ADVICE}"
            )
    yield some.after
