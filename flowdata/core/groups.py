"""Groups of rows: a name for each row, as a small number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import as_array, count_rows, taken_at_once
from flowdata.errors import MismatchError

Name: TypeAlias = str | int | bool

NO_GROUP = "(none)"
"""The group of rows that have no value."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each row.

    Attributes:
        codes: the number of each row's group, shape (n,), 0 to the number of groups, in the
            smallest type that holds them.
        names: of the groups, by number.
    """

    codes: NDArray[Any]
    names: tuple[Name, ...]

    @classmethod
    def of(cls, labels: "ArrayLike | Groups", rows: int) -> "Groups":
        """Groups in the order of their names, from a name or whole number for each row.

        Groups that are given stay as they are.

        Raises:
            MismatchError: for another number of labels than rows.
            ValueError: for another shape, rows without a group, and labels that are no names.
        """
        if isinstance(labels, Groups):
            _require_rows(labels.codes, rows)
            return labels
        if isinstance(labels, str):
            raise ValueError(
                f"groups must be a name for each row, got {labels!r}: give the column of the data, "
                f"data[{labels!r}]"
            )
        given: Any = labels
        if isinstance(given, Sequence) and not isinstance(given, list | tuple | range):
            given = taken_at_once(given)
        array = as_array(given)
        if array.ndim != 1:
            raise ValueError(f"groups must be a name for each row, got shape {array.shape}")
        _require_rows(array, rows)
        if array.dtype.kind in "OU":
            # Of what stands beside a text in a list numpy makes one: "1" of 1, "nan" of no name.
            values = given if isinstance(given, list | tuple) else array
            # A dictionary numbers texts in less time than sorting them takes.
            return cls._of_objects(np.array(values, dtype=object))
        if array.dtype.kind not in "iub":
            raise ValueError(
                "groups must be names, whole numbers or booleans, one for each row, got dtype "
                f"{array.dtype}" + _without_group(array)
            )
        found, codes = np.unique(array, return_inverse=True)
        return cls._numbered(codes, found.tolist())

    @classmethod
    def of_codes(cls, codes: NDArray[Any], names: Sequence[Name] | NDArray[Any]) -> "Groups":
        """Groups in the order of their names, from the number of a name for each row.

        Of ``names`` some may be equal; each is that of a row.
        """
        found = cls.of(names, len(names))
        return cls._numbered(found.codes[codes], list(found.names))

    @classmethod
    def of_runs(cls, names: tuple[Name, ...], sizes: list[int]) -> "Groups":
        """Groups that follow each other, of so many rows each."""
        codes = np.arange(len(sizes), dtype=np.min_scalar_type(max(len(sizes) - 1, 0)))
        return cls._numbered(codes.repeat(sizes), list(names))

    @classmethod
    def _of_objects(cls, array: NDArray[Any]) -> "Groups":
        values = [
            value.item() if isinstance(value, np.generic) else value for value in array.tolist()
        ]
        wrong = np.array([not isinstance(value, Name) for value in values], dtype=bool)
        if wrong.any():
            raise ValueError(
                "a group is a name, a whole number or a boolean: "
                + count_rows(wrong, "rows have none", array)
                + "; give these rows one too"
            )
        # Names of two kinds have no order of their own.
        names = sorted(set(values), key=lambda name: (isinstance(name, str), name))
        numbers = {name: number for number, name in enumerate(names)}
        return cls._numbered(np.array([numbers[value] for value in values]), names)

    @classmethod
    def _numbered(cls, codes: NDArray[Any], names: list[Any]) -> "Groups":
        small = codes.astype(np.min_scalar_type(max(len(names) - 1, 0)), copy=False)
        small.flags.writeable = False
        return cls(small, tuple(names))

    def __len__(self) -> int:
        return len(self.names)

    def same_as(self, other: "Groups") -> bool:
        """Whether each row has the same group, by its name."""
        return self.names == other.names and np.array_equal(self.codes, other.codes)

    def rows(self) -> list[NDArray[np.intp]]:
        """The rows of each group, ascending."""
        order = self.codes.argsort(kind="stable")
        return np.split(order, np.cumsum(self.sizes())[:-1])

    def select(self, numbers: NDArray[np.int64]) -> "Groups":
        """The groups of some rows, without those that have none of them."""
        found, codes = np.unique(self.codes[numbers], return_inverse=True)
        return self._numbered(codes, [self.names[code] for code in found.tolist()])

    def sizes(self) -> NDArray[np.intp]:
        """Rows of each group."""
        return np.bincount(self.codes, minlength=len(self))


def _require_rows(given: NDArray[Any], rows: int) -> None:
    if given.size != rows:
        raise MismatchError(
            f"there are {given.size:,} groups for {rows:,} rows; give the group of each row "
            "that was scored, in their order"
        )


def _without_group(array: NDArray[Any]) -> str:
    if array.dtype.kind != "f" or not (missing := np.isnan(array)).any():
        return ""
    return f": {count_rows(missing, 'rows have none', array)}; give these rows a number too"
