"""From the rows of a data set to token ids and labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from flowdata.scoring.layouts.chat import ChatTemplate
from flowdata.scoring.layouts.columns import (
    TOKEN_COLUMNS,
    Columns,
    as_text,
    is_turns,
    require_unicode,
)
from flowdata.scoring.layouts.renderings import Renderings
from flowdata.scoring.layouts.spans import MarkedText, common_length, mark_tokens
from flowdata.scoring.layouts.token_rows import (
    IGNORED,
    Tokens,
    read_token_row,
    refuse_media,
    refuse_weights,
)
from flowdata.scoring.layouts.turns import Turns, Which, read_turns


class UnreadableRow(NamedTuple):
    """Why a row cannot be read: the error, to be raised by the caller, who knows its number.

    Rows are read in loader workers, which see rows without their numbers.
    """

    kind: type[Exception]
    reason: str


class HasLayout(Protocol):
    """What was read of a row: its tokens, or something of them."""

    @property
    def layout(self) -> str:
        """As of `Tokens`."""
        ...


_Sample = TypeVar("_Sample", bound=HasLayout)


class OneLayout:
    """Samples of one layout: texts get an end token, turns what their template writes."""

    def __init__(self) -> None:
        self._first: tuple[str, int] | None = None

    def begin_with(self, rows: NDArray[np.int64], read: Sequence[_Sample | UnreadableRow]) -> None:
        """Take the layout of the first of these rows that has one."""
        for row, sample in zip(rows.tolist(), read, strict=True):
            if not isinstance(sample, UnreadableRow) and sample.layout:
                self._first = (sample.layout, row)
                return

    def check(
        self, rows: NDArray[np.int64], read: Sequence[_Sample | UnreadableRow]
    ) -> list[_Sample]:
        """The samples of rows that were read, of a data set that has one layout.

        Raises:
            TypeError, ValueError: naming the row, for one that cannot be read, or is not alike.
        """
        samples = []
        for row, sample in zip(rows.tolist(), read, strict=True):
            if isinstance(sample, UnreadableRow):
                raise sample.kind(f"row {row}: {sample.reason}")
            if sample.layout:
                self._first = self._first or (sample.layout, row)
                if sample.layout != self._first[0]:
                    raise ValueError(
                        f"row {row} holds {sample.layout}, row {self._first[1]} "
                        f"{self._first[0]}: make them alike, or score them as two data sets"
                    )
            samples.append(sample)
        return samples


_PAIR = {"chosen": "rejected", "rejected": "chosen"}
_NO_TOKENS = Tokens(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), layout="")


@dataclass(frozen=True)
class TokenReader:
    """Makes Tokens of rows. See `flowdata.CausalLM` for the fields."""

    tokenizer: Any = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None
    max_length: int | None = None
    accepted: frozenset[str] = frozenset()
    """What the forward of the model takes, by name."""
    turns: Which | None = None

    def __post_init__(self) -> None:
        if self.turns not in (None, *get_args(Which)):
            raise ValueError(f"turns must be one of {get_args(Which)}, got {self.turns!r}")
        self.columns.check_choice(self.turns)
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens, got {self.max_length}")
        if self.columns.names == TOKEN_COLUMNS:
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

    @cached_property
    def columns(self) -> Columns:
        """The columns that are read."""
        return Columns(self.prompt, self.response, self.messages, self.text)

    @cached_property
    def _renderings(self) -> Renderings:
        return Renderings()

    def __call__(self, rows: Sequence[Any]) -> list[Tokens]:
        """Tokens of each row.

        Raises:
            TypeError, ValueError: for rows without the columns, of unequal lengths, or with
                something else than a chat or a text where there should be one.
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
        marked = [sample for sample in read if isinstance(sample, MarkedText)]
        tokenized = {
            rendered: self._tokenize([each for each in marked if each.rendered == rendered])
            for rendered in (False, True)
        }
        samples: list[Tokens | UnreadableRow] = []
        for sample in read:
            if isinstance(sample, MarkedText):
                sample = next(tokenized[sample.rendered])
            samples.append(self._truncate(sample) if isinstance(sample, Tokens) else sample)
        return samples

    def _try_to_read(self, row: Any) -> Tokens | MarkedText | UnreadableRow:
        try:
            if not isinstance(row, Mapping):
                raise TypeError(
                    "a language model is scored on rows that are dicts, with "
                    f"{list(self.columns.names)}; got {type(row).__name__}"
                )
            self.columns.check(row)
            if any(row.get(name) is None and name in row for name in self.columns.names):
                return _NO_TOKENS
            if self.columns.names == TOKEN_COLUMNS:
                return read_token_row(row, self.accepted)
            refuse_media(row, self.accepted)
            refuse_weights(row)
            if (found := self._read(row)) is None:
                return _NO_TOKENS
            require_unicode(found.text)
            return found
        except (TypeError, ValueError) as error:
            kind = ValueError if isinstance(error, UnicodeError) else type(error)
            return UnreadableRow(kind, str(error))

    def _read(self, row: Mapping[str, Any]) -> MarkedText | None:
        """The text of a row, marked; None for a chat without turns."""
        if self.messages is not None:
            turns = read_turns(row[self.messages], self.messages)
            return self._mark_chat(turns, row)
        column = self.response or self.text
        assert column is not None
        other = _PAIR.get(column) if self.response and self.prompt is None else None
        if other and other in row:
            return self._read_side(column, other, row)
        prompt = row[self.prompt] if self.prompt else None
        if self.text is None and is_turns(row[column]):
            return self._read_response(prompt, row[column], row)
        self._refuse_choice_of_turns(column)
        return _mark_response(
            "" if prompt is None else as_text(prompt, str(self.prompt)),
            as_text(row[column], column),
        )

    def _read_response(
        self, prompt: Any, response: Any, row: Mapping[str, Any]
    ) -> MarkedText | None:
        turns = read_turns(response, str(self.response))
        if prompt is None:
            return self._mark_chat(turns, row)
        if not is_turns(prompt):
            raise TypeError(
                f"column {self.response!r} holds turns of a chat, and the prompt in column "
                f"{self.prompt!r} is {type(prompt).__name__}: make turns of both, or text of both; "
                "where the response has the prompt in it, leave prompt= out"
            )
        return self._mark_completion(read_turns(prompt, str(self.prompt)), turns, row)

    def _read_side(self, column: str, other: str, row: Mapping[str, Any]) -> MarkedText:
        """One side of a preference pair, whose prompt is what both sides begin with."""
        side, against = row[column], row[other]
        if against is None:
            raise ValueError(f"the row has nothing in {other!r}, which says where the prompt ends")
        if is_turns(side) != is_turns(against):
            raise TypeError("of the columns 'chosen' and 'rejected' one holds turns, one does not")
        if not is_turns(side):
            self._refuse_choice_of_turns(column)
            text = as_text(side, column)
            begin = _implicit_prompt(text, as_text(against, other))
            return _mark_response(text[:begin], text[begin:])
        turns = read_turns(side, column)
        begin = _implicit_prompt(turns, read_turns(against, other))
        if not begin:
            raise ValueError("the columns 'chosen' and 'rejected' begin with no turn in common")
        return self._mark_completion(turns[:begin], turns[begin:], row)

    def _mark_chat(self, turns: Turns, row: Mapping[str, Any]) -> MarkedText | None:
        template = ChatTemplate(self.tokenizer, row, self._renderings)
        return template.mark_chat(turns, self.turns or "assistant") if turns else None

    def _mark_completion(self, prompt: Turns, turns: Turns, row: Mapping[str, Any]) -> MarkedText:
        template = ChatTemplate(self.tokenizer, row, self._renderings)
        return template.mark_completion(prompt, turns, self.turns)

    def _refuse_choice_of_turns(self, column: str) -> None:
        if self.turns:
            raise TypeError(
                f"turns={self.turns!r} says which turns of a chat are scored, and column "
                f"{column!r} holds text: leave it out"
            )

    def _tokenize(self, marked: Sequence[MarkedText]) -> Iterator[Tokens]:
        """Tokens of whole texts of one kind; labelled where a token is in a span.

        After what no template has rendered comes the end token, which is scored.
        """
        rendered = any(text.rendered for text in marked)
        end = None if rendered else self.tokenizer and self.tokenizer.eos_token_id
        tokenized = mark_tokens(self.tokenizer, marked, special=not rendered)
        for text, (ids, scored) in zip(marked, tokenized, strict=True):
            labels = np.where(scored, ids, IGNORED)
            if end is not None:
                response = text.text[text.scored[0][0] :]
                ended = response.rstrip().endswith(self.tokenizer.eos_token)
                if not ids.size or (ids[-1] != end and not ended):
                    ids, labels = np.append(ids, end), np.append(labels, end)
                # Where the tokenizer adds the end itself, it is in no span.
                if ids[-1] == end:
                    labels[-1] = end
            yield Tokens(ids, labels, layout="turns" if rendered else "text")

    def _truncate(self, sample: Tokens) -> Tokens:
        if self.max_length is None or sample.ids.size <= self.max_length:
            return sample
        return sample.cut(self.max_length)


def _mark_response(prompt: str, response: str) -> MarkedText:
    text = prompt + response
    return MarkedText(text, [(len(prompt), len(text))], prompt or None)


def _implicit_prompt(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Length of the prompt that both sides of a pair begin with.

    trl 1.16, data_utils.extract_prompt: where one side is the beginning of the other, its last
    element is none of the prompt, nor is a space before what differs.

    Raises:
        ValueError: for a side that is empty.
    """
    shorter = min(len(chosen), len(rejected))
    if not shorter:
        raise ValueError("a side of the pair of 'chosen' and 'rejected' is empty")
    place = common_length(chosen, rejected)
    if place == shorter:
        return shorter - 1
    return place - 1 if place and chosen[place - 1] == " " else place
