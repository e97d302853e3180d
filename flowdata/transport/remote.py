"""Which transport reaches a shard that is not on this machine."""

import importlib
from collections.abc import Iterable

from flowdata.errors import ShardError
from flowdata.transport.access import Access
from flowdata.transport.fetching import Transport
from flowdata.transport.http import HttpTransport
from flowdata.transport.identity import UNKNOWN, Identity
from flowdata.transport.urls import redact

_HTTP = ("http://", "https://")


def open_remote(url: str, access: Access, expected: Identity = UNKNOWN) -> Transport:
    """Open a shard on a server, which has to be as expected; its library is imported only now.

    Raises:
        ShardError: for one that is not, if asking for that is needed, or for a URL that is none.
    """
    if url.startswith(_HTTP):
        from urllib3.util import parse_url

        try:
            if not parse_url(redact(url)).host:
                raise ValueError("it has no host")
            # Each of its answers says what it is of.
            return HttpTransport(url, access, expected)
        except ValueError as error:
            raise ShardError(f"{redact(url)} is no URL: {error}") from None
    from flowdata.transport.filesystems import FsspecTransport

    files = FsspecTransport(url, access)
    if expected != UNKNOWN:
        expected.joined(files.identity(), redact(url))
    return files


def import_clients(urls: Iterable[str]) -> None:
    """Import what reaches these, so that worker processes that are forked have it already."""
    if any(url.startswith(_HTTP) for url in urls):
        # Python's own, at the first connection.
        for name in ("urllib3", "encodings.idna"):
            importlib.import_module(name)
