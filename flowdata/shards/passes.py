"""Passes: which epoch a pass over a stream is, agreed on by all worker processes."""

import torch

from flowdata.plan import non_negative

_MOST = 256


class Passes:
    """Counts the passes that loaders make over a data set, in memory shared by their workers.

    A loader starts each of its workers once a pass, at different moments. So each has a counter
    of its own; loaders with other numbers of workers, which run before or after but not at the
    same time, have other counters, and the largest of those is where a loader starts from.
    The seed is here too: workers that go on from a saved state tell it to those of later passes.

    Raises:
        ValueError: for a seed of more than 63 bits.
    """

    def __init__(self, seed: int) -> None:
        if seed >= 1 << 63:
            raise ValueError(f"the seed of a stream must be below 2^63, got {seed}")
        self._next = torch.zeros(_MOST + 1, _MOST, dtype=torch.int32)
        self._last = torch.full((1,), -1, dtype=torch.int64)
        self._seed = torch.full((1,), seed, dtype=torch.int64)
        self._share()

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.__dict__.update(state)
        self._share()

    def _share(self) -> None:
        for tensor in (self._next, self._last, self._seed):
            tensor.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def workers(self) -> int:
        """Workers of the last pass that began since `set_epoch`; -1 if none did."""
        return int(self._last)

    def begin(self, worker: int, workers: int) -> int:
        """The epoch of the pass that this worker begins; ``workers=0`` without any.

        Raises:
            ValueError: for more workers than there are counters.
        """
        if workers > _MOST:
            raise ValueError(f"at most {_MOST} DataLoader workers are supported, got {workers}")
        own = self._next[workers, worker].item()
        others = self._next.clone()
        others[workers] = 0
        epoch = int(max(own, others.max().item()))
        self._next[workers, worker] = epoch + 1
        self._last[0] = workers
        return epoch

    def running(self) -> int:
        """The epoch of the pass that began last, or of the one to come if none did."""
        if self.workers < 0:
            return self.to_come()
        return int(self._next[self.workers].max()) - 1

    def to_come(self) -> int:
        """The epoch of the next pass, seen between two passes."""
        return int(self._next.max())

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` that of the next pass."""
        self._next.zero_()
        self._next[0, 0] = non_negative(epoch, "epoch")
        self._last[0] = -1

    def set_own(self, worker: int, workers: int, epoch: int) -> None:
        """Make ``epoch`` the next one of this worker; the others say so themselves."""
        self._next[workers, worker] = epoch

    @property
    def seed(self) -> int:
        """The seed of all epochs."""
        return int(self._seed)

    def set_seed(self, seed: int) -> None:
        """Take over the seed of a saved state."""
        self._seed[0] = seed
