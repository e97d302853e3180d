"""Where the bytes of a shard come from: local files, HTTP, fsspec, and pipes if allowed."""

import contextlib
import functools
import io
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from flowdata.errors import ShardError
from flowdata.shards.forward import Readable
from flowdata.shards.urls import PIPE, local_path, shown

T = TypeVar("T")

_WAIT = 0.2
_LONGEST_WAIT = 10.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Access:
    """How shards are reached.

    Attributes:
        allow_pipe: run the shell commands of ``pipe:`` URLs.
        timeout: seconds without an answer after which a request has failed.
        retries: how often a failed request is made again, with growing waits.
        cache_dir: keep whole remote shards in this folder.
        cache_size: bytes it may take; the shards used longest ago make room.
        storage_options: for fsspec, as its file systems take them.
    """

    allow_pipe: bool = False
    timeout: float = 30.0
    retries: int = 5
    cache_dir: Path | None = None
    cache_size: int | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict)


class Transport(Protocol):
    """One open shard."""

    @property
    def ranged(self) -> bool:
        """Whether `read` can be asked for any bytes; if not, there is `stream`."""
        ...

    def length(self) -> int | None:
        """Bytes of the whole shard, None where they cannot be known."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Exactly these bytes."""
        ...

    def stream(self) -> Readable:
        """All bytes from the first on."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class NoRangesError(Exception):
    """A server that sends the whole shard when it is asked for a part."""


def connect(url: str, access: Access) -> Transport:
    """The transport of a shard; nothing is fetched yet, but a local file is opened.

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

        kept = cached(url, access)
        if kept is not None:
            return _Local(kept)
    return remote(url, access)


def remote(url: str, access: Access) -> Transport:
    """The transport of a shard that is not on this machine."""
    if url.startswith(("http://", "https://")):
        return _Http(url, access)
    return _Fsspec(url, access)


def is_remote(url: str) -> bool:
    """Whether waiting for this shard is worth a thread."""
    return local_path(url) is None


class _Local:
    """A file."""

    ranged = True

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ShardError(f"there is no shard {path} ({error.strerror})") from error
        self._path = path

    def length(self) -> int | None:
        return os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        content = self._file.read(size) or b""
        while len(content) < size and (more := self._file.read(size - len(content))):
            content += more
        return _whole(content, size, offset, str(self._path))

    def stream(self) -> Readable:
        return cast(Readable, self._path.open("rb"))

    def close(self) -> None:
        self._file.close()


class _Http:
    """A shard behind HTTP or HTTPS, by range requests where the server knows them."""

    def __init__(self, url: str, access: Access) -> None:
        self._url, self._access = url, access
        self._length: int | None = None
        self.ranged = True

    def length(self) -> int | None:
        if self._length is None:

            def ask() -> None:
                with self._answer({}, method="HEAD") as answer:
                    size = answer.headers.get("Content-Length", "")
                    self._length = int(size) if size.isdigit() else None

            with contextlib.suppress(ShardError):
                retrying(ask, self._url, self._access)
        return self._length

    def read(self, offset: int, size: int) -> bytes:
        def fetch() -> bytes:
            with self._answer({"Range": f"bytes={offset}-{offset + size - 1}"}) as answer:
                if answer.status == 200:
                    self.ranged = False
                    raise NoRangesError
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                self._length = int(total) if total.isdigit() else self._length
                content: bytes = answer.read(size)
                return _whole(content, size, offset, shown(self._url))

        return retrying(fetch, self._url, self._access)

    def stream(self) -> Readable:
        return _HttpStream(self._url, self._access, self._answer)

    def close(self) -> None:
        """Connections belong to the process."""

    def _answer(self, headers: dict[str, str], *, method: str = "GET") -> "_Answer":
        import urllib3

        answer = _connections(os.getpid()).request(
            method,
            self._url,
            headers={"Accept-Encoding": "identity"} | headers,
            preload_content=False,
            timeout=self._access.timeout,
            retries=urllib3.Retry(total=5, connect=0, read=0, status=0, other=0, redirect=5),
        )
        if answer.status not in (200, 206):
            answer.drain_conn()
            answer.release_conn()
            raise HttpStatusError(answer.status, answer.headers.get("Retry-After"))
        return _Answer(answer)


class HttpStatusError(Exception):
    """An answer without content."""

    def __init__(self, status: int, retry_after: str | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.wait = float(retry_after) if retry_after and retry_after.isdigit() else 0.0


class _Answer:
    """An answer whose connection goes back to the pool only if it was read to its end."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __enter__(self) -> Any:
        return self._answer

    def __exit__(self, *error: object) -> None:
        if not self._answer.isclosed() and self._answer.length_remaining != 0:
            self._answer.close()
        self._answer.release_conn()


class _HttpStream:
    """A body that goes on where it was when the connection is lost."""

    def __init__(self, url: str, access: Access, ask: Callable[[dict[str, str]], _Answer]) -> None:
        self._url, self._access, self._ask = url, access, ask
        self._position = 0
        self._answer: _Answer | None = None

    def read(self, size: int) -> bytes:
        return retrying(lambda: self._read(size), self._url, self._access)

    def _read(self, size: int) -> bytes:
        try:
            body = (self._answer or self._open()).__enter__()
            content: bytes = body.read(size)
        except BaseException:
            self.close()
            raise
        self._position += len(content)
        return content

    def _open(self) -> _Answer:
        start = {"Range": f"bytes={self._position}-"} if self._position else {}
        self._answer = self._ask(start)
        body = self._answer.__enter__()
        behind = self._position if body.status == 200 else 0
        while behind > 0:
            skipped = body.read(min(behind, 1 << 20))
            if not skipped:
                raise EOFError("it ended before the byte where it was cut")
            behind -= len(skipped)
        return self._answer

    def close(self) -> None:
        if self._answer is not None:
            self._answer.__exit__()
            self._answer = None


class _Fsspec:
    """Anything that fsspec opens: s3, gs, memory, ..."""

    ranged = True

    def __init__(self, url: str, access: Access) -> None:
        import fsspec

        self._url, self._access = url, access
        try:
            self._files, self._path = fsspec.core.url_to_fs(url, **access.storage_options)
        except (ValueError, ImportError) as error:
            raise ShardError(f"{shown(url)} cannot be opened by fsspec: {error}") from error

    def length(self) -> int | None:
        size = retrying(lambda: self._files.size(self._path), self._url, self._access)
        return None if size is None else int(size)

    def read(self, offset: int, size: int) -> bytes:
        def fetch() -> bytes:
            content: bytes = self._files.cat_file(self._path, start=offset, end=offset + size)
            return _whole(content, size, offset, shown(self._url))

        return retrying(fetch, self._url, self._access)

    def stream(self) -> Readable:
        opened = retrying(lambda: self._files.open(self._path, "rb"), self._url, self._access)
        return cast(Readable, opened)

    def close(self) -> None:
        """File systems are fsspec's to keep."""


class _Pipe:
    """The output of a shell command."""

    ranged = False

    def __init__(self, command: str) -> None:
        self._command = command

    def length(self) -> int | None:
        return None

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002
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
        except HttpStatusError as error:
            if error.status not in _AGAIN:
                raise ShardError(f"{shown(url)}: HTTP {error.status}") from error
            failure, wait = cast(Exception, error), error.wait
        except (HTTPError, OSError, EOFError, TimeoutError) as error:
            failure = error
        if attempt < access.retries:
            time.sleep(min(max(wait, _WAIT * 2**attempt), _LONGEST_WAIT))
    raise ShardError(
        f"{shown(url)} could not be read in {access.retries + 1} attempts; the last failed with "
        f"{type(failure).__name__}: {failure}"
    ) from failure


@functools.cache
def _connections(process: int) -> Any:  # noqa: ARG001
    """The connection pools of this process: sockets must not be shared with a forked one."""
    import urllib3

    return urllib3.PoolManager(maxsize=64)


def _whole(content: bytes, size: int, offset: int, name: str) -> bytes:
    if len(content) != size:
        raise EOFError(f"{name} has {len(content):,} of {size:,} bytes from byte {offset:,} on")
    return content
