"""Names of shards: what a loss table calls them, and which URL belongs to which."""

import os
import re
from collections.abc import Iterable, Sequence

import xxhash

from flowdata.errors import MismatchError, ShardError
from flowdata.transport.urls import PIPE, address, local_path, redact

# What follows the path of a shard that is asked for by a query.
_QUERY_HASH = re.compile(r"\?[0-9a-f]{16}$")


def shard_names(urls: Sequence[str], signed_by: Iterable[str] = ()) -> tuple[str, ...]:
    """What a table calls these shards: their paths below the folder that they share.

    A query that is more than a signature is a part of the name, as a hash, since it may hold a
    secret that is not known as one.

    Raises:
        ShardError: when two of them are one.
    """
    paths = [_comparable_path(url) + _query_hash(url, signed_by) for url in urls]
    parts = [path.split("/") for path in paths]
    common = 0
    while all(len(part) > common + 1 for part in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    names = tuple("/".join(part[common:]) for part in parts)
    if len(set(names)) != len(names):
        raise ShardError("a shard is given twice")
    return names


def _query_hash(url: str, signed_by: Iterable[str]) -> str:
    query = address(url, signed_by)
    return "?" + xxhash.xxh3_64_hexdigest(query.encode()) if query else ""


def match(url: str, names: Sequence[str]) -> int:
    """Return the number of the name that a URL ends with.

    Raises:
        MismatchError: for a URL that ends with none.
    """
    return _Names(names).number(url)


def match_all(
    urls: Sequence[str], names: Sequence[str], signed_by: Iterable[str] = ()
) -> list[str]:
    """Return for each name of a table the URL that ends with it.

    Raises:
        MismatchError: for a URL that the table does not know, or a shard without a URL.
    """
    known = _Names(names, signed_by)
    found: dict[int, str] = {}
    for url in urls:
        number = known.number(url)
        if number in found:
            raise MismatchError(
                f"{redact(url)} and {redact(found[number])} are both {names[number]} to the table"
            )
        found[number] = url
    missing = [name for number, name in enumerate(names) if number not in found]
    if missing:
        raise MismatchError(
            f"{len(missing)} shards of the loss table are not among the URLs, {missing[0]} first: "
            "draws of their samples could not be made. Pass all shards that were scored"
        )
    return [found[number] for number in range(len(names))]


class _Names:
    """The shard names of a table, found by their last part."""

    def __init__(self, names: Sequence[str], signed_by: Iterable[str] = ()) -> None:
        self._names, self._signed_by = names, tuple(signed_by)
        self._paths = [_QUERY_HASH.sub("", name) for name in names]
        self._by_base: dict[str, list[int]] = {}
        for number, path in enumerate(self._paths):
            self._by_base.setdefault(path.rsplit("/", 1)[-1], []).append(number)

    def number(self, url: str) -> int:
        path, query = "/" + _comparable_path(url), _query_hash(url, self._signed_by)
        of_path = [
            number
            for number in self._by_base.get(path.rsplit("/", 1)[-1], [])
            if path.endswith("/" + self._paths[number])
        ]
        fits = [number for number in of_path if query and self._names[number].endswith(query)]
        # A shard may be scored from a disk and read from a server, or the other way round.
        fits = fits or [
            number for number in of_path if not query or self._names[number] == self._paths[number]
        ]
        if not fits:
            raise MismatchError(self._unknown(url, by_query=bool(of_path)))
        longest = max(len(self._paths[number]) for number in fits)
        best = [number for number in fits if len(self._paths[number]) == longest]
        if len(best) > 1:
            raise MismatchError(
                f"{redact(url)} is one of {len(best)} shards of the loss table, which differ in "
                "the query of their URLs only: give URLs with their queries"
            )
        return best[0]

    def _unknown(self, url: str, *, by_query: bool) -> str:
        if by_query:
            return (
                f"the loss table knows {redact(url)} with another query only: another shard, "
                "unless the query is a signature; then name its parameters, as in "
                'Access(signed_by=("token", "expires")), here and when the shards are indexed'
            )
        return (
            f"the loss table knows no shard {redact(url)}; it knows {self._names[0]} and "
            f"{len(self._names) - 1} more: score these shards, or pass the ones that were "
            "scored"
        )


def _comparable_path(url: str) -> str:
    """Return the path that a URL is compared by, the same wherever the process runs."""
    if url.startswith(PIPE):
        # A command is one name, whatever paths are in it.
        return url.replace("/", "\u2215")
    path = local_path(url)
    return redact(url) if path is None else os.path.abspath(path).replace(os.sep, "/")
