"""Which tokens of a text are those of a span of its characters, for any fast tokenizer.

What a tokenizer says about characters cannot be relied on alone. Byte-level tokenizers that trim
offsets say that a token of white space covers nothing; a space that a tokenizer puts before a
word covers nothing of the text; a normalizer may make one token of what was two. So the text up
to the edge of a span is tokenized too, but where offsets say that two tokens meet there. What
differs after it belongs to the span, and so does a token that is partly in it: all of a response
is scored, also where its first letters and the last of the prompt are one token.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# What stands after a place decides about the token there, but not from so far.
_LONGEST_TOKEN = 128


class MarkedText(NamedTuple):
    """A text, and the spans of it that are scored: (first, last + 1) in characters."""

    text: str
    scored: list[tuple[int, int]]
    prompt: str | None = None
    """What the model is given before the one span, if it is known; the text may begin otherwise.

    trl 1.16, SFTTrainer._prepare_dataset: the response begins where the tokens of the prompt alone
    and those of the whole begin to differ.
    """
    rendered: bool = False
    """Whether a chat template has written the special tokens into it."""


class MarkedTokens(NamedTuple):
    """Ids of shape (length,), and which of them are scored."""

    ids: NDArray[np.int64]
    scored: NDArray[np.bool_]


class _Encoded(NamedTuple):
    """Tokens of a text, and the tokens that the tokenizer adds before and after it.

    Token t of the text covers the characters from ``begins[t]`` to before ``ends[t]``, it is said.
    """

    before: NDArray[np.int64]
    ids: NDArray[np.int64]
    after: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    def first_beyond(self, place: int) -> int:
        """The first token that ends after a place."""
        beyond = np.maximum.accumulate(self.ends) > place
        return int(beyond.argmax()) if beyond.any() else self.ids.size

    def meet_at(self, place: int) -> bool:
        """Whether a token begins at a place, and those before it end there."""
        token = self.first_beyond(place)
        return bool(0 < token < self.ids.size and self.begins[token] == place)


def mark_tokens(
    tokenizer: Any, texts: Sequence[MarkedText], *, special: bool
) -> Iterator[MarkedTokens]:
    """Tokens of each text, and which of them are in a span.

    A token that is partly in a span counts. Tokens that the tokenizer adds around a text are there
    once, also where the text has them already, and are not scored.

    Args:
        tokenizer: a fast tokenizer.
        texts: the texts, and the spans of them.
        special: whether the tokenizer adds its special tokens.
    """
    if not texts:
        return
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    encoded = _encode(tokenizer, [marked.text for marked in texts], special=special)
    edges = [_unclear_edges(*pair) for pair in zip(texts, encoded, strict=True)]
    heads = [head for each in edges for head in each.values()]
    tokenized_heads = iter(_encode(tokenizer, heads, special=special) if heads else ())
    for marked, whole, unclear in zip(texts, encoded, edges, strict=True):
        known = {place: next(tokenized_heads) for place in unclear}
        inside = np.zeros(whole.ids.size, dtype=np.bool_)
        for first, last in marked.scored:
            start = _start(whole, first, known.get(first), control)
            end = _end(whole, last, known.get(last))
            inside[start:end] = True
        around = (np.zeros(part.size, dtype=np.bool_) for part in (whole.before, whole.after))
        yield MarkedTokens(
            np.concatenate([whole.before, whole.ids, whole.after]),
            np.concatenate([next(around), inside, next(around)]),
        )


def _unclear_edges(marked: MarkedText, whole: _Encoded) -> dict[int, str]:
    """The edges of spans of which offsets do not say where they are, and the text before each."""
    places = {place for span in marked.scored for place in span}
    if marked.prompt is not None:
        return dict.fromkeys(places - {len(marked.text)}, marked.prompt)
    return {
        place: marked.text[:place]
        for place in sorted(places - {0, len(marked.text)})
        if not whole.meet_at(place)
    }


def _start(whole: _Encoded, place: int, head: _Encoded | None, control: set[int]) -> int:
    """The first token of a span that begins at a place."""
    if place == 0 and head is None:
        return 0
    token = whole.first_beyond(place)
    if head is None:
        return token
    # A control token may swallow the white space after it, but it is none of it.
    if token < whole.ids.size and whole.begins[token] < place and whole.ids[token] in control:
        token += 1
    return min(token, common_length(whole.ids.tolist(), head.ids.tolist()))


def _end(whole: _Encoded, place: int, head: _Encoded | None) -> int:
    """The token after the last one of a span that ends at a place."""
    if head is None:
        return whole.first_beyond(place)
    common = common_length(whole.ids.tolist(), head.ids.tolist())
    # The first token that differs begins within the span, as the one of the head alone does.
    differs = min(common + (common < head.ids.size), whole.ids.size)
    begun = np.flatnonzero(whole.begins < place) + 1
    return max(differs, int(begun.max(initial=0)))


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Number of elements with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next(
        (place for place, (mine, others) in pairs if mine != others), min(len(one), len(other))
    )


def common_characters(tokenizer: Any, one: str, other: str) -> int:
    """Number of characters with which both begin, in whole tokens.

    They are all of the one where the other begins with it.
    """
    if other.startswith(one):
        return len(one)
    other = other[: len(one) + _LONGEST_TOKEN]
    mine, others = _encode(tokenizer, [one, other], special=False)
    differs = common_length(mine.ids.tolist(), others.ids.tolist())
    begin = int(others.begins[differs]) if differs < others.ids.size else len(other)
    return min(begin, common_length(one, other))


def _encode(tokenizer: Any, texts: list[str], *, special: bool) -> list[_Encoded]:
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        truncation=False,
    )
    columns = (encoded[name] for name in ("input_ids", "special_tokens_mask", "offset_mapping"))
    return [_split(*each) for each in zip(*columns, strict=True)]


def _split(ids: list[int], added: list[int], offsets: list[tuple[int, int]]) -> _Encoded:
    tokens = np.array(ids, dtype=np.int64)
    own = np.flatnonzero(~np.array(added, dtype=np.bool_))
    first, last = (int(own[0]), int(own[-1]) + 1) if own.size else (tokens.size, tokens.size)
    before, after = tokens[:first], tokens[last:]
    # A text rendered from a template often has the special tokens that are added to it.
    if before.size and np.array_equal(tokens[first : min(2 * first, last)], before):
        first *= 2
    if after.size and np.array_equal(tokens[max(last - after.size, first) : last], after):
        last -= after.size
    begins, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2)[first:last].T
    return _Encoded(before, tokens[first:last], after, begins, ends)
