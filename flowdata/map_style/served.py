"""ServedDraws: which epoch each pass over a FlowDataset draws, over all worker processes."""

import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from flowdata.guards.fetching import Fetch, WorkerPool, worker_pool
from flowdata.map_style.shared_memory import SharedArray

MOST = (1 << 63) - 1
"""The largest number that shared memory can hold."""
_OWN_SEED = -1
_MARKS = 255
_NOBODY = -1
_AT_ONCE = 64
"""Passes that may be under way at once."""
_EPOCH, _SET, _ADVISED, _SEED, _BEGUN, _READ, _ADVISED_OF_PART, _LOADED, _CELLS = range(9)
_NOT_LOADED, _LOADED_ONLY, _LOADED_AND_READ = range(3)


class ServedDraws:
    """The running epoch of a data set, in memory that its worker processes share.

    Where nobody sets the epoch, each pass of a DataLoader is the next one, also one that begins
    before another has ended, and one that is left early. A pass is known by its reader, an object
    that it has in each of its processes. The workers of a loader find the epoch that one of them
    has begun by the loader's seed and process numbers. No lock is needed: workers that begin a
    pass at the same time come to the same epoch, and write the same.

    The mark of a draw is the last epoch in which it was served, modulo 255, plus 1. Where no reader
    can be seen, a batch that asks for a draw again is the first of the next epoch; and so it is in
    a pass that goes on after all of its batches (timm's ``MultiEpochsDataLoader``).

    Args:
        draws: of an epoch.
        owner: the name of the data set's class, for errors.
    """

    def __init__(self, draws: int, *, owner: str = "FlowDataset") -> None:
        self._owner = owner
        self._marks = SharedArray(draws, torch.uint8)
        # The epoch, whether it was set, whether advice about that was given, the seed, whether a
        # pass has begun the epoch, whether anything was read lately, more advice, and whether the
        # epoch was loaded.
        self._state = SharedArray(_CELLS, torch.int64)
        self._state.values[_SEED] = _OWN_SEED
        # Of the last epochs: number + 1, seed and process of the pool that began it.
        self._pools = SharedArray(3 * _AT_ONCE, torch.int64)
        self._own_passes()

    def __getstate__(self) -> dict[str, Any]:
        # A copy, and a worker that is spawned, begin without passes.
        return self.__dict__ | {"_passes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own_passes()

    def _own_passes(self) -> None:
        self._passes: WeakKeyDictionary[object, _Pass] = WeakKeyDictionary()
        self._latest = _NOBODY

    @property
    def _cells(self) -> NDArray[np.int64]:
        return self._state.values

    @property
    def epoch(self) -> int:
        """The running epoch; of several passes, that of the one that began last."""
        return int(self._cells[_EPOCH])

    @property
    def epoch_was_set(self) -> bool:
        """Whether `set_epoch` was called."""
        return bool(self._cells[_SET])

    @property
    def advised(self) -> bool:
        """Whether advice about `set_epoch` was given, or is not needed."""
        return bool(self._cells[_ADVISED])

    @advised.setter
    def advised(self, advised: bool) -> None:
        self._cells[_ADVISED] = advised

    @property
    def advised_of_part(self) -> bool:
        """Whether advice about a part of the draws was given."""
        return bool(self._cells[_ADVISED_OF_PART])

    @advised_of_part.setter
    def advised_of_part(self, advised: bool) -> None:
        self._cells[_ADVISED_OF_PART] = advised

    @property
    def is_kept_loaded(self) -> bool:
        """Whether draws were read of an epoch that was loaded, and none was set since."""
        return bool(self._cells[_LOADED] == _LOADED_AND_READ)

    @property
    def was_read(self) -> bool:
        """Whether any process has read draws since this was set to False."""
        return bool(self._cells[_READ])

    @was_read.setter
    def was_read(self, read: bool) -> None:
        self._cells[_READ] = read

    @property
    def seed(self) -> int | None:
        """The seed of a state that was loaded, if one was."""
        seed = int(self._cells[_SEED])
        return None if seed == _OWN_SEED else seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._cells[_SEED] = require_cell(seed, "a seed")

    def set_epoch(self, epoch: int, *, is_loaded: bool = False) -> None:
        """Serve from this epoch until another is set."""
        self._cells[_EPOCH], self._cells[_SET] = require_cell(epoch, "the epoch"), True
        self._cells[_LOADED] = _LOADED_ONLY if is_loaded else _NOT_LOADED

    def serve(self, draws: NDArray[np.int64], fetch: Fetch | None) -> tuple[int, bool, int]:
        """The epoch in which draws are served, whether it is new here, and how often it was read.

        Args:
            draws: in [0, M).
            fetch: the batch that they are for; None if that cannot be seen.
        """
        self._cells[_READ] = True
        if self.epoch_was_set:
            if self._cells[_LOADED]:
                self._cells[_LOADED] = _LOADED_AND_READ
            return self.epoch, False, 0
        if fetch is None:
            return self._mark(draws), False, 0
        reading = self._passes.get(fetch.reader)
        is_new = reading is None
        if reading is None:
            info = get_worker_info()
            worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
            batches = fetch.batches_of(len(self._marks.values))
            reading = _Pass(self._begin(), worker, workers, batches)
            self._passes[fetch.reader] = reading
        marks = self._marks.values
        again = int(np.count_nonzero(marks[draws] == _mark_of(reading.epoch)))
        if reading.goes_on(fetch.index, again, len(draws)):
            self._cells[_EPOCH] = max(self.epoch, reading.epoch)
        marks[draws] = _mark_of(reading.epoch)
        return reading.epoch, is_new, reading.draws * reading.workers // len(marks)

    def _begin(self) -> int:
        """The epoch of a pass that is new in this process."""
        pool = worker_pool()
        # In this order: an epoch that is running was written down before.
        begun, running = bool(self._cells[_BEGUN]), self.epoch
        found = _NOBODY if pool is None else self._latest_of(pool)
        if found > self._latest:
            # Another worker has begun this pass.
            self._latest = found
            return found
        epoch = running + begun
        own = (-os.getpid(), 0) if pool is None else (pool.seed, pool.process)
        place = self._place_of(epoch)
        place[0] = 0
        place[1:] = own
        place[0] = epoch + 1
        self._cells[_EPOCH] = epoch
        self._cells[_BEGUN] = True
        self._latest = epoch
        return epoch

    def require_own(self, epoch: int) -> None:
        """Make sure that an epoch which this process has just begun is not another pass's too.

        Raises:
            RuntimeError: if it is.
        """
        pool = worker_pool()
        following, seed, process = self._place_of(epoch).tolist()
        if pool is None:
            own = seed == -os.getpid()
        else:
            own = seed == pool.seed and abs(process - pool.process) < pool.workers
        if not own or following != epoch + 1:
            raise RuntimeError(
                f"two passes over one {self._owner} have begun epoch {epoch} at the same moment, "
                f"so their draws cannot be told apart: make a {self._owner} for each, or call "
                "set_epoch(epoch) before every epoch"
            )

    def _latest_of(self, pool: WorkerPool) -> int:
        """The last epoch that a pool has begun."""
        following, seeds, processes = self._pools.values.reshape(_AT_ONCE, 3).T
        # A pool started later has a first process that comes after all of this one's.
        same = (seeds == pool.seed) & (np.abs(processes - pool.process) < pool.workers)
        return int((following[same] - 1).max(initial=_NOBODY))

    def _place_of(self, epoch: int) -> NDArray[np.int64]:
        """Where it is written who began an epoch."""
        place: NDArray[np.int64] = self._pools.values.reshape(_AT_ONCE, 3)[epoch % _AT_ONCE]
        return place

    def _mark(self, draws: NDArray[np.int64]) -> int:
        """Mark draws as served, and return their epoch: the next one if any was served before."""
        epoch, marks = self.epoch, self._marks.values
        # A draw that was served in this epoch: somebody has begun the next one.
        if (marks[draws] == _mark_of(epoch)).any():
            epoch += 1
            self._cells[_EPOCH] = epoch
        marks[draws] = _mark_of(epoch)
        return epoch


@dataclass
class _Pass:
    """What this process reads of a pass.

    Attributes:
        epoch: that of the batch that is read.
        worker, workers: of the loader: number of this process, and how many there are.
        batches: in a whole epoch, if that is known.
        draws: that were read in this epoch.
    """

    epoch: int
    worker: int
    workers: int
    batches: int | None
    draws: int = 0
    _index: Any = None
    _fetched: int = 0
    _rounds: int = 0
    _repeats: bool = False

    def goes_on(self, index: Any, again: int, draws: int) -> bool:
        """Count what is read; whether the next epoch begins, as all of this one was read.

        Args:
            index: of the batch.
            again: draws of it that were read in this epoch before.
            draws: of it in all.
        """
        if index is not self._index or isinstance(index, int):
            self._index = index
            self._fetched += 1
        is_next = False
        # Another worker may not have marked yet what it is reading.
        is_again = again > 0 if self.workers > 1 else 2 * again >= draws
        if again and not self._is_over():
            # A sampler that asks for draws several times in a pass will go on to do so.
            self._repeats = True
        elif is_again and not self._repeats and self._is_over():
            is_next = True
            self.epoch, self.draws, self._rounds = self.epoch + 1, 0, self._rounds + 1
        self.draws += draws
        return is_next

    def _is_over(self) -> bool:
        """Whether the batch comes after those of an epoch: they are dealt to workers in turn."""
        batch = self.worker + self.workers * (self._fetched - 1)
        return self.batches is not None and batch >= self.batches * (self._rounds + 1)


def _mark_of(epoch: int) -> int:
    return epoch % _MARKS + 1


def require_cell(value: int, name: str) -> int:
    """The value, if shared memory can hold it.

    Raises:
        ValueError: for one of more than 63 bits.
    """
    if value > MOST:
        raise ValueError(f"{name} must be below 2^63, got {value}")
    return value
