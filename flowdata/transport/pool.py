"""ReadingPool: the threads that read from servers, in order, and ask again what is overdue."""

import contextlib
import heapq
import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeAlias

from flowdata.transport.access import AbandonedError, Buffer
from flowdata.transport.counts import Counts
from flowdata.transport.fetching import Fetch
from flowdata.transport.retrying import wait_until
from flowdata.transport.speeds import NEARBY, Speeds

Order: TypeAlias = tuple[int, int]
"""What is done first: the smaller one."""
Outcome: TypeAlias = Buffer | Exception

# Seconds between two looks for requests that are overdue, and that are given to threads to end.
_LOOK, _FAREWELL = 0.03, 1.0
# Repetitions of one request, and of how many requests one may be repeated: where all are slow,
# more of them would make it worse.
_MOST_HEDGES, _HEDGED_SHARE, _FIRST_HEDGES = 4, 8, 4
# Requests side by side to a server nearby.
_NEARBY = 4


@dataclass(eq=False)
class _Request:
    """One span that is wanted, and the fetches that are made for it: the first answer counts."""

    make: Callable[[], Fetch]
    size: int
    speeds: Speeds
    done: Callable[[Outcome], None]
    running: list[Fetch] = field(default_factory=list)
    asked: float = 0.0
    hedges: int = 0
    is_done: bool = False

    def is_overdue(self, now: float) -> bool:
        """Whether the fetch that began last takes longer than it should."""
        fetch = self.running[-1]
        return self.speeds.is_overdue(
            self.size,
            now - self.asked,
            has_begun=not math.isnan(fetch.first_byte),
            silent=now - fetch.last_bytes,
        )


class ReadingPool:
    """Runs what it is given in order, on so many threads; they end with it.

    A request that takes much longer than such requests do is made once more, on a thread beside
    these; whichever answer comes first counts, and the other connection is closed.

    Args:
        connections: requests side by side, without those that are repeated.
        counts: what is added to.
    """

    def __init__(self, connections: int, counts: Counts) -> None:
        self._counts = counts
        self._answered = self._hedged = 0
        self._connections, self._spare = connections, max(connections // 4, 1)
        self._side_by_side = connections
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._work, self._news = threading.Condition(self._lock), threading.Condition(self._lock)
        self._jobs: list[tuple[Order, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._hedges: list[_Request] = []
        self._asked: list[_Request] = []
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._next_look = 0.0
        self._stopped = threading.Event()
        self._failure: BaseException | None = None

    def submit(self, order: Order, job: Callable[[], None]) -> None:
        """Have a job done, which deals with its errors itself."""
        with self._lock:
            heapq.heappush(self._jobs, (order, next(self._numbers), job))
            self._call_thread()

    def fetch(
        self,
        order: Order,
        make: Callable[[], Fetch],
        size: int,
        speeds: Speeds,
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        """Have a span read.

        Args:
            order: when.
            make: makes a fetch of it.
            size: bytes of it.
            speeds: of the server.
            done: is given the bytes, or the error, by whatever thread has them.

        Returns:
            What ends it, where nobody wants it any more: then ``done`` is not called.
        """
        request = _Request(make, size, speeds, done)
        # Of a server that answers at once, threads have nothing to wait for but one another.
        is_nearby = speeds.speed.latency < NEARBY
        self._side_by_side = min(self._connections, _NEARBY) if is_nearby else self._connections
        self.submit(order, partial(self._run, request))
        return partial(self._end, request)

    def run(self, make: Callable[[], Fetch], size: int, speeds: Speeds) -> Buffer:
        """Read a span in this thread, a job's.

        Raises:
            Exception: the error of the fetch, or `AbandonedError` where the pool is closed.
        """
        outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._run(_Request(make, size, speeds, outcomes.put))
        while True:
            with contextlib.suppress(Empty):
                # Another thread may have it still, which began when this one took too long.
                outcome = outcomes.get(timeout=_LOOK)
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome
            if self._stopped.is_set():
                raise AbandonedError

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Wait until this is so; it is asked after each `tell`."""
        with self._lock:
            if is_done():
                return
            while not is_done():
                if self._failure is not None:
                    raise self._failure
                self._news.wait(_LOOK)
                self._look_for_overdue()

    def tell(self) -> None:
        """Something is done that may be waited for."""
        with self._lock:
            self._news.notify_all()

    def close(self) -> None:
        """End all, and the threads; in a forked process there are none."""
        if os.getpid() != self._process:
            return
        self._stopped.set()
        with self._lock:
            self._jobs.clear()
            self._hedges.clear()
            fetches = [fetch for request in self._asked for fetch in request.running]
            self._work.notify_all()
        for fetch in fetches:
            fetch.abandon()
        end = time.monotonic() + _FAREWELL
        # This one, where its collection of garbage ends a pass.
        for thread in set(self._threads) - {threading.current_thread()}:
            # One that waits for a server, and cannot be stopped, ends when it has its answer.
            thread.join(max(end - time.monotonic(), 0.0))

    def _call_thread(self) -> None:
        """Let a thread look for work; it may have to be made."""
        idle = len(self._threads) - self._busy
        wanted = min(len(self._jobs), self._side_by_side - self._busy) + len(self._hedges)
        if wanted <= idle:
            self._work.notify()
        elif len(self._threads) < self._connections + self._spare and not self._stopped.is_set():
            name = f"flowdata-{len(self._threads)}"
            # A daemon: what cannot be stopped should not keep a process from its end.
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self) -> None:
        wait_until(self._stopped)
        while True:
            with self._lock:
                while (job := self._next_job()) is None:
                    if self._stopped.is_set():
                        return
                    self._work.wait()
                self._busy += 1
            try:
                job()
            except BaseException as error:
                self._failure = error
                self.tell()
            finally:
                # What it holds would stay until the next one.
                del job
                with self._lock:
                    self._busy -= 1
                    self._look_for_overdue()

    def _next_job(self) -> Callable[[], None] | None:
        if self._stopped.is_set():
            return None
        if self._hedges:
            return partial(self._run, self._hedges.pop())
        if self._jobs and self._busy < self._side_by_side:
            return heapq.heappop(self._jobs)[2]
        return None

    def _run(self, request: _Request) -> None:
        """Make one fetch of a request, and if it is the first to end, tell what came."""
        with self._lock:
            if request.is_done or self._stopped.is_set():
                return
            fetch = request.make()
            request.running.append(fetch)
            request.asked = time.monotonic()
            if len(request.running) == 1:
                self._asked.append(request)
        outcome: Outcome
        try:
            outcome = fetch.run()
        except Exception as error:
            outcome = error
        self._counts.add(retries=max(fetch.attempts - 1, 0))
        with self._lock:
            request.running.remove(fetch)
            if not request.running:
                self._asked.remove(request)
            # A failure is none while there may be an answer.
            failed = isinstance(outcome, Exception)
            if self._stopped.is_set() or request.is_done:
                return
            if failed and (request.running or request in self._hedges):
                return
            request.is_done = True
            others = list(request.running)
            self._answered += not failed
        for other in others:
            other.abandon()
        if not failed:
            request.speeds.note(request.size, fetch.first_byte, fetch.body)
        request.done(outcome)

    def _end(self, request: _Request) -> None:
        with self._lock:
            request.is_done = True
            running = list(request.running)
        for fetch in running:
            fetch.abandon()

    def _look_for_overdue(self) -> None:
        """Repeat requests whose answers are overdue."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        for request in self._asked:
            if (
                not request.is_done
                and request.hedges < _MOST_HEDGES
                and self._hedged < _FIRST_HEDGES + self._answered // _HEDGED_SHARE
                and request not in self._hedges
                and request.is_overdue(now)
            ):
                request.hedges += 1
                self._hedged += 1
                self._counts.add(hedged=1)
                self._hedges.append(request)
                self._call_thread()
