"""Shards that a shell command writes, for callers who allow that."""

import io
import subprocess
from collections.abc import Sequence

from flowdata.errors import ShardError
from flowdata.transport.access import Buffer, Readable, Span
from flowdata.transport.fetching import Fetch
from flowdata.transport.identity import UNKNOWN, Identity
from flowdata.transport.urls import PIPE, redact


class PipeTransport:
    """The output of a shell command."""

    supports_ranges = False

    def __init__(self, command: str) -> None:
        self._command = command

    def identity(self) -> Identity:
        """Not known before the command ends."""
        return UNKNOWN

    def is_whole(self) -> bool:
        """Only the last command of a pipeline says that it failed."""
        return False

    def read(self, spans: Sequence[Span]) -> list[Buffer]:  # noqa: ARG002
        """Not here: a pipe has no ranges."""
        raise io.UnsupportedOperation("a pipe has no ranges")

    def fetch(self, offset: int, size: int) -> Fetch:  # noqa: ARG002
        """Not here: a pipe has no ranges."""
        raise io.UnsupportedOperation("a pipe has no ranges")

    def stream(self) -> Readable:
        """All bytes from the first on, by a process of its own."""
        return _PipeStream(self._command)

    def close(self) -> None:
        """Each stream is a process of its own."""


class _PipeStream:
    def __init__(self, command: str) -> None:
        self._command = command
        self._process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE)

    def read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(size)
        if size and not content and (code := self._process.wait()):
            raise ShardError(f"{redact(PIPE + self._command)} ended with exit status {code}")
        return content

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        # It may be asleep in a write that nobody reads.
        self._process.kill()
        self._process.wait()
