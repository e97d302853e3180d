"""Deciles of the pre-trained loss, and the mean current loss in each of them."""

import copy
import math
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import as_array, is_invalid
from flowdata.core.groups import Groups
from flowdata.core.states import shown
from flowdata.errors import MismatchError

DECILES = 10
NO_LOSS = "no loss"
"""The group of rows without a valid loss."""
_COUNT, _CURRENT, _SCORED = range(3)


def decile_of_rows(losses: NDArray[Any]) -> Groups:
    """The tenth of the rows that each one is in, by its loss: 0 for those of the lowest losses.

    Rows without a valid loss are in an eleventh group. Of equal losses the first rows come first.
    """
    valid = np.flatnonzero(~is_invalid(losses))
    codes = np.full(losses.size, DECILES, dtype=np.uint8)
    order = valid[losses[valid].argsort(kind="stable")]
    codes[order] = np.arange(order.size, dtype=np.int64) * DECILES // max(order.size, 1)
    return Groups(codes, (*map(name_of, range(DECILES)), NO_LOSS))


def name_of(decile: int) -> str:
    """The name of a decile in figures: they count from 1."""
    return f"decile_{decile + 1}"


class CurrentLosses:
    """The mean loss of each decile over the last samples, beside what the same rows were scored.

    Args:
        scored: the loss of each row, shape (n,).
        deciles: of the rows.
        over: samples that means go back over: one that was given k samples ago counts
            exp(-k / over).

    Attributes:
        given: samples.
        left_out: of them those whose loss, now or as scored, is not a finite number.
    """

    def __init__(self, scored: NDArray[Any], deciles: Groups, over: float) -> None:
        if not over > 0:
            raise ValueError(f"over must be a number of samples above 0, got {over}")
        self._scored, self._deciles, self._over = scored, deciles, over
        self.sums = np.zeros((3, DECILES))
        self.given = self.left_out = 0

    def add(self, rows: ArrayLike, losses: ArrayLike) -> None:
        """Add the current losses of rows; see `Monitor.log_losses`."""
        numbers, current = as_array(rows), as_array(losses)
        if numbers.shape != current.shape or numbers.ndim != 1:
            raise ValueError(
                "rows and losses must be a number for each sample, got shapes "
                f"{numbers.shape} and {current.shape}"
            )
        if numbers.size == 0:
            return
        if numbers.dtype.kind not in "iu":
            raise ValueError(f"rows must be row numbers, got dtype {numbers.dtype}")
        if not 0 <= numbers.min() <= numbers.max() < self._scored.size:
            raise ValueError(
                f"rows must be in [0, {self._scored.size}), got {numbers.min()} to {numbers.max()}"
            )
        codes, scored = self._deciles.codes[numbers], self._scored[numbers]
        usable = np.isfinite(current) & (codes < DECILES)
        codes, terms = codes[usable], (None, current[usable], scored[usable])
        self.sums *= math.exp(-numbers.size / self._over)
        for row, term in zip(self.sums, terms, strict=True):
            row += np.bincount(codes, weights=term, minlength=DECILES)
        self.given += numbers.size
        self.left_out += int(numbers.size - np.count_nonzero(usable))

    def means(self, *, gather: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean loss as scored, and now, of each decile: NaN where none was given.

        Args:
            gather: over what was given to all processes, each of which has to ask.
        """
        sums = _summed_over_ranks(self.sums) if gather else self.sums
        count = np.where(sums[_COUNT] > 0.0, sums[_COUNT], np.nan)
        return sums[_SCORED] / count, sums[_CURRENT] / count

    def state(self) -> dict[str, Any]:
        """What `read` reads, JSON-able."""
        return {"sums": self.sums.tolist(), "given": self.given, "left_out": self.left_out}

    def read(self, state: Any) -> "CurrentLosses":
        """Those of a state, of the same rows.

        Raises:
            MismatchError: if it is none.
        """
        read = copy.copy(self)
        try:
            read.sums = np.array(state["sums"], dtype=np.float64)
            read.given, read.left_out = int(state["given"]), int(state["left_out"])
        except (KeyError, TypeError, ValueError):
            raise MismatchError(f"not the losses of a Monitor state: {shown(state)}") from None
        if read.sums.shape != self.sums.shape:
            raise MismatchError(f"not the losses of a Monitor state: {shown(state)}")
        return read


def _summed_over_ranks(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    if not (dist.is_available() and dist.is_initialized()):
        return sums
    # As objects: they go by whatever device the group's backend wants, with all their bits.
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, sums)
    total: NDArray[np.float64] = np.sum(of_ranks, axis=0)
    return total
