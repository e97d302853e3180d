"""Access: how shards are reached; Transport: what every way of reaching one can do."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Span: TypeAlias = tuple[int, int]
"""First byte and number of bytes."""
Buffer: TypeAlias = bytes | memoryview


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
        cache_size: bytes it may take; the shards used longest ago make room.
        storage_options: for fsspec, as its file systems take them.

    Raises:
        ValueError: for a number that makes no sense.
    """

    allow_pipe: bool = False
    timeout: float = 30.0
    retries: int = 5
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    cache_size: int | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.retries, int) and self.retries >= 0):
            raise ValueError(f"retries must be an integer of at least 0, got {self.retries!r}")
        if not (isinstance(self.timeout, int | float) and self.timeout > 0):
            raise ValueError(f"timeout must be seconds above 0, got {self.timeout!r}")
        size = self.cache_size
        if size is not None and not (isinstance(size, int) and size > 0):
            raise ValueError(f"cache_size must be a number of bytes above 0, got {size!r}")
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", Path(self.cache_dir).expanduser())


class Transport(Protocol):
    """One open shard."""

    @property
    def supports_ranges(self) -> bool:
        """Whether `read` can be asked for any bytes; if not, there is `stream`."""
        ...

    def length(self) -> int | None:
        """Bytes of the whole shard, None where they cannot be known."""
        ...

    def read(self, spans: Sequence[Span]) -> Iterable[Buffer]:
        """Exactly these bytes, span by span.

        Raises:
            NoRangesError: by a server that knows no ranges: then `supports_ranges` becomes
                False.
        """
        ...

    def stream(self) -> Readable:
        """All bytes from the first on."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class NoRangesError(Exception):
    """A server that sends the whole shard when it is asked for a part."""


class RefusedError(Exception):
    """A server that answers that it does not give the content.

    Attributes:
        status: of HTTP.
        permanent: whether asking again is in vain.
        wait: seconds after which it may be asked again, if it says so, else 0.
    """

    def __init__(self, reason: str, status: int, *, permanent: bool, wait: float) -> None:
        super().__init__(reason)
        self.status, self.permanent, self.wait = status, permanent, wait
