"""What an answer of HTTP says of itself, and whether that is what was asked for."""

import contextlib
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from flowdata.transport.access import BadAnswerError, RefusedError
from flowdata.transport.identity import Identity

# Statuses of failures that may pass: time-outs, too many requests, and servers that are in trouble.
_RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes +(?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", re.IGNORECASE)
_DIGITS = re.compile(r"\d{1,18}")
_PACKED = frozenset({"br", "compress", "dcb", "dcz", "deflate", "x-compress", "zstd"})


def content_range(text: str) -> tuple[int, int, int]:
    """First byte, number of bytes and bytes of all of a Content-Range; -1 for unknown.

    Raises:
        BadAnswerError: for none, and for one that contradicts itself.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise BadAnswerError(f"an answer to a request for some bytes has Content-Range: {text!r}")
    first, last = (int(match[1]), int(match[2])) if match[1] else (-1, -2)
    total = -1 if match[3] == "*" else int(match[3])
    if match[1] and (last < first or 0 <= total <= last):
        raise BadAnswerError(f"an answer has a Content-Range that cannot be: {text!r}")
    return first, last - first + 1, total


def content_length(headers: Mapping[str, str]) -> int:
    """Bytes of a body, -1 where that is not said.

    Raises:
        BadAnswerError: for a length that is no number, or two.
    """
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        return -1
    text = headers.get("Content-Length")
    if text is None:
        return -1
    values = {value.strip() for value in text.split(",")}
    if len(values) > 1 or not _DIGITS.fullmatch(value := values.pop()):
        raise BadAnswerError(f"an answer has Content-Length: {text!r}")
    return int(value)


def require_plain(headers: Mapping[str, str]) -> None:
    """Raise for content that was compressed on the way so that nobody here can read it.

    Gzip is passed on as it is: servers call shards that are stored so encoded by it. So are words
    that name no compression: object stores keep what an upload said ("aws-chunked", "utf-8").
    """
    text = headers.get("Content-Encoding", "")
    if _PACKED & {word.strip() for word in text.lower().split(",")}:
        raise BadAnswerError(f"an answer has Content-Encoding: {text!r}, which nobody asked for")


def identity_of(headers: Mapping[str, str], place: str, length: int) -> Identity:
    """What the headers of an answer say of the whole shard."""
    return Identity(
        length, headers.get("ETag", "").strip(), headers.get("Last-Modified", "").strip(), place
    )


def refusal(status: int, headers: Mapping[str, str]) -> RefusedError:
    """The error of an answer without content."""
    hint, length = "", -1
    wait = _seconds_to_wait(headers)
    if status == 401:
        hint = '; sign in by Access(headers={"Authorization": ...}), or user:password@ in the URL'
    elif status == 403:
        hint = ": permission was denied, or the time is over for which the URL was signed"
    elif status == 416:
        hint = ": it has not the bytes that it should have"
        with contextlib.suppress(BadAnswerError):
            length = content_range(headers.get("Content-Range", ""))[2]
    elif wait:
        hint = f", which asks to wait {wait:,.0f} s"
    permanent = status not in _RETRY_STATUSES
    return RefusedError(
        f"HTTP {status}{hint}", status, permanent=permanent, wait=wait, length=length
    )


def _seconds_to_wait(headers: Mapping[str, str]) -> float:
    """What Retry-After says, in seconds or as a date; 0 where it says nothing of use."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{0,9})?", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    now = time.time()
    # Clocks differ: where the server says what its own shows, that counts.
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        now = parsedate_to_datetime(headers.get("Date", "")).timestamp()
    return max(until - now, 0.0)
