"""Access: how shards are reached, and what may go wrong on the way."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Span: TypeAlias = tuple[int, int]
"""First byte and number of bytes."""
Buffer: TypeAlias = bytes | memoryview

# Sockets take no longer time-outs.
_LONGEST = 1e9
_HEADER_NAME = re.compile(r"[!#-'*+.^-z|~0-9A-Z-]+")
_BYTES = re.compile(r"(\d+(?:\.\d*)?) ?(?:([kmgt]?)(i?)b)?", re.IGNORECASE)
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Readable(Protocol):
    """What is needed of a file."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Access:
    """How shards are reached.

    Attributes:
        allow_pipe: run the shell commands of ``pipe:`` URLs.
        timeout: seconds without an answer after which a request has failed.
        retries: how often a failed request is made again, with growing waits.
        headers: for HTTP and HTTPS, ``{"Authorization": "Bearer ..."}``; never shown, and not
            sent on to another host.
        cache_dir: keep whole remote shards in this folder.
        cache_size: bytes it may take, as 50_000_000_000 or "50GB"; the shards used longest ago make
            room.
        cache_from: share of a shard's samples that an epoch has to draw so that the shard is
            fetched whole, by several connections; 0 for always. By default a fourth, with which a
            second epoch has the copy paid for. Of others ranges are read, and nothing is kept. A
            copy that is there is always used.
        storage_options: for fsspec, as its file systems take them.
        min_rate: bytes a second, over ``timeout`` seconds, below which an answer of HTTP that
            drips has failed as well; 0 for any rate.
        max_wait: seconds that a server may ask to wait between two attempts, by Retry-After.
        signed_by: parameters of a URL's query that change from one day to the next while the
            shard is the same, as ``("token", "expires")``; signatures of S3, Google Cloud
            Storage, Azure, CloudFront, Alibaba, Tencent and Huawei are known.
        check_version: refuse a remote shard whose ETag, or else time of modification, is not that
            which its index has; False where equal content is uploaded anew.
        max_expansion: how many times its size a compressed shard may unpack to, from 256 MB on.
        connections: requests to servers that each process, so each worker, makes side by side.
        ahead: bytes that each process may read before they are used, as 256_000_000 or "256MB".
        most_overread: bytes that may be read from a server, in bytes of the samples that are
            wanted. Reading over a gap is sooner done than asking anew after some ms; with 4 nothing
            is slower where a fifth or more is drawn, and what is drawn thinly not by much. 1 where
            each byte has its price.

    Raises:
        ValueError: for a number that makes no sense.
    """

    allow_pipe: bool = False
    timeout: float = 30.0
    retries: int = 5
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    cache_size: int | str | None = None
    cache_from: float = 0.25
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    min_rate: float = 1000.0
    max_wait: float = 300.0
    signed_by: Sequence[str] = ()
    check_version: bool = True
    max_expansion: float = 100.0
    connections: int = 16
    ahead: int | str = "256MB"
    most_overread: float = 4.0

    def __post_init__(self) -> None:
        if not (isinstance(self.retries, int) and self.retries >= 0):
            raise ValueError(f"retries must be an integer of at least 0, got {self.retries!r}")
        if not (isinstance(self.timeout, int | float) and 0 < self.timeout < _LONGEST):
            raise ValueError(f"timeout must be seconds above 0, got {self.timeout!r}")
        connections = self.connections
        if not (isinstance(connections, int) and connections >= 1):
            raise ValueError(f"connections must be an integer of at least 1, got {connections!r}")
        _ = self.bytes_ahead
        for name, least in (
            ("min_rate", 0),
            ("max_wait", 0),
            ("cache_from", 0),
            ("max_expansion", 1),
            ("most_overread", 1),
        ):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and value >= least):
                raise ValueError(f"{name} must be a number of at least {least}, got {value!r}")
        if self.most_cached == 0:
            raise ValueError(f"cache_size must be bytes above 0, got {self.cache_size!r}")
        if isinstance(self.signed_by, str):
            raise ValueError(f"signed_by must be names of parameters, got {self.signed_by!r}")
        for name, value in self.headers.items():
            if not (_HEADER_NAME.fullmatch(str(name)) and _HEADER_VALUE.fullmatch(str(value))):
                # The value is a secret.
                raise ValueError(f"headers must be texts of one line, that of {name!r} is not")
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", Path(self.cache_dir).expanduser())

    @property
    def bytes_ahead(self) -> int:
        """``ahead`` as a number."""
        return _number_of_bytes(self.ahead, "ahead")

    @property
    def most_cached(self) -> int | None:
        """``cache_size`` as a number."""
        size = self.cache_size
        return None if size is None else _number_of_bytes(size, "cache_size")


def _number_of_bytes(given: int | str, name: str) -> int:
    match = _BYTES.fullmatch(str(given).strip()) if not isinstance(given, bool) else None
    if match is None:
        raise ValueError(f'{name} must be bytes, as 256_000_000 or "256MB", got {given!r}')
    power = "kmgt".find(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


class BadAnswerError(OSError):
    """An answer that is not what was asked for, or not as HTTP has it."""


class AbandonedError(Exception):
    """A `Fetch` that nobody wants any more."""


class NoRangesError(Exception):
    """A server that sends the whole shard when it is asked for a part."""


class RefusedError(Exception):
    """A server that answers that it does not give the content.

    Attributes:
        status: of HTTP.
        permanent: whether asking again is in vain.
        wait: seconds after which it may be asked again, if it says so, else 0.
        length: bytes of the whole shard, if it says so, else -1.
    """

    def __init__(
        self, reason: str, status: int, *, permanent: bool, wait: float = 0.0, length: int = -1
    ) -> None:
        super().__init__(reason)
        self.status, self.permanent, self.wait, self.length = status, permanent, wait, length
