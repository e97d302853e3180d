"""SharedEpochs: which epoch a pass over a stream is, agreed on by all worker processes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from flowdata.core.plan import non_negative

_MOST = 256
_TAGS = (1 << 31) - 1
_EPOCH_BITS = 32
_EPOCHS = (1 << _EPOCH_BITS) - 1


class SharedEpochs:
    """Counts the passes that loaders make over a data set, in memory shared by their workers.

    A loader starts each of its workers at a different moment, and some never where a pass is left
    early. So each worker notes, in one word, for which loader it counts and the epoch that comes
    next: those that begin a pass later find it there, and those that were left out in the last
    pass do not stay behind. Loaders with other numbers of workers, which run before or after but
    not at the same time, have other words; the largest epoch of all is where a loader starts from.
    The seed is here too: workers that go on from a saved state tell it to those of later passes.

    Raises:
        ValueError: for a seed of more than 63 bits.
    """

    def __init__(self, seed: int) -> None:
        if seed >= 1 << 63:
            raise ValueError(f"the seed of a stream must be below 2^63, got {seed}")
        self._words = torch.zeros(_MOST + 1, _MOST, dtype=torch.int64)
        self._dropped = torch.zeros(_MOST, dtype=torch.int64)
        self._last = torch.full((1,), -1, dtype=torch.int64)
        self._seed = torch.full((1,), seed, dtype=torch.int64)
        self._share()

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.__dict__.update(state)
        self._share()

    def _share(self) -> None:
        for tensor in (self._words, self._dropped, self._last, self._seed):
            tensor.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def workers(self) -> int:
        """Workers of the last pass that began since `set_epoch`; -1 if none did."""
        return int(self._last)

    def begin(self) -> int:
        """The epoch of the pass that this process begins.

        Raises:
            ValueError: for more workers than there are words.
        """
        worker, workers, loader = _here()
        if workers > _MOST:
            raise ValueError(f"at most {_MOST} DataLoader workers are supported, got {workers}")
        # One reading of all: others may write meanwhile.
        words = self._words.numpy().copy()
        following = _following(words, worker, workers, loader)
        self._words[workers, worker] = loader << _EPOCH_BITS | following
        self._dropped[worker] = 0
        self._last[0] = workers
        return max(following - 1, 0)

    def running(self) -> int:
        """The epoch of the pass that began last, or of the one to come if none did."""
        if self.workers < 0:
            return self.upcoming()
        return max(int((self._words[self.workers] & _EPOCHS).max()) - 1, 0)

    def upcoming(self) -> int:
        """The epoch of the next pass, seen between two passes."""
        return int((self._words & _EPOCHS).max())

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` that of the next pass."""
        if non_negative(epoch, "epoch") >= _EPOCHS:
            raise ValueError(f"the epoch of a stream must be below 2^32 - 1, got {epoch}")
        # Workers that persist, and those that begin the pass before only now, still know it.
        self._words.copy_(self._words >> _EPOCH_BITS << _EPOCH_BITS | epoch)
        self._dropped.zero_()
        self._last[0] = -1

    def set_for_worker(self, epoch: int) -> None:
        """Make ``epoch`` the next one of this worker; the others say so themselves."""
        worker, workers, loader = _here()
        self._words[workers, worker] = loader << _EPOCH_BITS | epoch

    @property
    def dropped(self) -> int:
        """Draws that the workers of the pass that began last dropped in it."""
        return int(self._dropped[: max(self.workers, 1)].sum())

    def set_dropped(self, draws: int) -> None:
        """Say how many draws this process has dropped in its pass."""
        self._dropped[_here()[0]] = draws

    @property
    def seed(self) -> int:
        """The seed of all epochs."""
        return int(self._seed)

    def set_seed(self, seed: int) -> None:
        """Take over the seed of a saved state."""
        self._seed[0] = seed


def _here() -> tuple[int, int, int]:
    """Worker, number of workers and a number of the loader that started them; zeros without."""
    info = get_worker_info()
    if info is None:
        return 0, 0, 0
    return info.id, info.num_workers, (info.seed - info.id) % _TAGS + 1


def _following(words: NDArray[np.int64], worker: int, workers: int, loader: int) -> int:
    """The epoch after the one that a worker begins."""
    loaders, epochs = words[workers] >> _EPOCH_BITS, words & _EPOCHS
    if loader and loaders[worker] == loader:
        # It persists; so do the others, whose words change at other moments.
        own = epochs[workers, worker]
        epochs[workers] = 0
        return int(max(own, epochs.max())) + 1
    peers = epochs[workers][loaders == loader]
    if loader and peers.size:
        return int(peers.max())
    return int(epochs.max()) + 1
