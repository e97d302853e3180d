"""ServedDraws: which draws of which epoch were served, over all worker processes."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_OWN_SEED = -1
_MARKS = 255


class ServedDraws:
    """The running epoch of a data set, in memory that its worker processes share.

    Where nobody sets the epoch, a batch that asks for a draw again is the first of the next
    one. The mark of a draw is its last epoch modulo 255, plus 1. No lock is needed: between two
    epochs the DataLoader waits for its workers, and inside one, workers that find the first
    repeated draw at the same time come to the same next epoch.

    Args:
        draws: of an epoch.
    """

    def __init__(self, draws: int) -> None:
        self._marks = torch.zeros(draws, dtype=torch.uint8)
        # The epoch, whether it was set, whether advice about that was given, and the seed.
        self._state = torch.tensor([0, 0, 0, _OWN_SEED], dtype=torch.int64)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mark_of": None, "_cells": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy has memory of its own, which its workers have to share too.
        self.__dict__.update(state)
        self._share()

    def _share(self) -> None:
        for tensor in (self._marks, self._state):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        # The same memory: to index an array takes a tenth of what a tensor takes.
        self._mark_of, self._cells = self._marks.numpy(), self._state.numpy()

    @property
    def epoch(self) -> int:
        """The running epoch."""
        return int(self._cells[0])

    @property
    def epoch_was_set(self) -> bool:
        """Whether `set_epoch` was called."""
        return bool(self._cells[1])

    @property
    def advised(self) -> bool:
        """Whether advice about `set_epoch` was given, or is not needed."""
        return bool(self._cells[2])

    @advised.setter
    def advised(self, advised: bool) -> None:
        self._cells[2] = advised

    @property
    def seed(self) -> int | None:
        """The seed of a state that was loaded, if one was."""
        seed = int(self._cells[3])
        return None if seed == _OWN_SEED else seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._cells[3] = require_cell(seed, "a seed that is loaded")

    def set_epoch(self, epoch: int) -> None:
        """Serve from this epoch until another is set."""
        self._cells[:2] = require_cell(epoch, "the epoch"), 1

    def mark(self, draws: NDArray[np.int64]) -> int:
        """Mark draws as served, and return their epoch: the next one if any was served before."""
        epoch = self.epoch
        if self.epoch_was_set:
            return epoch
        marks = self._mark_of
        # A draw that was served in this epoch: somebody has begun the next one.
        if (marks[draws] == epoch % _MARKS + 1).any():
            epoch += 1
            self._cells[0] = epoch
        marks[draws] = epoch % _MARKS + 1
        return epoch


def require_cell(value: int, name: str) -> int:
    """The value, if shared memory can hold it.

    Raises:
        ValueError: for one of more than 63 bits.
    """
    if value >= 1 << 63:
        raise ValueError(f"{name} must be below 2^63, got {value}")
    return value
