#!/usr/bin/env python
"""A server of a folder's files with an object store's latency and manners, in its own process."""

import argparse
import collections
import contextlib
import dataclasses
import heapq
import json
import os
import random
import resource
import selectors
import socket
import struct
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from answering import (
    Answer,
    Conditions,
    Hangup,
    Part,
    Pause,
    Request,
    Span,
    answered,
    empty,
    spoilt,
)

CONTROL = "/-/"
"""Below this are no files: "stats", "log", "reset", and "conditions?latency=0.03&..."."""

_PIECE = 0.004
"""Seconds of its bandwidth that a connection is given at once."""


@dataclasses.dataclass(frozen=True)
class Served:
    """A server: its URL, what it sent, and how it answers from now on."""

    url: str

    def stats(self) -> dict[str, float]:
        """What was asked for since `reset`: see `Counts`; and the server's seconds of CPU."""
        stats: dict[str, float] = self._ask("stats")
        return stats

    def log(self) -> list[list[Any]]:
        """The answers since `reset`: path, first and last byte of each range."""
        log: list[list[Any]] = self._ask("log")
        return log

    def reset(self) -> None:
        """Begin to count anew."""
        self._ask("reset")

    def answer(self, **conditions: Any) -> None:
        """Answer new requests under these conditions, the others as by default."""
        self._ask("conditions?" + urllib.parse.urlencode(conditions))

    def _ask(self, what: str) -> Any:
        with urllib.request.urlopen(self.url + CONTROL + what) as answer:
            return json.loads(answer.read())


@contextlib.contextmanager
def serving(folder: Path, **conditions: Any) -> Iterator[Served]:
    """Yield a server of this folder; see `Conditions`. It ends with the block, or this process."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in conditions.items()]
    command = [sys.executable, "-S", str(Path(__file__).resolve()), str(folder), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        try:
            if not url:
                raise RuntimeError(f"the server of {folder} did not start: see above")
            yield Served(url)
        finally:
            process.terminate()


@dataclasses.dataclass
class Counts:
    """What the server was asked for."""

    requests: int = 0
    heads: int = 0
    refused: int = 0
    faults: int = 0
    bytes: int = 0
    connections: int = 0
    most_connections: int = 0
    most_answering: int = 0


class Server:
    """All connections in one thread: little of the machine, so that others are measured."""

    def __init__(self, root: Path, conditions: Conditions) -> None:
        self.root, self.conditions = root.resolve(), conditions
        self.chances = random.Random(conditions.seed)
        self.counts = Counts()
        self.log: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=1 << 17)
        self.open = self.answering = 0
        self.selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Connection]] = []
        self._turn, self._began = 0, 0.0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        """Serve until whoever started this has closed its end of the standard input."""
        with contextlib.suppress(PermissionError):  # A file cannot be waited for.
            self.selector.register(sys.stdin, selectors.EVENT_READ, None)
        while True:
            wait = max(self._timers[0][0] - time.monotonic(), 0) if self._timers else None
            for key, _ in self.selector.select(wait):
                if key.data is not None:
                    key.data()
                elif not os.read(0, 4096):
                    return
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                due, _, connection = heapq.heappop(self._timers)
                if connection.due == due:
                    connection.due = None
                    connection.proceed()

    def wake(self, connection: "Connection", due: float) -> None:
        """Let the connection proceed at this time."""
        connection.due = due
        self._turn += 1
        heapq.heappush(self._timers, (due, self._turn, connection))

    def answer(self, request: Request) -> Answer:
        """What a request is answered."""
        if request.target.startswith(CONTROL):
            return self._controlled(request.target.removeprefix(CONTROL))
        answer = answered(request, self.root, self.conditions)
        counts = self.counts
        counts.requests += 1
        counts.heads += request.method == "HEAD"
        counts.refused += answer.file is None
        fault = self.conditions.fault(self.chances.random())
        if fault is not None:
            counts.faults += 1
            file = answer.file
            answer = spoilt(answer, fault, self.conditions, self.chances)
            answer.file = file
        self.log.append((request.target, *answer.spans))
        return answer

    def count(self, *, opened: int = 0, answering: int = 0) -> None:
        """Connections that came or went, and answers that began or ended."""
        self.open += opened
        self.answering += answering
        self.counts.connections += max(opened, 0)
        self.counts.most_connections = max(self.counts.most_connections, self.open)
        self.counts.most_answering = max(self.counts.most_answering, self.answering)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                Connection(self, self._listener.accept()[0])

    def _controlled(self, target: str) -> Answer:
        what, _, query = target.partition("?")
        if what == "stats":
            content: Any = vars(self.counts) | {"cpu_seconds": _cpu_seconds() - self._began}
        elif what == "log":
            content = list(self.log)
        elif what == "conditions":
            self.conditions = _conditions(dict(urllib.parse.parse_qsl(query)))
            self.chances = random.Random(self.conditions.seed)
            content = dataclasses.asdict(self.conditions)
        elif what == "reset":
            self.counts, self._began = Counts(), _cpu_seconds()
            self.log.clear()
            content = {}
        else:
            return empty("404 Not Found")
        body = json.dumps(content).encode()
        return Answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), [body])


class Connection:
    """A connection: one request after another, each answered at its time and pace."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server, self.socket = server, sock
        self.due: float | None = None
        self._parts: collections.deque[Part] = collections.deque()
        self._received = b""
        self._file: int | None = None
        self._counted = self._last = False
        self._first = True
        self._paid = 0.0
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait_for(selectors.EVENT_READ, self._receive)

    def proceed(self) -> None:
        """Send what is due, and say when to go on."""
        try:
            while self._parts:
                if not self._send(self._parts[0]):
                    return
        except BlockingIOError:
            self._wait_for(selectors.EVENT_WRITE, self._writable)
        except OSError:
            self._close()
        else:
            self._end_answer()

    def _writable(self) -> None:
        self.server.selector.unregister(self.socket)
        self.proceed()

    def _wait_for(self, event: int, action: Any) -> None:
        self.server.selector.register(self.socket, event, action)

    def _receive(self) -> None:
        try:
            received = self.socket.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        self.server.selector.unregister(self.socket)
        if not received:
            self._close()
            return
        self._received += received
        self._begin_answer()

    def _begin_answer(self) -> None:
        """Of the first request that was received whole."""
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            self._wait_for(selectors.EVENT_READ, self._receive)
            return
        self._received = rest
        try:
            request = Request.parsed(head)
        except ValueError:
            self._close()
            return
        answer = self.server.answer(request)
        self._file = answer.file
        self._parts.extend(([answer.head] if answer.head else []) + answer.parts)
        self._last = request.headers.get("connection", "").lower() == "close"
        self._counted = not request.target.startswith(CONTROL)
        if not self._counted:
            self.proceed()
            return
        conditions = self.server.conditions
        # A connection that only asks how others are is none.
        self.server.count(opened=int(self._first), answering=1)
        wait = conditions.latency + (conditions.connect if self._first else 0.0)
        self._first = False
        self._paid = time.monotonic() + wait
        self.server.wake(self, self._paid)

    def _send(self, part: Part) -> bool:
        """Send a piece of the answer; whether the next may follow at once."""
        if isinstance(part, Pause):
            self._parts.popleft()
            self._paid = time.monotonic() + part.seconds
            self.server.wake(self, self._paid)
            return False
        if isinstance(part, Hangup):
            if part.reset:
                linger = struct.pack("ii", 1, 0)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            raise ConnectionError
        if isinstance(part, bytes):
            sent = self.socket.send(part)
            self._parts[0] = part[sent:]
            if sent == len(part):
                self._parts.popleft()
            return True
        return self._send_span(part)

    def _send_span(self, span: Span) -> bool:
        """A piece is sent when its last byte has had its time, so none is early."""
        bandwidth = self.server.conditions.bandwidth
        if span.count == 0:
            self._parts.popleft()
            return True
        now = time.monotonic()
        piece = min(span.count, int(bandwidth * _PIECE) or 1 << 20)
        if bandwidth:
            # What the client did not take in time is lost to it, but for a moment.
            ready = max(self._paid, now - 4 * _PIECE) + piece / bandwidth
            if ready > now:
                self.server.wake(self, ready)
                return False
        sent = os.sendfile(self.socket.fileno(), span.file, span.first, piece)
        if sent == 0:
            raise ConnectionError  # The file became shorter.
        if bandwidth:
            self._paid = max(self._paid, now - 4 * _PIECE) + sent / bandwidth
        span.first, span.count = span.first + sent, span.count - sent
        self.server.counts.bytes += sent
        return True

    def _end_answer(self) -> None:
        self._release()
        if self._last:
            self._close()
        else:
            self._begin_answer()

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._counted:
            self.server.count(answering=-1)
            self._counted = False

    def _close(self) -> None:
        self._release()
        self._parts.clear()
        self.due = None
        self.socket.close()
        self.server.count(opened=int(self._first) - 1)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _conditions(given: dict[str, Any]) -> Conditions:
    """Conditions of texts."""
    read: dict[str, Any] = {}
    for name, value in given.items():
        kind = type(getattr(Conditions, name))
        read[name] = str(value).lower() in ("1", "true") if kind is bool else kind(value)
    return Conditions(**read)


def main() -> None:
    """Serve a folder, print the URL, and stop when the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=Conditions.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path)
    for field in dataclasses.fields(Conditions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default)
    options = vars(parser.parse_args())
    server = Server(options.pop("folder"), _conditions(options))
    print(server.url, flush=True)
    server.run()


if __name__ == "__main__":
    main()
