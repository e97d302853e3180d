"""Which transport reaches a shard that is not on this machine."""

from flowdata.transport.access import Access, Transport

_HTTP = ("http://", "https://")


def open_remote(url: str, access: Access) -> Transport:
    """Open a shard on a server; the library for it is imported only now."""
    if url.startswith(_HTTP):
        from flowdata.transport.http import HttpTransport

        return HttpTransport(url, access)
    from flowdata.transport.filesystems import FsspecTransport

    return FsspecTransport(url, access)
