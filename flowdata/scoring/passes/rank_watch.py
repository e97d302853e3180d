"""Ranks that learn of each other's errors, and of a rank that is gone, without a collective.

A collective operation waits for ranks that will never come. So ranks meet by keys in the store of
torch.distributed, which a thread of each rank looks at while the rank scores or waits: keys say
that a rank has arrived, that it is alive, and why one has stopped. Each rank watches the next one
only, so that the work of the store grows with the number of ranks, not with its square.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from flowdata.errors import FlowDataError

T = TypeVar("T")

_BEAT = 2.0
SILENCE = 60.0
"""Seconds without a sign of life after which a rank is given up, if `rank_timeout` is not less."""

# How long a rank that stops stays until the others have read why: it may be the one whose process
# holds the store.
_STAY = 5.0
_IDLE, _BUSY = 0.5, 0.02
_MOST_TEXT = 500
_TAKES_PLACE, _GIVEN_UP = "takes place", "given up"


class Store(Protocol):
    """What is used of `torch.distributed.Store`; none of it waits for another rank."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        ...

    def get(self, key: str) -> bytes:
        """Read a value that is there."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Count, and read the count."""
        ...

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        """Write a value if the one that is there is expected, none is ""; read what is there."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether keys are there."""
        ...


class _Silence:
    """Seconds for which a value has not changed, not counting those this process slept itself."""

    def __init__(self) -> None:
        self._value: Any = None
        self._looked = time.monotonic()
        self.seconds = 0.0

    def look(self, value: Any) -> float:
        now = time.monotonic()
        # A job that is suspended as a whole finds all values old when it is resumed.
        self.seconds += min(now - self._looked, 2 * _BEAT)
        self._looked = now
        if value != self._value:
            self._value, self.seconds = value, 0.0
        return self.seconds


class RankWatch:
    """What this rank tells the others and knows of them, in one pass.

    Args:
        store: that of the process group.
        name: of this pass, the same on all ranks.
        rank, size: of this process, and of all.
        timeout: seconds after which a rank that does not come, or does not get on, is given up.
    """

    def __init__(self, store: Store, name: str, rank: int, size: int, timeout: float) -> None:
        self._store = store
        self._name = name
        self._rank = rank
        self._size = size
        self._timeout = timeout
        self._silence = min(timeout, SILENCE)
        self._wake = threading.Event()
        self._stopped = False
        self._rounds = 0
        # Numbers of meetings: this rank came to, has said so, were decided, and took place.
        self._arrived = self._announced = self._decided = self._met = 0
        self._own_error: str | None = None
        self._failure: str | None = None
        self._noticed_by_all = False
        # Batches scored, None while this rank is not scoring.
        self._progress: int | None = None
        self._next_rank, self._own_progress = _Silence(), _Silence()
        self._beat_at = 0.0
        self._beats = 0
        # At once: who is killed in the next moment has come. What a store raises the thread says.
        with contextlib.suppress(Exception):
            self._store.set(self._key(f"alive/{rank}"), "0")
        self._thread = threading.Thread(target=self._run, name="flowdata ranks", daemon=True)
        self._thread.start()

    def watched(self, items: Iterator[T]) -> Iterator[T]:
        """Pass items on, as long as all ranks are well and this one gets on.

        Raises:
            FlowDataError: naming a rank that stopped.
        """
        self._progress = 0
        try:
            for item in items:
                self._raise_failure()
                self._progress += 1
                yield item
        finally:
            self._progress = None

    def meet(self) -> None:
        """Wait until all ranks are here.

        Raises:
            FlowDataError: naming a rank that stopped.
        """
        self._arrived += 1
        self._wake.set()
        if not self._wait(lambda: self._decided == self._arrived):
            raise FlowDataError(
                "the store of torch.distributed does not answer: the process that holds it, rank "
                f"0 or the launcher, has hung. {_GOES_ON}"
            )
        if self._met < self._arrived:
            self._raise_failure()

    def report(self, error: BaseException) -> None:
        """Tell the others why this rank stops, and stay until they know."""
        if self._failure is None:
            lines = str(error).strip().splitlines()
            text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
            self._own_error = f"rank {self._rank} stopped: {text[:_MOST_TEXT]}"
        self._wake.set()
        end = time.monotonic() + _STAY
        self._wait(lambda: self._noticed_by_all or time.monotonic() > end)

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def _wait(self, done: Callable[[], bool]) -> bool:
        """Wait for something the thread does; False if the thread has hung."""
        silence = _Silence()
        while not done():
            if not self._thread.is_alive():
                return True
            if silence.look(self._rounds) > self._silence:
                return False
            time.sleep(_BUSY)
        return True

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise FlowDataError(f"{self._failure}. {_GOES_ON}")

    def _run(self) -> None:
        started = time.monotonic()
        while not self._stopped:
            try:
                self._look()
            # Whatever a store raises, it cannot be asked any more.
            except Exception as error:
                self._failure = self._failure or (
                    "another rank stopped, and the store of torch.distributed with it "
                    f"({str(error).strip().splitlines()[:1]})"
                )
                return
            self._rounds += 1
            waits = self._arrived > self._decided or self._own_error or self._failure
            short = waits and time.monotonic() - started < 60
            self._wake.wait(_BUSY if short else _IDLE)
            self._wake.clear()

    def _look(self) -> None:
        if self._failure is None and self._store.check([self._key("error")]):
            self._failure = json.loads(self._store.get(self._key("error")))
            self._store.add(self._key("noticed"), 1)
        elif self._failure is None and self._own_error is not None:
            self._tell(self._own_error)
        if self._decided < self._arrived:
            self._decide()
        if self._failure is None and time.monotonic() - self._beat_at >= min(
            _BEAT, self._timeout / 4
        ):
            self._beat()
        elif self._failure is not None and not self._noticed_by_all:
            self._noticed_by_all = self._store.add(self._key("noticed"), 0) >= self._size

    def _decide(self) -> None:
        """Say that this rank has arrived, and see whether the meeting takes place.

        That is decided once for all, by who sets the key: no rank goes on to an exchange with
        one that has given up waiting.
        """
        decision = self._key(f"meeting/{self._arrived}")
        if self._announced < self._arrived and self._failure is None:
            self._announced = self._arrived
            if self._store.add(self._key(f"arrived/{self._arrived}"), 1) == self._size:
                self._store.compare_set(decision, "", _TAKES_PLACE)
        if self._failure is not None:
            found = self._store.compare_set(decision, "", _GIVEN_UP).decode()
        elif self._store.check([decision]):
            found = self._store.get(decision).decode()
        else:
            return
        if found == _TAKES_PLACE:
            self._met = self._arrived
        if found == _TAKES_PLACE or self._failure is not None:
            self._decided = self._arrived

    def _key(self, what: str) -> str:
        return f"flowdata/{self._name}/{what}"

    def _tell(self, error: str) -> None:
        self._store.set(self._key("error"), json.dumps(error))

    def _beat(self) -> None:
        """Give a sign of life, and look for that of the next rank."""
        self._beat_at = time.monotonic()
        self._beats += 1
        self._store.set(self._key(f"alive/{self._rank}"), str(self._beats))
        other = (self._rank + 1) % self._size
        key = self._key(f"alive/{other}")
        seen = self._store.get(key) if self._store.check([key]) else None
        silent = self._next_rank.look(seen)
        if seen is None and silent > self._timeout:
            self._tell(
                f"rank {other} has not called score within {self._timeout:g} s (rank_timeout)"
            )
        elif seen is not None and silent > self._silence:
            self._tell(f"rank {other} stopped: no sign of life for {self._silence:g} s")
        stuck = self._own_progress.look(self._progress)
        if self._progress is not None and stuck > self._timeout:
            self._tell(
                f"rank {self._rank} does not get on: no batch for {self._timeout:g} s "
                "(rank_timeout)"
            )


_GOES_ON = "What was saved is kept, and the same call goes on from there"
