"""Lengths of rows: tokens of each sample, as whole numbers."""

from typing import Protocol, runtime_checkable

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import count_rows, numbers_of
from flowdata.core.column import PIECE
from flowdata.core.weights import FlowWeights
from flowdata.errors import MismatchError


@runtime_checkable
class HasLengths(Protocol):
    """Anything that knows how long its rows are, a LossTable above all."""

    @property
    def lengths(self) -> NDArray[np.int32] | None:
        """Tokens of each row, shape (n,), if that is known."""


def as_lengths(lengths: HasLengths | ArrayLike) -> NDArray[np.int64]:
    """A read-only copy of n lengths, of a table or an array of whole numbers, as int64.

    Raises:
        ValueError: for a table without lengths, another shape, or numbers that are not whole.
    """
    given = lengths.lengths if isinstance(lengths, HasLengths) else lengths
    if given is None:
        found = "None" if lengths is None else f"this {type(lengths).__name__}"
        raise ValueError(
            f"{found} has no lengths of its rows: give a whole number for each row, or a loss "
            "table that has them, by `flowdata lengths`"
        )
    array = numbers_of(given, "lengths")
    if array.ndim != 1 or array.dtype.kind == "b":
        raise ValueError(
            f"lengths must be n whole numbers, one for each row, got {array.dtype} of shape "
            f"{array.shape}"
        )
    if array.dtype.kind in "fu":
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(array) < 2.0**53) | (np.floor(array) != array)
        if wrong.any():
            raise ValueError(
                "lengths must be whole numbers: "
                + count_rows(wrong, "rows have another length", array)
            )
    # A copy, as of losses: what is drawn and its fingerprint are made of it at other times.
    whole = np.array(array, dtype=np.int64)
    whole.flags.writeable = False
    return whole


def require_fitting(lengths: NDArray[np.int64], weights: FlowWeights) -> None:
    """Make sure that there is a length for each weight, and that rows which are drawn have one.

    Raises:
        MismatchError: for another number of lengths than of weights.
        ValueError: for rows of positive weight that are shorter than 1.
    """
    if lengths.size != len(weights):
        raise MismatchError(
            f"lengths are of {lengths.size:,} rows, but there are {len(weights):,} weights; give "
            "the lengths of the rows that were scored, in their order"
        )
    empty = lengths < 1
    if empty.any() and (empty := empty & (weights.relative > 0)).any():
        raise ValueError(
            "rows that may be drawn need a length of at least 1: "
            + count_rows(empty, "rows are shorter", lengths)
            + "; give them weight 0"
        )


def require_short(lengths: NDArray[np.int64], weights: FlowWeights, max_length: int) -> None:
    """Make sure that no row that may be drawn is longer than a pack.

    Raises:
        ValueError: if some are.
    """
    long = lengths > max_length
    # Weights in a file are read only where that decides something.
    for start in range(0, long.size, PIECE) if long.any() else ():
        part = long[start : start + PIECE]
        if part.any():
            part &= weights.part(start, start + part.size) > 0
    if long.any():
        raise ValueError(
            f"packs hold {max_length:,} tokens: "
            + count_rows(long, "rows that may be drawn are longer", lengths)
            + "; choose a larger max_length, give them weight 0, or cut them and pass "
            'too_long="truncate"'
        )


def fingerprint_of(lengths: NDArray[np.int64]) -> str:
    """A hash of lengths."""
    return xxhash.xxh3_128(lengths.data).hexdigest()


def at_least_one(value: int, name: str) -> int:
    """A size as an int, if it is one and >= 1; a ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    return int(value)
