"""Which transport reaches a shard that is not on this machine."""

from flowdata.transport.access import Access, Transport

_HTTP = ("http://", "https://")


def remote(url: str, access: Access) -> Transport:
    """The transport of a shard on a server; its library is imported only now."""
    if url.startswith(_HTTP):
        from flowdata.transport.http import HttpTransport

        return HttpTransport(url, access)
    from flowdata.transport.filesystems import FsspecTransport

    return FsspecTransport(url, access)
