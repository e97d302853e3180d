"""connect: the transport of any shard, by its URL."""

from flowdata.errors import ShardError
from flowdata.transport.access import Access, Transport
from flowdata.transport.cache import fetch_to_cache
from flowdata.transport.local import LocalTransport
from flowdata.transport.pipe import PipeTransport
from flowdata.transport.remote import open_remote
from flowdata.transport.urls import PIPE, local_path


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
        return PipeTransport(url[len(PIPE) :])
    path = local_path(url)
    if path is not None:
        return LocalTransport(path)
    if access.cache_dir is not None:
        kept = fetch_to_cache(url, access, length)
        if kept is not None:
            return LocalTransport(kept)
    return open_remote(url, access)
