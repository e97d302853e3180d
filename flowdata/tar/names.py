"""Names of shards: what a loss table calls them, and which URL belongs to which."""

import os
from collections.abc import Sequence

from flowdata.errors import MismatchError, ShardError
from flowdata.transport.urls import PIPE, local_path, redact


def shard_names(urls: Sequence[str]) -> tuple[str, ...]:
    """What a table calls these shards: their paths below the folder that they share.

    Raises:
        ShardError: when two of them are one.
    """
    paths = [_comparable_path(url) for url in urls]
    parts = [path.split("/") for path in paths]
    common = 0
    while all(len(part) > common + 1 for part in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    names = tuple("/".join(part[common:]) for part in parts)
    if len(set(names)) != len(names):
        raise ShardError("a shard is given twice")
    return names


def match(url: str, names: Sequence[str]) -> int:
    """Return the number of the name that a URL ends with.

    Raises:
        MismatchError: for a URL that ends with none.
    """
    return _Names(names).number(url)


def match_all(urls: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return for each name of a table the URL that ends with it.

    Raises:
        MismatchError: for a URL that the table does not know, or a shard without a URL.
    """
    known = _Names(names)
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

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._by_base: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            self._by_base.setdefault(name.rsplit("/", 1)[-1], []).append(number)

    def number(self, url: str) -> int:
        path = "/" + _comparable_path(url)
        fits = [
            number
            for number in self._by_base.get(path.rsplit("/", 1)[-1], [])
            if path.endswith("/" + self._names[number])
        ]
        if not fits:
            raise MismatchError(
                f"the loss table knows no shard {redact(url)}; it knows {self._names[0]} and "
                f"{len(self._names) - 1} more: score these shards, or pass the ones that were "
                "scored"
            )
        return max(fits, key=lambda number: len(self._names[number]))


def _comparable_path(url: str) -> str:
    """Return the path that a URL is compared by, the same wherever the process runs."""
    if url.startswith(PIPE):
        # A command is one name, whatever paths are in it.
        return url.replace("/", "\u2215")
    path = local_path(url)
    return redact(url) if path is None else os.path.abspath(path).replace(os.sep, "/")
