"""Pace: an answer that drips is a time-out, not only one that is silent."""

import io
import time
from typing import Any, cast

# Any number of "100 Continue" may come before an answer.
_LARGEST_HEAD = 1 << 20


class TooSlowError(OSError):
    """An answer whose bytes come, but so slowly that it would never end."""


class Pace:
    """How many bytes come while somebody waits for them.

    Args:
        seconds: of waiting after which that is looked at.
        min_rate: bytes a second that are enough.
    """

    def __init__(self, seconds: float, min_rate: float) -> None:
        self._seconds, self._min_rate = seconds, min_rate
        self._waited, self._came = 0.0, 0

    def receive(self, receive: Any, buffer: Any) -> int:
        """Let ``receive`` fill a buffer, and return the number of its bytes.

        Raises:
            TooSlowError: when too few came for too long.
        """
        started = time.monotonic()
        count = cast(int, receive(buffer) or 0)
        self._waited += time.monotonic() - started
        self._came += count
        if self._waited > self._seconds:
            if count and self._came < self._min_rate * self._waited:
                raise TooSlowError(
                    f"{self._came:,} bytes came in {self._waited:.1f} s, fewer than "
                    f"min_rate={self._min_rate:,} a second"
                )
            self._waited, self._came = 0.0, 0
        return count


class PacedFile(io.RawIOBase):
    """A socket's file whose bytes are measured."""

    def __init__(self, raw: io.RawIOBase, pace: Pace) -> None:
        self._raw, self._pace = raw, pace
        self.head: int | None = _LARGEST_HEAD
        """Bytes that headers may still take; None after them."""

    def readable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        count = self._pace.receive(self._raw.readinto, buffer)
        if self.head is not None:
            self.head -= count
            if self.head < 0:
                raise TooSlowError(f"{_LARGEST_HEAD:,} bytes of headers came, and no end of them")
        return count

    def close(self) -> None:  # noqa: D102
        self._raw.close()
        super().close()
