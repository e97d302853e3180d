"""Which requests read some samples of a shard soonest: gaps read over, long runs side by side."""

import numpy as np
from numpy.typing import NDArray

from flowdata.transport.speeds import NEARBY, Speed

GAP = 16_384
"""Bytes between two samples of a file that are read over: about what disks and kernels do."""
LARGEST, SMALLEST = 1 << 23, 1 << 18
"""Bytes of a request at most, unless one sample is larger, and of one that is made shorter."""
# What the latter are where there is enough to do for all connections.
_LEAST_OF_MANY = 1 << 21
# There reading is work too, so not much is read over; but a request is work for some more bytes.
_REACH_NEARBY, _OVERREAD_NEARBY = 1 << 18, 1.14
ON_DISK = Speed(0.0, 1e9)
"""What a plan for a file on this machine is made for."""


def plan_requests(
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    speed: Speed,
    *,
    connections: float,
    most_overread: float,
) -> list[int]:
    """Numbers of the samples that begin a new request, ascending, the first of all included.

    Requests cost ``(requests * latency + bytes / bandwidth) / connections``, and no less than the
    longest of them. So a gap is read over if its bytes come sooner than the answer to one request
    more would, ``latency * bandwidth``; the smallest gaps first, as far as ``most_overread``
    allows. What is longer than twice that is cut at borders of samples, so that it comes side by
    side; where that is less than all connections can have, it is cut into shorter parts.

    Args:
        offsets: first byte of each sample, ascending, shape (n,).
        sizes: bytes of each sample, none beyond the next one's offset, shape (n,).
        speed: of one connection.
        connections: that read these samples side by side; a share where others are read meanwhile.
        most_overread: bytes that may be read, in bytes of the samples.

    Example:
        >>> offsets, sizes = np.array([0, 512, 999_936]), np.array([512, 512, 1024])
        >>> plan_requests(offsets, sizes, ON_DISK, connections=1, most_overread=4.0)
        [0, 2]
        >>> store = Speed(latency=0.03, bandwidth=80e6)
        >>> plan_requests(offsets, sizes, store, connections=1, most_overread=999.0)
        [0]
    """
    ends = offsets + sizes
    gaps = offsets[1:] - ends[:-1]
    reach, request = float(GAP), float(LARGEST)
    if 0 < speed.latency < NEARBY:
        reach = _REACH_NEARBY
        most_overread = min(most_overread, _OVERREAD_NEARBY)
    elif speed.latency > 0:
        reach = speed.latency * speed.bandwidth
        request = max(2 * reach, _LEAST_OF_MANY)
    begins = ~_read_over(gaps, reach, (most_overread - 1) * int(sizes.sum()))
    runs = np.flatnonzero(np.concatenate([[True], begins]))
    lasts = np.append(runs[1:], offsets.size)
    lengths = ends[lasts - 1] - offsets[runs]
    # Work for all connections, but not so little that it is mostly on its way.
    most = int(min(max(min(request, lengths.sum() / connections), SMALLEST), LARGEST))
    if lengths.max() <= most:
        return runs.tolist()
    firsts: list[int] = []
    for first, last, length in zip(runs.tolist(), lasts.tolist(), lengths.tolist(), strict=True):
        firsts += _cut(offsets, ends, first, last, _even(length, most))
    return firsts


def _read_over(gaps: NDArray[np.int64], reach: float, budget: float) -> NDArray[np.bool_]:
    """Which gaps are read over: the smallest, while they are within reach and the budget."""
    chosen = gaps <= reach
    # Mostly all can be.
    if gaps[chosen].sum() > budget:
        order = np.argsort(gaps, kind="stable")
        chosen[order[np.cumsum(gaps[order]) > budget]] = False
    return chosen


def _even(length: int, most: int) -> int:
    """Bytes at most of each part of a run, so that the last one is not much shorter."""
    parts = -(-length // most)
    return min(-(-length // parts) + length // (8 * parts), LARGEST)


def _cut(
    offsets: NDArray[np.int64], ends: NDArray[np.int64], first: int, last: int, most: int
) -> list[int]:
    """Where the parts of a run begin, each of so many bytes at most, or of one sample."""
    firsts = []
    while first < last:
        firsts.append(first)
        fits = int(np.searchsorted(ends[first:last], offsets[first] + most, side="right"))
        first += max(fits, 1)
    return firsts
