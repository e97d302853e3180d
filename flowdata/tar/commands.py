"""Words of a shell command, among which the shard is that it writes."""

import re
import shlex
from collections.abc import Iterator

# A word may give an option its value, --url=https://host/a.tar or if=/data/a.tar.
_OPTION = re.compile(r"[\w-]+=(.+)", re.DOTALL)


def words(command: str) -> list[str]:
    """The words of a shell command, without their quotes; none where a quote is not closed.

    >>> words("curl -s 'https://host/a b.tar' || true")
    ['curl', '-s', 'https://host/a b.tar', '||', 'true']
    """
    lexer = shlex.shlex(command.replace("\\\n", ""), posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError:
        return []


def readings(word: str) -> Iterator[str]:
    """What a word may name, the likeliest first: itself, the value of an option, a command's words.

    >>> list(readings("if=/data/a.tar"))
    ['if=/data/a.tar', '/data/a.tar']
    """
    yield word
    if option := _OPTION.fullmatch(word):
        yield option[1]
    if any(char.isspace() for char in word):
        # As of `ssh host "cat /data/a.tar"`.
        for inner in words(word):
            yield from readings(inner)
