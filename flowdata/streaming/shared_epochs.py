"""SharedEpochs: which epoch a pass over a stream is, agreed on by all worker processes."""

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from flowdata.core.plan import non_negative
from flowdata.map_style.served import require_cell
from flowdata.map_style.shared_memory import SharedArray

MOST_WORKERS = 256
_CELLS = (MOST_WORKERS + 1) * MOST_WORKERS
_LOADERS = (1 << 31) - 1
# A cell: the number of a loader, and in the low bits the epoch that comes next.
_EPOCH_BITS = 32
_PATIENCE, _PAUSE = 30.0, 0.01
"""Seconds until a worker has surely begun its pass, and between two looks."""
MOST_EPOCHS = (1 << _EPOCH_BITS) - 1


class SharedEpochs:
    """Counts the passes that loaders make over a data set, in memory shared by their workers.

    A loader starts each of its workers at a different moment, and some never where a pass is left
    early. So each worker notes, in one cell, for which loader it counts and the epoch that comes
    next: those that begin a pass later find it there, and those that were left out in the last
    pass do not stay behind. Loaders with other numbers of workers, which run before or after but
    not at the same time, have other cells; the largest epoch of all is where a loader starts from.
    The seed is here too: workers that go on from a saved state tell it to those of later passes.

    Raises:
        ValueError: for a seed of more than 63 bits.
    """

    def __init__(self, seed: int) -> None:
        require_cell(seed, "the seed of a stream")
        # One piece of memory, as each takes a file that is open.
        self._memory = SharedArray(_CELLS + MOST_WORKERS + 2, torch.int64)
        self._name_parts()
        self._last_workers[0], self._seed[0] = -1, seed

    def __getstate__(self) -> SharedArray:
        return self._memory

    def __setstate__(self, memory: SharedArray) -> None:
        self._memory = memory
        self._name_parts()

    def _name_parts(self) -> None:
        cells, self._dropped, self._last_workers, self._seed = np.split(
            self._memory.values, np.cumsum([_CELLS, MOST_WORKERS, 1])
        )
        self._cells = cells.reshape(MOST_WORKERS + 1, MOST_WORKERS)

    def following(self) -> "SharedEpochs":
        """A count of its own, which begins with the epoch that is next here."""
        others = SharedEpochs(self.seed)
        if epoch := self.upcoming():
            others.set_epoch(epoch)
        return others

    @property
    def workers(self) -> int:
        """Workers of the last pass that began since `set_epoch`; -1 if none did."""
        return int(self._last_workers[0])

    def begin(self) -> int:
        """The epoch of the pass that this process begins.

        Raises:
            ValueError: for more workers than there are cells.
        """
        worker, workers, loader = this_worker()
        if workers > MOST_WORKERS:
            raise ValueError(
                f"at most {MOST_WORKERS} DataLoader workers are supported, got {workers}"
            )
        # One reading of all: others may write meanwhile.
        cells = self._cells.copy()
        upcoming = _epoch_after(cells, worker, workers, loader)
        self._cells[workers, worker] = loader << _EPOCH_BITS | upcoming
        self._dropped[worker] = 0
        self._last_workers[0] = workers
        return max(upcoming - 1, 0)

    def running(self) -> int:
        """The epoch of the pass that began last, or of the one to come if none did."""
        if self.workers < 0:
            return self.upcoming()
        return max(int((self._cells[self.workers] & MOST_EPOCHS).max()) - 1, 0)

    def wait_for_workers(self) -> int | None:
        """The epoch that workers begin which are starting; None if they begin none."""
        end = time.monotonic() + _PATIENCE
        while self.workers < 0 and time.monotonic() < end:
            time.sleep(_PAUSE)
        return None if self.workers < 0 else self.running()

    def upcoming(self) -> int:
        """The epoch of the next pass, seen between two passes."""
        return int((self._cells & MOST_EPOCHS).max())

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` that of the next pass."""
        require_epoch(epoch)
        # Workers that persist, and those that begin the pass before only now, still know it.
        self._cells[:] = self._cells >> _EPOCH_BITS << _EPOCH_BITS | epoch
        self._dropped[:] = 0
        self._last_workers[0] = -1

    def set_for_worker(self, epoch: int) -> None:
        """Make ``epoch`` the next one of this worker; the others say so themselves."""
        worker, workers, loader = this_worker()
        # What loaders with other numbers of workers knew is past: it may be later than this epoch.
        others = np.ones(self._cells.shape, dtype=np.bool_)
        others[workers, :workers] = False
        self._cells[others] = self._cells[others] >> _EPOCH_BITS << _EPOCH_BITS
        self._cells[workers, worker] = loader << _EPOCH_BITS | epoch

    @property
    def dropped(self) -> int:
        """Draws that the workers of the pass that began last dropped in it."""
        return int(self._dropped[: max(self.workers, 1)].sum())

    def set_dropped(self, draws: int) -> None:
        """Say how many draws this process has dropped in its pass."""
        self._dropped[this_worker()[0]] = draws

    @property
    def seed(self) -> int:
        """The seed of all epochs."""
        return int(self._seed[0])

    def set_seed(self, seed: int) -> None:
        """Take over the seed of a saved state."""
        self._seed[0] = seed


def this_worker() -> tuple[int, int, int]:
    """Worker, number of workers and a number of the loader that started them; zeros without."""
    info = get_worker_info()
    if info is None:
        return 0, 0, 0
    return info.id, info.num_workers, (info.seed - info.id) % _LOADERS + 1


def _epoch_after(cells: NDArray[np.int64], worker: int, workers: int, loader: int) -> int:
    """The epoch after the one that a worker begins."""
    loaders, epochs = cells[workers] >> _EPOCH_BITS, cells & MOST_EPOCHS
    if loader and loaders[worker] == loader:
        # It persists; so do the others, whose cells change at other moments.
        own = epochs[workers, worker]
        epochs[workers] = 0
        return int(max(own, epochs.max())) + 1
    peers = epochs[workers][loaders == loader]
    if loader and peers.size:
        return int(peers.max())
    return int(epochs.max()) + 1


def require_epoch(epoch: int) -> None:
    """Make sure that a cell can hold an epoch beside the number of its loader.

    Raises:
        ValueError: for a negative one, or one of more than 32 bits.
    """
    if non_negative(epoch, "epoch") >= MOST_EPOCHS:
        raise ValueError(f"the epoch of a stream must be below 2^32 - 1, got {epoch}")
