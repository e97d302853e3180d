"""Speeds: how soon a server answers and how fast it sends, learned while it is read from."""

import heapq
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from flowdata.errors import ShardError

# What an object store gives, until more is known of this one.
_LATENCY, _BANDWIDTH = 0.03, 60e6
# Requests that are remembered, and those of which the fastest ones are.
_MEMORY, _LONG_MEMORY = 64, 1024
# Shorter bodies come with the first packets, and say nothing of the rate.
_SMALLEST_BODY = 1 << 18
_LARGEST_PROBE, _MOST_PROBES, _LONG_PROBE = 1 << 16, 4, 0.025
# A request is overdue when it takes so many times as long as nine of ten did, or so many times as
# long as it should, and so many seconds more.
_PATIENCE, _LEAST, _GRACE = 1.5, 2.0, 0.1
# Longer than threads wait for one another.
_SILENCE = 0.12


NEARBY = 0.005
"""Seconds to a first byte below which it is work of processors, not a way: asking anew is cheap."""
# Notes after which it is looked anew how fast the server is; the first ones count at once.
_OFTEN, _AT_FIRST = 8, 16


class Speed(NamedTuple):
    """Seconds to the first byte, and bytes a second that one connection adds."""

    latency: float
    bandwidth: float


class Speeds:
    """What is known of one host; any thread may note and ask.

    Threads of Python wait for one another, so a measured time is the server's or longer, never
    shorter, and an answer may stand behind the others that were asked for. The latency is that of
    the fastest of many requests but one, which may be an exception, as BBR (Cardwell et al., 2016)
    takes it. The bandwidth is the median of the last large bodies, all of which had the other
    connections beside them: where network or processors are full, it is what one more would add.
    """

    def __init__(self) -> None:
        self._first_bytes: deque[float] = deque(maxlen=_LONG_MEMORY)
        self._speed = Speed(_LATENCY, _BANDWIDTH)
        self._notes = self._failed_probes = 0
        self._rates: deque[float] = deque(maxlen=_MEMORY)
        self._waits: deque[float] = deque(maxlen=_MEMORY)
        self._factors: deque[float] = deque(maxlen=_MEMORY)
        self.renew_locks()

    def renew_locks(self) -> None:
        """Let go of what threads hold that are no more."""
        self._lock, self._probing = threading.Lock(), threading.Lock()

    @property
    def speed(self) -> Speed:
        """The server's, as far as it is known."""
        return self._speed

    @property
    def is_known(self) -> bool:
        """Whether a request has succeeded."""
        return bool(self._first_bytes)

    def probe(self, read: Callable[[int], None], size: int) -> int:
        """Let ``read`` ask for some first bytes and note them, where nothing is known.

        Others wait meanwhile: their requests are planned by what is found; where that is nothing,
        they do not try one after another, as each may take long.

        Args:
            read: reads so many bytes.
            size: that there are.

        Returns:
            Bytes that were read.
        """
        count, size = 0, min(size, _LARGEST_PROBE)
        failed_before = self._failed_probes
        with self._probing:
            if self._failed_probes > failed_before:
                return 0
            # Of a server nearby the first time is mostly that of opening a connection.
            while count < _MOST_PROBES * size and (
                not self._first_bytes or (count and NEARBY <= self.speed.latency < _LONG_PROBE)
            ):
                try:
                    read(size)
                except ShardError:
                    self._failed_probes += 1
                    raise
                count += size
        return count

    def note(self, size: int, first_byte: float, body: float) -> None:
        """Note a request that succeeded: bytes, seconds to the first of them, and from then on.

        Args:
            size: of the answer.
            first_byte: nan where the transport does not tell; then ``body`` is of both.
            body: seconds.
        """
        with self._lock:
            speed = self._speed
            seconds = body if math.isnan(first_byte) else first_byte + body
            if math.isnan(first_byte):
                first_byte = max(seconds - size / speed.bandwidth, 0.0)
            self._first_bytes.append(first_byte)
            self._waits.append(first_byte)
            if size >= _SMALLEST_BODY:
                # Bytes that wait in the socket while the thread does not run are no fast body.
                self._rates.append(size / max(seconds - speed.latency, seconds / 10, 1e-6))
            self._notes += 1
            if self._notes <= _AT_FIRST or self._notes % _OFTEN == 0:
                # Among the probes are no exceptions that are shorter.
                rank = 1 + (len(self._first_bytes) > _MOST_PROBES)
                latency = heapq.nsmallest(rank, self._first_bytes)[-1]
                self._speed = speed = Speed(latency, _quantile(self._rates, 0.5, _BANDWIDTH))
            self._factors.append(seconds / (speed.latency + size / speed.bandwidth))

    def is_overdue(
        self, size: int, seconds: float, *, has_begun: bool, silent: float = math.nan
    ) -> bool:
        """Whether a request of so many bytes takes longer than it should, after so many seconds.

        Without a first byte it should not be much longer than most have waited for that; and once
        it has begun, it should not be silent for longer than it took to begin.

        Args:
            size, seconds: of the request.
            has_begun: whether its first byte has come.
            silent: seconds since the last bytes; nan where that is not known.
        """
        with self._lock:
            speed = self._speed
            if not has_begun:
                waits = _quantile(self._waits, 0.9, speed.latency)
                return seconds > _GRACE / 2 + max(_LEAST * speed.latency, _PATIENCE * waits)
            if silent > _SILENCE + _LEAST * speed.latency:
                return True
            factor = max(_LEAST, _PATIENCE * _quantile(self._factors, 0.9, 1.0))
        return seconds > _GRACE + factor * (speed.latency + size / speed.bandwidth)


def speeds_of(url: str) -> Speeds:
    """What this process knows of the host of a URL."""
    return _of_host.setdefault(host_of(url), Speeds())


def host_of(url: str) -> str:
    """Scheme and host of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def hosts_of(urls: Iterable[str]) -> list[str]:
    """The hosts of many URLs, in their order; paths and commands have none."""
    starts = dict.fromkeys("/".join(url.split("/", 3)[:3]) for url in urls)
    return list(dict.fromkeys(host_of(start) for start in starts if "://" in start))


def known_speeds() -> dict[str, Speed]:
    """Those of all hosts that this process has read from."""
    return {host: speeds.speed for host, speeds in list(_of_host.items()) if speeds.is_known}


def _quantile(values: deque[float], share: float, otherwise: float) -> float:
    return sorted(values)[int(len(values) * share)] if values else otherwise


_of_host: dict[str, Speeds] = {}


def _renew_locks() -> None:
    """A thread of the process that forked may have held one."""
    for speeds in _of_host.values():
        speeds.renew_locks()


os.register_at_fork(after_in_child=_renew_locks)
