"""URLs of shards: brace expansion, local paths, and what of them may be shown."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from flowdata.errors import ShardError

Urls: TypeAlias = str | Path | Sequence[str | Path]

PIPE = "pipe:"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
# Parameters that are a signature, and, where one of these is there, what is signed with it: for
# whom and until when. Of S3, Google Cloud Storage (V4 and V2), Azure, CloudFront, Alibaba (V4 and
# V1), Tencent and Huawei.
_SIGNATURES = frozenset(
    {"x-amz-signature", "x-goog-signature", "x-oss-signature", "q-signature", "signature", "sig"}
)
_SIGNED = re.compile(
    r"x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|key-pair-id|policy|expires"
    r"|s[vetrpi]|spr|srt|ss|sk[oestv]|sktid|skoid|sdd|saoid|suoid|scid"
    r"|x-oss-(signature-version|credential|date|expires|additional-headers|security-token)"
    r"|(oss)?accesskeyid|(x-(cos|obs)-)?security-token"
    r"|q-(sign-algorithm|ak|sign-time|key-time|header-list|url-param-list)"
)

_WORD = r"""('[^']*'|"[^"]*"|[^\s'"]+)"""
_SECRETS_OF_COMMANDS = (
    (re.compile(r"""://[^/\s'"]*@"""), "://"),
    (re.compile(r"""(://[^\s'"?#]*)[?#][^\s'"]*"""), r"\1"),
    (re.compile(rf"(\s(?:-H|--header|-u|--user)[ =]*){_WORD}"), r"\1..."),
    (re.compile(rf"(?i)(\w*(?:key|token|secret|password|passwd)\w*[ =]){_WORD}"), r"\1..."),
)

_CONTAINER = re.compile(r"(abfss?|az)://[^/@:]+@[^/@]+/")
_NUMBERS = re.compile(r"\{\d+\.\.\d+\}")


def expand_braces(urls: Urls) -> list[str]:
    """Expand one or several URLs with braces, ``"data-{000..009}.tar"``, to a list.

    Raises:
        ShardError: for none, for one given twice, or for braces without their partner.
    """
    given = [urls] if isinstance(urls, str | Path) else list(urls)
    every = [shard for url in given for shard in _expand_one(str(url))]
    if not every:
        raise ShardError("no shards were given")
    if len(set(every)) != len(every):
        twice = next(url for number, url in enumerate(every) if url in every[:number])
        raise ShardError(f"a shard is given twice: {redact(twice)}")
    return every


def _expand_one(url: str) -> list[str]:
    from braceexpand import braceexpand

    if url.startswith(PIPE):
        # As webdataset does, but that other braces, and backslashes, are the shell's.
        if (match := _NUMBERS.search(url, len(PIPE))) is None:
            return [url]
        ends = _expand_one(PIPE + url[match.end() :])
        numbers = list(braceexpand(match[0]))
        return [f"{url[: match.start()]}{n}{end[len(PIPE) :]}" for n in numbers for end in ends]
    if not any(char in url for char in "{}\\"):
        return [url]
    try:
        return list(braceexpand(url))
    except ValueError as error:
        raise ShardError(
            f"{redact(url)} has a brace without its partner: shards 0 to 9 are data-{{0..9}}.tar, "
            r"and a brace that is part of a name is \{ or \}"
        ) from error


def local_path(url: str) -> Path | None:
    """The path of a local shard, given as a path or as ``file:``; None for any other URL."""
    if url.startswith("file:"):
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise ShardError(f"{url}: a file: URL has three slashes, file:///data/shard.tar")
        return Path(unquote(parts.path))
    return None if url.startswith(PIPE) or _SCHEME.match(url) else Path(url)


def redact(url: str) -> str:
    """Return a URL without its query, which may hold a signature, and without a password.

    Of a shell command it is one without those of its URLs, and without headers and what is named
    as a secret.

    >>> redact("pipe:curl -H 'Authorization: Bearer 1' 'https://user:word@host/a.tar?sig=2'")
    "pipe:curl -H ... 'https://host/a.tar'"
    """
    if url.startswith(PIPE):
        for secret, shown in _SECRETS_OF_COMMANDS:
            url = secret.sub(shown, url)
        return url
    if not _SCHEME.match(url):
        return url
    bare = url.split("?", 1)[0].split("#", 1)[0]
    # abfs://container@account is no user's.
    return bare if _CONTAINER.match(bare) else re.sub(r"://[^/]*@", "://", bare)


def is_remote(url: str) -> bool:
    """Whether waiting for this shard is worth a thread."""
    return local_path(url) is None


def address(url: str, signed_by: Iterable[str] = ()) -> str:
    """The query of a URL as far as it says which shard it is: without a signature and its terms.

    Args:
        url: of a shard.
        signed_by: names of further parameters that are none of its address.
    """
    if url.startswith(PIPE) or not _SCHEME.match(url):
        return ""
    query = url.partition("?")[2].partition("#")[0]
    names = [(part, part.partition("=")[0].lower()) for part in query.split("&") if part]
    left_out = {name.lower() for name in signed_by} | _SIGNATURES
    signed = any(name in _SIGNATURES for _, name in names)
    return "&".join(
        part
        for part, name in names
        if name not in left_out and not (signed and _SIGNED.fullmatch(name))
    )
