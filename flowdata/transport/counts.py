"""Counts: what was read, added up over threads."""

import threading


class Counts:
    """What was read so far; any thread may add to it.

    Attributes:
        requests: reads of files, or answers of servers.
        bytes_read: by these.
        bytes_kept: of whole shards that were fetched into the cache.
        bytes_owed: of the samples that were wanted.
        seconds_waited: in which whoever wanted them had to wait.
        retries: requests that were made again after a failure.
        hedged: requests that were made twice because an answer was overdue.
    """

    def __init__(self) -> None:
        self.requests = self.bytes_read = self.bytes_kept = self.bytes_owed = 0
        self.retries = self.hedged = 0
        self.seconds_waited = 0.0
        self._lock = threading.Lock()

    def add(
        self,
        *,
        requests: int = 0,
        bytes_read: int = 0,
        bytes_kept: int = 0,
        bytes_owed: int = 0,
        seconds_waited: float = 0.0,
        retries: int = 0,
        hedged: int = 0,
    ) -> None:
        """Add to them."""
        with self._lock:
            self.requests += requests
            self.bytes_read += bytes_read
            self.bytes_kept += bytes_kept
            self.bytes_owed += bytes_owed
            self.seconds_waited += seconds_waited
            self.retries += retries
            self.hedged += hedged
