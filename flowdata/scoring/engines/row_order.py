"""Whether rows that an engine scored are in the order of a data set, where no key finds them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import MismatchError, warn
from flowdata.table.fingerprint import rows_read

# Of a shuffle, a sort or swapped blocks these show enough, whatever all rows are in size.
_MOST_ROWS = 1_000
_PIECES = 20
_MOST_VALUES = 5_000_000


def require_order_of(dataset: Any, scored: Any, rows: int, own: Sequence[str]) -> None:
    """Compare what both have of rows that lie evenly over all of them.

    Columns of files (images, sound), and values that are neither numbers nor texts, make no
    difference; nor does how an engine stored the others.

    Args:
        dataset: the data set.
        scored: the rows with their losses, see `read_scored`.
        rows: how many each of them has.
        own: columns that scoring has added.

    Raises:
        MismatchError: naming the first row that is another one.
    """
    known = {*_names(dataset)} - {*own}
    both = [name for name in _names(scored) if name in known]
    if not both:
        warn(
            "rows that were scored are taken in the order that they come in, and have no column "
            "by which that of the data set could be told: give key=, a column that identifies a row"
        )
        return
    places = np.array(rows_read(rows, _MOST_ROWS), dtype=np.int64)
    found, expected = (_some(columns, both, places) for columns in (scored, dataset))
    for name in both:
        place = _first_other(found[name], expected[name])
        if place is not None:
            row = f"row {places[place]:,}"
            raise MismatchError(
                f"{row} that was scored has another {name!r} than {row} of the data set: they are "
                "in another order (engines keep none, and what was shuffled or sorted has its "
                "own), or other rows. Give key=, a column that identifies a row, or the data set "
                "that was scored"
            )


def _first_other(found: Any, expected: Any) -> int | None:
    """Where a column has another value first, of those that are looked at."""
    values = 0
    # Each piece lies evenly over all, so that of large values there are enough too.
    for start in range(_PIECES):
        pairs = zip(
            _as_list(found[start::_PIECES]), _as_list(expected[start::_PIECES]), strict=True
        )
        for number, pair in enumerate(pairs):
            own, other = (list(_leaves(value)) for value in pair)
            if not _are_alike(own, other):
                return start + number * _PIECES
            values += len(own)
        if values > _MOST_VALUES:
            break
    return None


def _names(columns: Any) -> list[str]:
    """The columns of what is held by columns, or of a list of rows; none of any other data set."""
    if isinstance(columns, list | tuple):
        return list(columns[0]) if columns and isinstance(columns[0], Mapping) else []
    if hasattr(columns, "iloc") or isinstance(columns, Mapping):
        return list(columns)
    if hasattr(columns, "select_columns"):
        return list(columns.column_names)
    # A table, or files, of Arrow.
    return list(getattr(getattr(columns, "schema", None), "names", ()))


def _some(columns: Any, names: Sequence[str], places: NDArray[np.int64]) -> Any:
    """Some rows: arrays of Arrow, or lists, by the names of their columns."""
    if isinstance(columns, list | tuple):
        return {name: [columns[place].get(name) for place in places.tolist()] for name in names}
    if hasattr(columns, "iloc"):
        return {name: columns[name].iloc[places].tolist() for name in names}
    if isinstance(columns, Mapping):
        return {name: [columns[name][place] for place in places.tolist()] for name in names}
    if hasattr(columns, "select_columns"):
        # As stored: whatever format, transform or files it has.
        return columns.select_columns(names).with_format("arrow")[places.tolist()]
    if hasattr(columns, "select"):
        return columns.select(names).take(places)
    return columns.take(places, columns=names)


def _as_list(column: Any) -> list[Any]:
    values: list[Any] = column.to_pylist() if hasattr(column, "to_pylist") else column
    return values


def _leaves(value: Any) -> Iterator[Any]:
    """The numbers and texts of a value in their order, with what holds them; None for any other."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping) and {*value} != {"bytes", "path"}:
        # Arrow gives each turn of a chat the names that some turn has.
        for name in sorted((name for name in value if value[name] is not None), key=str):
            yield str(name)
            yield from _leaves(value[name])
    elif isinstance(value, list | tuple):
        yield len(value)
        for part in value:
            yield from _leaves(part)
    else:
        known = isinstance(value, int | float | str) and value == value
        yield value if known else None


def _are_alike(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    # Nothing in the place of a value is how some engines store that, or another's.
    if found == expected or found == [None] or expected == [None]:
        return True
    return all(_is_alike(*pair) for pair in zip_longest(found, expected, fillvalue=""))


def _is_alike(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one == other
    if isinstance(one, int | float) and isinstance(other, int | float):
        # Some engines have floats of 32 bits alone, or floats for whole numbers that may miss.
        floats = isinstance(one, float) and isinstance(other, float)
        return one == other or (floats and math.isclose(one, other, rel_tol=1e-6))
    # A number that is a text elsewhere: nothing is known.
    return True
