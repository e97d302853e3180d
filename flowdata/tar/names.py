"""Names of shards: what a loss table calls them, and which URL belongs to which."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

import xxhash

from flowdata.errors import MismatchError, ShardError
from flowdata.tar.commands import readings, words
from flowdata.transport.urls import PIPE, address, local_path, redact

# What follows the path of a shard that is asked for by a query.
_QUERY_HASH = re.compile(r"\?[0-9a-f]{16}$")
# How the word of a shell command ends that is a shard, where no table says which are.
_TAR_FILE = re.compile(r"\.(tar|tgz)(\.\w+)?$")


def shard_names(urls: Sequence[str], signed_by: Iterable[str] = ()) -> tuple[str, ...]:
    """What a table calls these shards: their paths below the folder that they share.

    A query that is more than a signature is a part of the name, as a hash, since it may hold a
    secret that is not known as one. A shell command (``pipe:``) has the name of the tar file among
    its words; where there is none, or two commands have the same, commands are names, with a hash
    if there may be a secret in them.

    Raises:
        ShardError: when two of them are one.
    """
    for comparable in (_comparable_name, _path_and_query):
        paths = [comparable(url, signed_by) for url in urls]
        if len(set(paths)) == len(paths):
            return _below_common_folder(paths)
    raise ShardError("a shard is given twice")


def _below_common_folder(paths: Sequence[str]) -> tuple[str, ...]:
    parts = [path.split("/") for path in paths]
    common = 0
    while all(len(part) > common + 1 for part in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    return tuple("/".join(part[common:]) for part in parts)


def _comparable_name(url: str, signed_by: Iterable[str]) -> str:
    if url.startswith(PIPE):
        tars = [
            _path_and_query(word, signed_by).split("/")[::-1]
            for word in words(url[len(PIPE) :])
            if _TAR_FILE.search(redact(word))
        ]
        # One, or a copy of it and where it is from: how their paths end alike.
        alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*tars, strict=False))
        if ending := [parts[0] for parts in alike]:
            return "/".join(ending[::-1])
    return _path_and_query(url, signed_by)


def _path_and_query(url: str, signed_by: Iterable[str]) -> str:
    return _comparable_path(url) + _query_hash(url, signed_by)


def _query_hash(url: str, signed_by: Iterable[str]) -> str:
    if "?" not in url and not url.startswith(PIPE):
        return ""
    query = address(url, signed_by)
    if url.startswith(PIPE) and redact(url) != url:
        query = url
    return "?" + xxhash.xxh3_64_hexdigest(query.encode()) if query else ""


def match_all(
    urls: Sequence[str], names: Sequence[str], signed_by: Iterable[str] = ()
) -> list[str]:
    """Return for each name of a table the URL that ends with it.

    Raises:
        MismatchError: for a URL that the table does not know, or a shard without a URL.
    """
    known = ShardNames(names, signed_by)
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


class ShardNames:
    """The shard names of a table, each found in the time that its path takes, however many.

    Args:
        names: of the table.
        signed_by: names of parameters of a query that are none of its address.
    """

    def __init__(self, names: Sequence[str], signed_by: Iterable[str] = ()) -> None:
        self._names, self._signed_by = names, tuple(signed_by)
        self._by_path: dict[str, int] = {}
        # Those of one path, which differ in their query.
        self._further: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            path = _QUERY_HASH.sub("", name) if "?" in name else name
            if self._by_path.setdefault(path, number) != number:
                self._further.setdefault(path, []).append(number)

    def number(self, url: str) -> int:
        """The number of the name that a URL ends with, or that a shell command has among its words.

        Raises:
            MismatchError: for a URL that ends with none, or a command that names several.
        """
        found = self._find(url)
        if not found and url.startswith(PIPE):
            found = {number for word in words(url[len(PIPE) :]) for number in self._in_word(word)}
        if not found:
            raise MismatchError(self._unknown(url))
        if len(found) > 1:
            raise MismatchError(self._ambiguous(url, found))
        return found.pop()

    def _in_word(self, word: str) -> set[int]:
        for reading in readings(word):
            try:
                if found := self._find(reading):
                    return found
            except ShardError:
                # A file: URL that is none.
                continue
        return set()

    def _find(self, url: str) -> set[int]:
        """The numbers of the longest names that a URL ends with: several may differ in queries."""
        of_path, query = list(self._of_path(url)), _query_hash(url, self._signed_by)
        if query:
            fits = [number for number in of_path if self._names[number].endswith(query)]
            # A shard may be scored from a disk and read from a server, or the other way round.
            of_path = fits or [n for n in of_path if not _QUERY_HASH.search(self._names[n])]
        if len(of_path) < 2:
            return set(of_path)
        lengths = [len(_QUERY_HASH.sub("", self._names[number])) for number in of_path]
        longest = max(lengths, default=0)
        return {n for n, length in zip(of_path, lengths, strict=True) if length == longest}

    def _of_path(self, url: str) -> Iterator[int]:
        """The numbers of all names that the path of a URL ends with, whatever their query."""
        path = _comparable_path(url)
        # As tables of before secrets were left out of commands have it.
        if url.startswith(PIPE) and (number := self._by_path.get(_in_one(url))) is not None:
            yield number
        start = 0
        while True:
            ending = path[start:]
            if (number := self._by_path.get(ending)) is not None:
                yield number
                yield from self._further.get(ending, ())
            if not (start := path.find("/", start) + 1):
                return

    def _unknown(self, url: str) -> str:
        if next(self._of_path(url), None) is not None:
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

    def _ambiguous(self, url: str, found: set[int]) -> str:
        names = sorted(self._names[number] for number in found)
        if len({_QUERY_HASH.sub("", name) for name in names}) == 1:
            return (
                f"{redact(url)} is one of {len(names)} shards of the loss table, which differ in "
                "the query of their URLs only: give URLs with their queries"
            )
        return (
            f"{redact(url)} names {len(names)} shards of the loss table, {names[0]} and {names[1]} "
            "among them: give a command that names the one that it writes"
        )


def _comparable_path(url: str) -> str:
    """Return the path that a URL is compared by, the same wherever the process runs."""
    if url.startswith(PIPE):
        # A command is one name, whatever paths are in it.
        return _in_one(redact(url))
    path = local_path(url)
    return redact(url) if path is None else os.path.abspath(path).replace(os.sep, "/")


def _in_one(command: str) -> str:
    return command.replace("/", "\u2215")
