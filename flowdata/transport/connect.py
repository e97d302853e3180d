"""connect: the transport of any shard, by its URL."""

from pathlib import Path

from flowdata.errors import ShardError
from flowdata.transport.access import Access
from flowdata.transport.cache import open_cached
from flowdata.transport.counts import Counts
from flowdata.transport.fetching import Transport
from flowdata.transport.identity import UNKNOWN, Identity
from flowdata.transport.local import LocalTransport
from flowdata.transport.pipe import PipeTransport
from flowdata.transport.remote import open_remote
from flowdata.transport.urls import PIPE, local_path, redact


def connect(
    url: str,
    access: Access,
    expected: Identity = UNKNOWN,
    *,
    share: float = 1.0,
    counts: Counts | None = None,
) -> Transport:
    """The transport of a shard, whose content has to be what is expected.

    Of a cache, ``share`` says which share of the bytes is wanted, and ``counts`` is told what was
    fetched into it.

    Nothing is fetched yet, but for the cache, and a local file is opened.

    Raises:
        ShardError: for a file that is not there or has another length, for a pipe that is not
            allowed, or for what is known to have changed.
    """
    if url.startswith(PIPE):
        if not access.allow_pipe:
            raise ShardError(
                f"{redact(url)}: a shell command is run only with allow_pipe=True; do that for "
                "shard lists that you trust"
            )
        return PipeTransport(url[len(PIPE) :])
    path = local_path(url)
    if path is not None:
        return _open_local(path, expected)
    if not access.check_version:
        expected = expected.without_version()
    if access.cache_dir is not None:
        kept = open_cached(url, access, expected, share, counts)
        if kept is not None:
            return kept
    return open_remote(url, access, expected)


def _open_local(path: Path, expected: Identity) -> Transport:
    local = LocalTransport(path)
    try:
        expected.joined(local.identity(), str(path))
    except ShardError:
        local.close()
        raise
    return local
