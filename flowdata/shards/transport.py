"""Where the bytes of a shard come from: local files, servers, and pipes if allowed."""

import io
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from flowdata.errors import ShardError
from flowdata.shards.forward import Readable
from flowdata.shards.urls import PIPE, local_path, shown

T = TypeVar("T")
Span: TypeAlias = tuple[int, int]
"""First byte and number of bytes."""
Buffer: TypeAlias = bytes | memoryview

_HTTP = ("http://", "https://")
_WAIT = 0.2
_LONGEST_WAIT = 10.0


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
    def ranged(self) -> bool:
        """Whether `read` can be asked for any bytes; if not, there is `stream`."""
        ...

    def length(self) -> int | None:
        """Bytes of the whole shard, None where they cannot be known."""
        ...

    def read(self, spans: Sequence[Span]) -> Iterable[Buffer]:
        """Exactly these bytes, span by span.

        Raises:
            NoRangesError: by a server that knows no ranges; `ranged` is False from then on.
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
    """A server that answers that it does not give the content, now or ever."""

    def __init__(self, reason: str, status: int, *, for_good: bool, wait: float) -> None:
        super().__init__(reason)
        self.status, self.for_good, self.wait = status, for_good, wait


def connect(url: str, access: Access, length: int = -1) -> Transport:
    """The transport of a shard, with this many bytes if they are known.

    Nothing is fetched yet, but for the cache, and a local file is opened.

    Raises:
        ShardError: for a file that is not there, or a pipe that is not allowed.
    """
    if url.startswith(PIPE):
        if not access.allow_pipe:
            raise ShardError(
                f"{url}: a shell command is run only with allow_pipe=True; do that for shard "
                "lists that you trust"
            )
        return _Pipe(url[len(PIPE) :])
    path = local_path(url)
    if path is not None:
        return _Local(path)
    if access.cache_dir is not None:
        from flowdata.shards.cache import cached

        kept = cached(url, access, length)
        if kept is not None:
            return _Local(kept)
    return remote(url, access)


def remote(url: str, access: Access) -> Transport:
    """The transport of a shard that is not on this machine."""
    if url.startswith(_HTTP):
        from flowdata.shards.http import HttpTransport

        return HttpTransport(url, access)
    from flowdata.shards.filesystems import FsspecTransport

    return FsspecTransport(url, access)


def is_remote(url: str) -> bool:
    """Whether waiting for this shard is worth a thread."""
    return local_path(url) is None


def ranged(url: str, access: Access) -> bool | None:
    """Whether any bytes of a shard can be asked for; None if its server has not been asked."""
    if url.startswith(_HTTP) and access.cache_dir is None:
        from flowdata.shards.http import is_ranged

        return is_ranged(url)
    return not url.startswith(PIPE)


class _Local:
    """A file."""

    ranged = True

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ShardError(f"there is no shard {path} ({_reason(error, path)})") from error
        self._path = path

    def length(self) -> int | None:
        return os.fstat(self._file.fileno()).st_size

    def read(self, spans: Sequence[Span]) -> Iterator[Buffer]:
        for offset, size in spans:
            self._file.seek(offset)
            content = self._file.read(size) or b""
            while len(content) < size and (more := self._file.read(size - len(content))):
                content += more
            yield whole(content, size, offset, str(self._path))

    def stream(self) -> Readable:
        return cast(Readable, self._path.open("rb"))

    def close(self) -> None:
        self._file.close()


def _reason(error: OSError, path: Path) -> str:
    if path.is_dir():
        return f"it is a folder; give its shards: {path}/data-{{000..009}}.tar, or a list of them"
    if "*" in str(path):
        return f"patterns are not expanded; write braces, or sorted(glob.glob({str(path)!r}))"
    return error.strerror or type(error).__name__


class _Pipe:
    """The output of a shell command."""

    ranged = False

    def __init__(self, command: str) -> None:
        self._command = command

    def length(self) -> int | None:
        return None

    def read(self, spans: Sequence[Span]) -> list[Buffer]:  # noqa: ARG002
        raise io.UnsupportedOperation("a pipe has no ranges")

    def stream(self) -> Readable:
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
            raise ShardError(f"pipe:{self._command} ended with exit status {code}")
        return content

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()


def retrying(fetch: Callable[[], T], url: str, access: Access) -> T:
    """What ``fetch`` returns, called again after failures that may pass.

    Raises:
        ShardError: when it failed for good, naming the shard and the last failure.
    """
    from urllib3.exceptions import HTTPError

    for attempt in range(access.retries + 1):
        wait = 0.0
        try:
            return fetch()
        except (FileNotFoundError, PermissionError) as error:
            raise ShardError(f"there is no shard {shown(url)}, or it is not for you") from error
        except RefusedError as error:
            if error.for_good:
                raise ShardError(f"{shown(url)}: {error}") from error
            failure, wait = cast(Exception, error), error.wait
        except (HTTPError, OSError, EOFError, TimeoutError) as error:
            failure = error
        if attempt < access.retries:
            time.sleep(min(max(wait, _WAIT * 2**attempt), _LONGEST_WAIT))
    raise ShardError(
        f"{shown(url)} could not be read in {access.retries + 1} attempts; the last failed with "
        f"{type(failure).__name__}: {failure}"
    ) from failure


def whole(content: bytes, size: int, offset: int, name: str) -> bytes:
    """The content, if it is all of it.

    Raises:
        EOFError: for less.
    """
    if len(content) != size:
        raise EOFError(f"{name} has {len(content):,} of {size:,} bytes from byte {offset:,} on")
    return content
