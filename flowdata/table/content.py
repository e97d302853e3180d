"""A hash of all rows of a data set, where that is cheap beside scoring them.

It says of what it is a hash, and is compared with one of the same kind alone: the rows of a
``datasets.Dataset``, column by column as Arrow holds them, or those of a list, one after another.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from flowdata.table.arrow_content import hash_of_columns
from flowdata.table.data_columns import RowsOf
from flowdata.table.digest import Digest, is_image

MOST_BYTES = 1 << 34
"""Of larger data no hash is made: what lies on a disk would be read for minutes."""
_OF_COLUMNS = "columns"
_OF_ROWS = "rows"

_as_json = json.JSONEncoder(sort_keys=True).encode


def content_hash(dataset: Any) -> str | None:
    """A hash of all rows of a ``datasets.Dataset``, a list or a tuple; None for anything else.

    None too for more than `MOST_BYTES`, and for rows of a list that have more in them than
    numbers, texts, arrays, tensors and the like. Of a ``datasets.Dataset`` its format, transform
    and columns of files (images, sound, ...) make no difference, nor how it is stored.
    """
    if (kind := _kind_of(dataset)) is None:
        return None
    dataset = dataset.alone() if isinstance(dataset, RowsOf) else dataset
    if kind == _OF_ROWS:
        rows = RowsHash()
        return rows.text() if all(map(rows.add, dataset)) else None
    found = hash_of_columns(dataset, MOST_BYTES)
    return None if found is None else f"{kind}-{found}"


def other_content(known: str | None, dataset: Any) -> str | None:
    """The hash of the rows of a data set, where it is known to be another one."""
    if known is None or _kind_of(dataset) != known.split("-")[0]:
        return None
    found = content_hash(dataset)
    return None if found == known else found


def are_comparable(one: Any, other: Any) -> bool:
    """Whether two hashes are of the same kind; one that is not known is of none."""
    texts = isinstance(one, str) and isinstance(other, str)
    return texts and one.split("-")[0] == other.split("-")[0]


def is_of_list(known: str | None) -> bool:
    """Whether a hash is of the rows of a list, and not of columns."""
    return known is not None and known.startswith(_OF_ROWS)


def _kind_of(dataset: Any) -> str | None:
    if isinstance(dataset, RowsOf):
        return _kind_of(dataset.whole) if dataset.are_all_there else None
    # Lists of another class may make their rows when they are read.
    if type(dataset) in (list, tuple):
        return _OF_ROWS
    # Not imported, which takes a second: where there is a Dataset, it is there.
    datasets = sys.modules.get("datasets")
    return _OF_COLUMNS if datasets and isinstance(dataset, datasets.Dataset) else None


class _NoContentError(Exception):
    pass


class _RowsDigest(Digest):
    """A hash of rows, of which each value has content."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def _feed_content(self, value: Any) -> bool:
        # Several times as fast as one value after another.
        if isinstance(value, dict | list | tuple) and (text := _text_of(value)) is not None:
            self.mark(f"json {len(text)} {text}")
            self.size += len(text)
            return True
        # One may be a file still, and stays in memory once it was read.
        if is_image(value):
            raise _NoContentError
        self.size += len(value) if isinstance(value, str | bytes) else getattr(value, "nbytes", 0)
        return super()._feed_content(value)

    def _feed_parts(self, value: Any) -> None:
        known = isinstance(value, Mapping | Sequence | AbstractSet | np.ndarray | np.generic)
        if not known and (isinstance(value, type) or not is_dataclass(value)):
            raise _NoContentError
        super()._feed_parts(value)


def _text_of(value: Any) -> str | None:
    try:
        return _as_json(value)
    except (TypeError, ValueError):
        return None


class RowsHash:
    """The `content_hash` of a list of rows that come one after another."""

    def __init__(self) -> None:
        self._digest: _RowsDigest | None = _RowsDigest()

    def add(self, row: Any) -> bool:
        """Add the next row; whether there still is a hash."""
        if self._digest is not None:
            try:
                self._digest.feed(row)
            except (_NoContentError, RecursionError):
                self._digest = None
            else:
                if self._digest.size > MOST_BYTES:
                    self._digest = None
        return self._digest is not None

    def text(self) -> str | None:
        """The hash of all that were added, None where there is none."""
        return None if self._digest is None else f"{_OF_ROWS}-{self._digest.hexdigest()}"
