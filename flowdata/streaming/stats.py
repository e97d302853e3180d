"""StreamStats: what reading an epoch took, added up over the workers of a DataLoader."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from flowdata.map_style.shared_memory import SharedArray
from flowdata.streaming.shared_epochs import MOST_WORKERS, this_worker
from flowdata.transport.counts import Counts
from flowdata.transport.speeds import Speed, known_speeds

_Window = TypeVar("_Window")

_LOGGER = logging.getLogger("flowdata")
# Hosts whose speeds are kept: shards are mostly on one.
_MOST_HOSTS = 4


@dataclass(frozen=True)
class StreamStats:
    """What reading an epoch took so far, by all workers of this rank, since it began or went on.

    Attributes:
        epoch: its number; None before the first.
        samples: that were given out.
        dropped: draws that the handler or a stage dropped.
        requests: reads, of files or from servers.
        bytes_read: by these, headers and gaps included.
        bytes_kept: of whole shards that were fetched into the cache, to be read there.
        bytes_owed: of the samples that were drawn, each counted once in a window.
        seconds_waited: in which workers had nothing to go on with, added up.
        retries: requests that were made again after a failure.
        hedged: requests that were made twice because an answer was overdue.
        hosts: of each server that was read from, of four at most, the seconds to a first byte, and
            bytes a second of a connection.
    """

    epoch: int | None = None
    samples: int = 0
    dropped: int = 0
    requests: int = 0
    bytes_read: int = 0
    bytes_kept: int = 0
    bytes_owed: int = 0
    seconds_waited: float = 0.0
    retries: int = 0
    hedged: int = 0
    hosts: Mapping[str, Speed] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.epoch is None:
            return "nothing read yet"
        owed, read = (tqdm.format_sizeof(n, "B") for n in (self.bytes_owed, self.bytes_read))
        times = f" ({self.bytes_read / self.bytes_owed:.2f}x)" if self.bytes_owed else ""
        parts = [
            f"epoch {self.epoch}: {self.samples:,} samples of {owed}",
            f"{read} read in {self.requests:,} requests{times}",
        ]
        if self.bytes_kept:
            parts.append(f"{tqdm.format_sizeof(self.bytes_kept, 'B')} fetched into the cache")
        parts.append(f"{self.seconds_waited:.1f} s waited for data")
        parts += [
            f"{host} {speed.latency * 1000:.0f} ms, {tqdm.format_sizeof(speed.bandwidth, 'B')}/s"
            for host, speed in self.hosts.items()
        ]
        named = {"retries": self.retries, "hedged": self.hedged, "dropped": self.dropped}
        parts += [f"{number:,} {name}" for name, number in named.items() if number]
        return "; ".join(parts)


# What is added up, and which of it readers count.
_COUNTS = tuple(part.name for part in fields(StreamStats) if part.name not in ("epoch", "hosts"))
_COUNTS_OF_READERS = tuple(name for name in _COUNTS if name not in ("samples", "dropped"))


class SharedStats:
    """The statistics of a stream's passes, in memory that its workers share.

    Each worker has a cell, which it writes now and then; what one writes that began before another
    pass did in its place is left out.

    Args:
        hosts: that are read from.
    """

    _CELL = np.dtype(
        [
            ("loader", np.float64),
            ("epoch", np.float64),
            ("began", np.float64),
            ("counts", np.float64, len(_COUNTS)),
            ("speeds", np.float64, (_MOST_HOSTS, 2)),
        ]
    )

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = tuple(hosts)[:_MOST_HOSTS]
        self._memory = SharedArray(MOST_WORKERS * self._CELL.itemsize // 8, torch.float64)

    @property
    def _cells(self) -> NDArray[np.void]:
        return self._memory.values.view(self._CELL)

    def begin(self, epoch: int) -> "PassStats":
        """Begin a pass of this process, a worker or none."""
        worker, _, loader = this_worker()
        cell = self._cells[worker : worker + 1]
        cell[:] = 0
        cell["loader"], cell["epoch"], cell["began"] = loader, epoch, time.monotonic()
        return PassStats(cell, self._hosts)

    def of_last_pass(self) -> StreamStats:
        """Those of the pass that began last, added up over its workers."""
        cells = self._cells.copy()
        last = cells[cells["began"].argmax()]
        if not last["began"]:
            return StreamStats()
        cells = cells[
            (cells["began"] > 0)
            & (cells["loader"] == last["loader"])
            & (cells["epoch"] == last["epoch"])
        ]
        return _added_up(cells, self._hosts)


class PassStats:
    """What one pass of one process takes; see `SharedStats.begin`.

    Attributes:
        samples, dropped: see `StreamStats`.
        read: what each reader has read.
    """

    def __init__(self, cell: NDArray[np.void], hosts: tuple[str, ...]) -> None:
        self._cell, self._hosts = cell, hosts
        self._epoch, self._began = int(cell["epoch"][0]), float(cell["began"][0])
        self.samples = self.dropped = 0
        self.read: list[Counts] = []

    def stats(self) -> StreamStats:
        """What was taken so far."""
        speeds = known_speeds()
        return StreamStats(
            self._epoch,
            samples=self.samples,
            # Fewer where a stage gives out later what it holds.
            dropped=max(self.dropped, 0),
            hosts={host: speeds[host] for host in self._hosts if host in speeds},
            **{name: sum(getattr(part, name) for part in self.read) for name in _COUNTS_OF_READERS},
        )

    def show(self) -> None:
        """Show others what was taken so far, unless another pass has begun in its place."""
        if self._cell["began"][0] != self._began:
            return
        stats = self.stats()
        self._cell["counts"] = [getattr(stats, name) for name in _COUNTS]
        for number, host in enumerate(self._hosts):
            self._cell["speeds"][0, number] = stats.hosts.get(host, (0.0, 0.0))

    def shown_at_each(self, windows: Iterable[_Window]) -> Iterator[_Window]:
        """The windows; at each of them, what was taken so far is shown."""
        for window in windows:
            self.show()
            yield window

    def log(self, name: str) -> None:
        """Say at level INFO what this process took, of a rank that may have a name."""
        if not _LOGGER.isEnabledFor(logging.INFO):
            return
        worker, workers, _ = this_worker()
        if workers:
            name = f"{name}, ".lstrip(", ") + f"worker {worker} of {workers}"
        _LOGGER.info("FlowShards%s: %s", f" ({name})" if name else "", self.stats())


def _added_up(cells: NDArray[np.void], hosts: tuple[str, ...]) -> StreamStats:
    """The sum of some cells of one epoch; of speeds the median."""
    sums = dict(zip(_COUNTS, cells["counts"].sum(axis=0).tolist(), strict=True))
    seconds = sums.pop("seconds_waited")
    speeds = {}
    for number, host in enumerate(hosts):
        known = cells["speeds"][:, number]
        known = known[known[:, 1] > 0]
        if known.size:
            speeds[host] = Speed(*np.median(known, axis=0).tolist())
    return StreamStats(
        int(cells["epoch"][0]),
        hosts=speeds,
        seconds_waited=seconds,
        **{name: round(value) for name, value in sums.items()},
    )
