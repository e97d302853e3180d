"""How an object store answers one request: ranges, conditions, and what goes wrong on the way."""

import email.utils
import os
import random
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

RANGES = ("single", "multi", "none")
"""Asked for several ranges: the whole object (S3, GCS, MinIO), or all of them; or none is known."""


@dataclass(frozen=True)
class Conditions:
    """How the server answers; the shares of faults are of all requests.

    Args:
        latency: seconds before the first byte of an answer.
        bandwidth: bytes a second of a connection; 0 for as much as it takes.
        connect: seconds more before the first answer of a connection.
        ranges: "single", "multi" or "none".
        stall: share of requests that stand still for ``stall_seconds``.
        stall_seconds: seconds that they stand still.
        stall_body: stand still at some place of the body, not before the first byte.
        reset: share of requests whose connection is reset at some place of the body.
        short: share of requests whose connection is closed at some place of the body.
        refuse: share of requests that are answered with ``refuse_status``.
        refuse_status: as 503, 500 or 429.
        retry_after: seconds in the Retry-After of those; below 0 for no such header.
        seed: of what goes wrong when.
    """

    latency: float = 0.0
    bandwidth: float = 0.0
    connect: float = 0.0
    ranges: str = "single"
    stall: float = 0.0
    stall_seconds: float = 5.0
    stall_body: bool = False
    reset: float = 0.0
    short: float = 0.0
    refuse: float = 0.0
    refuse_status: int = 503
    retry_after: float = -1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ranges not in RANGES:
            raise ValueError(f"ranges must be one of {RANGES}, got {self.ranges!r}")

    def fault(self, chance: float) -> str | None:
        """What goes wrong with the request that drew this number of [0, 1)."""
        for name in ("stall", "reset", "short", "refuse"):
            if chance < (share := getattr(self, name)):
                return name
            chance -= share
        return None


@dataclass
class Span:
    """Bytes of an open file."""

    file: int
    first: int
    count: int


@dataclass(frozen=True)
class Pause:
    """Seconds in which nothing is sent."""

    seconds: float


@dataclass(frozen=True)
class Hangup:
    """The connection ends here."""

    reset: bool


Part: TypeAlias = bytes | Span | Pause | Hangup


@dataclass(frozen=True)
class Request:
    """A request's method, path below the root, and headers by lower-case name."""

    method: str
    target: str
    headers: Mapping[str, str]

    @classmethod
    def parsed(cls, head: bytes) -> "Request":
        """Of everything up to the empty line."""
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines if line)
        return cls(method, target, {name.strip().lower(): text.strip() for name, _, text in pairs})


@dataclass
class Answer:
    """A head, and what follows it; ``spans`` are the bytes of the object in it."""

    head: bytes
    parts: list[Part] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    file: int | None = None


def answered(request: Request, root: Path, conditions: Conditions) -> Answer:
    """The answer of a store in which nothing goes wrong."""
    path = _below(root, request.target)
    if request.method not in ("GET", "HEAD"):
        return empty("405 Method Not Allowed")
    if path is None:
        return empty("404 Not Found")
    file = os.open(path, os.O_RDONLY)
    status = os.fstat(file)
    size, tag = status.st_size, f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
    modified = email.utils.formatdate(status.st_mtime, usegmt=True)
    headers = {
        "ETag": tag,
        "Last-Modified": modified,
        "Accept-Ranges": "none" if conditions.ranges == "none" else "bytes",
        "Content-Type": "application/octet-stream",
    }
    if request.headers.get("if-match", tag) not in (tag, "*"):
        os.close(file)
        return empty("412 Precondition Failed")
    spans = None
    if conditions.ranges != "none" and request.headers.get("if-range", tag) in (tag, modified):
        spans = ranges_of(request.headers.get("range", ""), size)
    if spans is not None and len(spans) > 1 and conditions.ranges == "single":
        spans = None
    if spans is not None and not spans:
        os.close(file)
        return empty("416 Range Not Satisfiable", {"Content-Range": f"bytes */{size}"})
    answer = _whole_or_ranges(headers, spans, size, file)
    if request.method == "HEAD":
        answer.parts, answer.spans = [], []
    return answer


def _whole_or_ranges(
    headers: dict[str, str], spans: list[tuple[int, int]] | None, size: int, file: int
) -> Answer:
    if spans is None:
        spans, status = [(0, size - 1)], "200 OK"
        parts: list[Part] = [Span(file, 0, size)]
    elif len(spans) == 1:
        [(first, last)] = spans
        status = "206 Partial Content"
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        parts = [Span(file, first, last + 1 - first)]
    else:
        status = "206 Partial Content"
        headers["Content-Type"] = "multipart/byteranges; boundary=part"
        parts = [*_multipart(spans, size, file), b"\r\n--part--\r\n"]
    length = sum(_length(part) for part in parts)
    return Answer(_head(status, headers | {"Content-Length": str(length)}), parts, spans, file)


def _multipart(spans: list[tuple[int, int]], size: int, file: int) -> Iterator[Part]:
    for first, last in spans:
        yield b"\r\n--part\r\nContent-Range: bytes %d-%d/%d\r\n\r\n" % (first, last, size)
        yield Span(file, first, last + 1 - first)


def ranges_of(text: str, size: int) -> list[tuple[int, int]] | None:
    """First and last bytes of the ranges that the object has; None if none were asked for."""
    if not re.fullmatch(r"bytes=(\d+-\d*|-\d+)(,\s*(\d+-\d*|-\d+))*", text):
        return None
    spans = []
    for first, last in re.findall(r"(\d*)-(\d*)", text.removeprefix("bytes=")):
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last), size - 1) if first and last else size - 1
        if start <= end:
            spans.append((start, end))
    return spans


def empty(status: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer without a body."""
    return Answer(_head(status, {**(headers or {}), "Content-Length": "0"}))


def spoilt(answer: Answer, fault: str, conditions: Conditions, chances: random.Random) -> Answer:
    """The answer with what goes wrong on the way."""
    if fault == "refuse":
        known = conditions.retry_after >= 0
        wait = {"Retry-After": f"{conditions.retry_after:g}"} if known else {}
        return empty(f"{conditions.refuse_status} Slow Down", wait)
    if fault == "stall":
        pause: Part = Pause(conditions.stall_seconds)
        if not conditions.stall_body:
            answer.parts.insert(0, answer.head)
            answer.parts.insert(0, pause)
            answer.head = b""
            return answer
    else:
        pause = Hangup(reset=fault == "reset")
    length = sum(_length(part) for part in answer.parts)
    if length:
        answer.parts = list(_interrupted(answer.parts, chances.randrange(length), pause))
    return answer


def _interrupted(parts: list[Part], place: int, by: Part) -> Iterator[Part]:
    """The parts, with another in them at a byte."""
    for part in parts:
        length = _length(part)
        if not 0 <= place < length:
            yield part
        elif isinstance(part, Span):
            yield Span(part.file, part.first, place)
            yield by
            yield Span(part.file, part.first + place, length - place)
        elif isinstance(part, bytes):
            yield from (part[:place], by, part[place:])
        place -= length


def _length(part: Part) -> int:
    if isinstance(part, Span):
        return part.count
    return len(part) if isinstance(part, bytes) else 0


def _head(status: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _below(root: Path, target: str) -> Path | None:
    """The file of a URL's path, if there is one."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(target).path).lstrip("/")
    path = (root / name).resolve()
    return path if path.is_relative_to(root) and path.is_file() else None
