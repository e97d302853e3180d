"""From the rows of a data set to token ids and labels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""Label of a token that is not scored."""

_TOKEN_COLUMNS = ("input_ids", "labels")


class Tokens(NamedTuple):
    """One sample: ids and labels of shape (length,), int64; label t is that of token t."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    truncated: bool = False


class UnreadableRow(NamedTuple):
    """Why a row cannot be read: the error, to be raised by the caller, who knows its number.

    Rows are read in loader workers, which see rows without their numbers.
    """

    kind: type[Exception]
    reason: str


_NO_TOKENS = Tokens(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class _MarkedText(NamedTuple):
    """A text, and the spans of it that are scored: (first, last + 1) in characters."""

    text: str
    scored: list[tuple[int, int]]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of one layout.

    Raises:
        ValueError: for columns of more than one.
    """

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("response", "messages", "text") if getattr(self, name)]
        if len(given) > 1 or (self.prompt and not self.response):
            raise ValueError(
                "name the columns of one layout: prompt and response, or response alone, or "
                f"messages, or text; got {given or ['prompt']}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        named = (self.prompt, self.response, self.messages, self.text)
        return tuple(name for name in named if name) or _TOKEN_COLUMNS

    def check(self, found: Iterable[str]) -> None:
        """Make sure that all are among the columns that were found.

        Raises:
            ValueError: saying which are missing, and which there are.
        """
        found = sorted(map(str, found))
        if missing := [name for name in self.names if name not in found]:
            raise ValueError(
                f"there is no column {missing}, the columns are {found}; rows need input_ids and "
                "labels (-100 where a token is not scored), or name columns of text: prompt and "
                "response, messages, or text, with a tokenizer"
            )


@dataclass(frozen=True)
class TokenReader:
    """Makes Tokens of rows. See `flowdata.CausalLM` for the fields."""

    tokenizer: Any = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens, got {self.max_length}")
        if self.columns.names == _TOKEN_COLUMNS:
            return
        if self.tokenizer is None:
            raise ValueError(f"columns of text {list(self.columns.names)}: pass tokenizer=")
        if not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(self.tokenizer).__name__} cannot tell which characters a token covers: "
                "use the fast tokenizer, or give rows with input_ids and labels"
            )
        if self.messages and not self.tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template to render messages with: use that of a chat "
                "model, set tokenizer.chat_template, or give prompt and response columns"
            )

    @property
    def columns(self) -> Columns:
        """The columns that are read."""
        return Columns(self.prompt, self.response, self.messages, self.text)

    def __call__(self, rows: Sequence[Any]) -> list[Tokens]:
        """Tokens of each row.

        Raises:
            TypeError, ValueError: for rows without the columns, of unequal lengths, or with
                something else than a chat where there should be one.
        """
        samples: list[Tokens] = []
        for sample in self.read_each(rows):
            if isinstance(sample, UnreadableRow):
                raise sample.kind(sample.reason)
            samples.append(sample)
        return samples

    def read_each(self, rows: Sequence[Any]) -> list[Tokens | UnreadableRow]:
        """Tokens of each row, or why there are none; a row with None in a column has no token."""
        read = [self._try_to_read(row) for row in rows]
        marked = [sample for sample in read if isinstance(sample, _MarkedText)]
        # A chat template writes special tokens (begin, end of turn) itself.
        tokenized = iter(self._tokenize(marked, special=self.messages is None) if marked else ())
        samples: list[Tokens | UnreadableRow] = []
        for sample in read:
            if isinstance(sample, _MarkedText):
                sample = next(tokenized)
            samples.append(self._truncate(sample) if isinstance(sample, Tokens) else sample)
        return samples

    def _try_to_read(self, row: Any) -> Tokens | _MarkedText | UnreadableRow:
        try:
            if not isinstance(row, Mapping):
                raise TypeError(
                    "a language model is scored on rows that are dicts, with "
                    f"{list(self.columns.names)}; got {type(row).__name__}"
                )
            self.columns.check(row)
            if any(row[name] is None for name in self.columns.names):
                return _NO_TOKENS
            return self._read(row)
        except (TypeError, ValueError) as error:
            return UnreadableRow(type(error), str(error))

    def _read(self, row: Mapping[str, Any]) -> Tokens | _MarkedText:
        if self.messages is not None:
            messages = _check_turns(row[self.messages])
            return _render_chat(self.tokenizer, messages) if messages else _NO_TOKENS
        scored = self.response or self.text
        if scored is None:
            return _read_token_columns(row)
        prompt = str(row[self.prompt]) if self.prompt else ""
        text = prompt + str(row[scored])
        return _MarkedText(text, [(len(prompt), len(text))])

    def _tokenize(self, marked: Sequence[_MarkedText], *, special: bool) -> list[Tokens]:
        """Tokens of whole texts; labelled where a token covers a character of a span.

        So all of a response is scored, also where its first letters and the last of the prompt,
        a space most often, are one token.
        """
        encoded = self.tokenizer(
            [text for text, _ in marked],
            add_special_tokens=special,
            return_offsets_mapping=True,
            truncation=False,
        )
        end = self.tokenizer.eos_token_id if special else None
        samples = []
        for ids, offsets, (_, scored) in zip(
            encoded["input_ids"], encoded["offset_mapping"], marked, strict=True
        ):
            tokens = np.array(ids, dtype=np.int64)
            begins, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
            inside = np.zeros(tokens.size, dtype=np.bool_)
            for first, last in scored:
                inside |= (ends > first) & (begins < last) & (ends > begins)
            labels = np.where(inside, tokens, IGNORED)
            if end is not None:
                if not tokens.size or tokens[-1] != end:
                    tokens, labels = np.append(tokens, end), np.append(labels, end)
                # Where the tokenizer adds the end itself, it covers no character.
                labels[-1] = end
            samples.append(Tokens(tokens, labels))
        return samples

    def _truncate(self, sample: Tokens) -> Tokens:
        limit = self.max_length
        if limit is None or sample.ids.size <= limit:
            return sample
        return Tokens(sample.ids[:limit], sample.labels[:limit], truncated=True)


def _check_turns(value: Any) -> list[Mapping[str, Any]]:
    """The turns of a chat.

    Raises:
        TypeError, ValueError: for anything but a list of dicts with role and content.
    """
    if isinstance(value, str):
        raise TypeError("the chat is stored as text: parse it into a list of turns, json.loads")
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, bytes):
        raise TypeError(f"a chat is a list of turns, got {type(value).__name__}")
    turns = list(value)
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise TypeError(f"a turn of a chat is a dict, got {type(turn).__name__}")
        if missing := [key for key in ("role", "content") if key not in turn]:
            raise ValueError(
                f"a turn of a chat has no {missing}, it has {sorted(map(str, turn))}: rename its "
                "keys to role and content"
            )
    return turns


def _render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> _MarkedText:
    """The conversation as the chat template renders it, and where in it the assistant speaks.

    Raises:
        ValueError: when the template does not take it, or its turns cannot be told apart.
    """
    if messages[0]["role"] == "assistant":
        raise ValueError("the chat begins with the assistant: put what it answers before it")
    whole = _apply_template(tokenizer, messages, False)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply_template(tokenizer, messages[:number], True)
        after = _apply_template(tokenizer, messages[: number + 1], False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise ValueError(
                "the chat template renders a turn differently when others follow, so its "
                "tokens cannot be told: give rows with input_ids and labels instead"
            )
        spans.append((len(before), len(after)))
    return _MarkedText(whole, spans)


def _apply_template(tokenizer: Any, turns: Sequence[Mapping[str, Any]], prompt: bool) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=prompt
        )
    # transformers 5.23, apply_chat_template: whatever the Jinja template raises, of any type.
    except Exception as error:
        raise ValueError(f"the chat template does not take the chat: {error}") from error
    return text


def _read_token_columns(row: Mapping[str, Any]) -> Tokens:
    """Ids and labels of a row that has them, without the padding its attention mask shows."""
    ids, labels = (np.asarray(row[name], dtype=np.int64) for name in ("input_ids", "labels"))
    if ids.ndim != 1 or ids.shape != labels.shape:
        raise ValueError(
            f"input_ids and labels of a row must have one shape (length,), got {ids.shape} and "
            f"{labels.shape}"
        )
    mask = row.get("attention_mask")
    if mask is not None:
        kept = np.asarray(mask).astype(np.bool_)
        ids, labels = ids[kept], labels[kept]
    return Tokens(ids, labels)
