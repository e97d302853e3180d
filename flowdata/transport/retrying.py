"""Requests that are made again after failures that may pass."""

import re
import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from flowdata.errors import ShardError
from flowdata.transport.access import AbandonedError, Access, NoRangesError, RefusedError
from flowdata.transport.urls import redact

T = TypeVar("T")
Bytes = TypeVar("Bytes", bytes, memoryview)

FIRST_WAIT = 0.2
"""Seconds before the first repetition; each of the next waits twice as long."""
_LONGEST_WAIT = 10.0
# Texts of libraries have whole URLs in them, which may hold signatures and passwords.
_SECRETS = re.compile(r"(?<=[\w/])\?[^\s'\"]+|(?<=://)[^/\s'\"]+(?=@)")


_of_thread = threading.local()


def wait_until(stopped: threading.Event) -> None:
    """Let no attempt of this thread wait longer than until this is set."""
    _of_thread.stopped = stopped


def is_stopped() -> bool:
    """Whether nobody wants any more what this thread does."""
    stopped: threading.Event | None = getattr(_of_thread, "stopped", None)
    return stopped is not None and stopped.is_set()


def sleep(seconds: float, stopped: threading.Event | None = None) -> bool:
    """Sleep, and return whether it may go on."""
    stopped = stopped or getattr(_of_thread, "stopped", None)
    if stopped is not None:
        return not stopped.wait(seconds)
    time.sleep(seconds)
    return True


class Attempts:
    """The attempts at one thing: counts those that failed, and waits before the next.

    Args:
        url, access: of the shard, for errors and options.
        stopped: set when nobody wants it any more.
    """

    def __init__(self, url: str, access: Access, stopped: threading.Event | None = None) -> None:
        self._url, self._access, self._stopped = url, access, stopped
        self._failed = 0

    def failed(self, error: Exception) -> None:
        """Wait for the next attempt.

        Raises:
            ShardError: when it failed for good, naming the shard and the last failure.
        """
        if isinstance(error, ShardError | NoRangesError | AbandonedError | MemoryError):
            raise error
        if isinstance(error, FileNotFoundError | PermissionError):
            raise ShardError(
                f"there is no shard {redact(self._url)}, or permission was denied"
            ) from error
        wait = error.wait if isinstance(error, RefusedError) else 0.0
        if isinstance(error, RefusedError) and error.permanent:
            raise ShardError(f"{redact(self._url)}: {error}") from error
        self._failed += 1
        if self._failed > self._access.retries:
            self._give_up(error, f"in {self._failed} attempts; the last failed with")
        if wait > self._access.max_wait:
            self._give_up(error, f"within max_wait={self._access.max_wait:g} seconds: it answers")
        # Not all that a server asked to wait at the moment when it asked for that.
        wait += min(FIRST_WAIT * 2 ** (self._failed - 1), _LONGEST_WAIT)
        if not sleep(wait, self._stopped):
            raise ShardError(f"{redact(self._url)} is wanted no more") from error

    def succeeded(self) -> None:
        """Begin to count anew."""
        self._failed = 0

    def _give_up(self, error: Exception, how: str) -> NoReturn:
        # The name of a class says what a library means by a short text.
        kind = "" if isinstance(error, RefusedError) else f"{type(error).__name__}: "
        text, cause = without_secrets(error)
        raise ShardError(f"{redact(self._url)} could not be read {how} {kind}{text}") from cause


def without_secrets(error: Exception) -> tuple[str, Exception | None]:
    """The text of a library's error, and what to raise it from: a traceback shows its text too."""
    text = _SECRETS.sub("...", str(error))
    return text, error if text == str(error) else None


def retry(
    fetch: Callable[[], T], url: str, access: Access, *, stopped: threading.Event | None = None
) -> T:
    """Call ``fetch``, again after failures that may pass, and return its result.

    Whatever a library raises counts as a failure: servers and proxies find ways to break each.

    Raises:
        ShardError: when it failed for good, naming the shard and the last failure.
    """
    attempts = Attempts(url, access, stopped)
    while True:
        try:
            return fetch()
        except Exception as error:
            attempts.failed(error)


def require_complete(content: Bytes, size: int, offset: int, name: str) -> Bytes:
    """Return the content if it has all bytes that were asked for.

    Raises:
        EOFError: for less.
    """
    if len(content) != size:
        raise EOFError(f"{name} has {len(content):,} of {size:,} bytes from byte {offset:,} on")
    return content
