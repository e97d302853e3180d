"""What rows of a stream are looked up for: to be drawn, or to get their weight."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.permutation import Purpose, random_bits
from flowdata.core.plan import EpochPlan, EpochSize, Scheme
from flowdata.rows.lookup import Found, KeyedWeights, RowTask

# Rows that are looked up together where their order stays: enough to make a search worth it.
_TOGETHER = 256
# Epochs whose counts are held: sources that are read side by side are all of one.
_HELD = 2


class Draws(RowTask):
    """Each row as often as the plan of the epoch draws it, in a random order within windows."""

    def __init__(
        self,
        known: KeyedWeights,
        *,
        seed: int,
        epoch_size: EpochSize,
        scheme: Scheme,
        alpha: float,
        window: int,
    ) -> None:
        if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1:
            raise ValueError(f"window must be an int >= 1, got {window!r}")
        super().__init__(known, size=_TOGETHER if window == 1 else int(window))
        self._window = int(window)
        self._plan = EpochPlan(
            known.weights, seed=seed, epoch_size=epoch_size, scheme=scheme, alpha=alpha
        )
        self._begin()

    def _begin(self) -> None:
        self._counts: dict[int, NDArray[np.unsignedinteger[Any]]] = {}
        # Sources that are interleaved are read by threads.
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_A_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def identity(self) -> dict[str, Any]:
        """See `RowTask`."""
        return {**self._plan.identity(), "seed": self._plan.seed, "window": self._window}

    def outcome(self, found: Found, epoch: int) -> Found:
        """See `RowTask`."""
        times = self._counts_of(epoch)[found.rows]
        places, rows = np.repeat(found.places, times), np.repeat(found.rows, times)
        if self._window == 1 or not rows.size:
            return Found(places, rows)
        # By its first row, whichever process reads the window.
        bits = random_bits(self._plan.seed, epoch, Purpose.WINDOW_ORDER, int(found.rows[0]))
        order = np.argsort(bits.random_raw(rows.size), kind="stable")
        return Found(places[order], rows[order])

    def _counts_of(self, epoch: int) -> NDArray[np.unsignedinteger[Any]]:
        with self._lock:
            if epoch not in self._counts:
                while len(self._counts) >= _HELD:
                    del self._counts[next(iter(self._counts))]
                counts = self._plan.at_epoch(epoch).released().counts()
                # The plan takes 8 bytes a row and 4 a draw, these mostly one.
                self._counts[epoch] = counts.astype(np.min_scalar_type(int(counts.max())))
            return self._counts[epoch]


_OF_A_PROCESS = ("_counts", "_lock")


class Weighing(RowTask):
    """Each row as it is, with its weight in a column."""

    def __init__(self, known: KeyedWeights, column: str) -> None:
        super().__init__(known, size=_TOGETHER, column=column)
        self._values = known.weights.values

    def identity(self) -> dict[str, Any]:
        """See `RowTask`."""
        return {"weights": self.known.weights.fingerprint, "column": self.column}

    def outcome(self, found: Found, epoch: int) -> Found:  # noqa: ARG002
        """See `RowTask`."""
        return found

    def values(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """See `RowTask`."""
        weights: NDArray[np.float64] = self._values[rows]
        return weights
