"""From the rows of a data set to token ids and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""Label of a token that is not scored."""


class Tokens(NamedTuple):
    """One sample: ids and labels of shape (length,), int64; label t is that of token t."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    truncated: bool = False


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
        given = [name for name in ("response", "messages", "text") if getattr(self, name)]
        if len(given) > 1 or (self.prompt and not self.response):
            raise ValueError(
                "name the columns of one layout: prompt and response, or response alone, or "
                f"messages, or text; got {given or ['prompt']}"
            )
        if not given:
            return
        if self.tokenizer is None:
            raise ValueError(f"{given[0]}={getattr(self, given[0])!r} is text: pass tokenizer=")
        if not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(self.tokenizer).__name__} cannot tell which characters a token covers: "
                "use the fast tokenizer, or give rows with input_ids and labels"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are read."""
        named = (self.prompt, self.response, self.messages, self.text)
        return tuple(name for name in named if name) or ("input_ids", "labels")

    def __call__(self, rows: Sequence[Any]) -> list[Tokens]:
        """Tokens of each row.

        Raises:
            TypeError, ValueError: for rows without the columns, or of unequal lengths.
        """
        for row in rows:
            self._check(row)
        if self.response is None and self.messages is None and self.text is None:
            samples = [_given(row) for row in rows]
        elif self.messages is not None:
            texts, spans = zip(*(self._chat(row[self.messages]) for row in rows), strict=True)
            samples = self._tokenized(texts, spans, special=False)
        else:
            prompts = [str(row[self.prompt]) if self.prompt else "" for row in rows]
            answers = [str(row[self.response or self.text or ""]) for row in rows]
            texts = tuple(prompt + answer for prompt, answer in zip(prompts, answers, strict=True))
            spans = tuple(
                [(len(prompt), len(text))] for prompt, text in zip(prompts, texts, strict=True)
            )
            samples = self._tokenized(texts, spans, special=True)
        return [self._cut(sample) for sample in samples]

    def _check(self, row: Any) -> None:
        if not isinstance(row, Mapping):
            raise TypeError(
                f"a language model is scored on rows that are dicts, with {self.columns}; got "
                f"{type(row).__name__}"
            )
        if missing := [name for name in self.columns if name not in row]:
            raise ValueError(
                f"a row has no {missing}, it has {sorted(map(str, row))}; rows need input_ids and "
                "labels (-100 where a token is not scored), or name text columns: "
                "CausalLM(tokenizer=..., prompt=..., response=...)"
            )
        if empty := [name for name in self.columns if row[name] is None]:
            raise ValueError(f"a row has None for {empty}: fill it in, or leave the row out")

    def _tokenized(
        self, texts: Sequence[str], spans: Sequence[list[tuple[int, int]]], *, special: bool
    ) -> list[Tokens]:
        """Tokens of whole texts; labelled where a token covers a character of a span.

        So all of a response is scored, also where its first letters and the last of the prompt,
        a space most often, are one token.
        """
        encoded = self.tokenizer(
            list(texts), add_special_tokens=special, return_offsets_mapping=True, truncation=False
        )
        end = self.tokenizer.eos_token_id if special else None
        samples = []
        for ids, offsets, scored in zip(
            encoded["input_ids"], encoded["offset_mapping"], spans, strict=True
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

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
        """The rendered conversation, and where in it the assistant speaks."""

        def render(turns: Sequence[Mapping[str, Any]], prompt: bool) -> str:
            text: str = self.tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=prompt
            )
            return text

        whole = render(messages, False)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = render(messages[:number], True), render(messages[: number + 1], False)
            if not (whole.startswith(after) and after.startswith(before)):
                raise ValueError(
                    "the chat template renders a turn differently when others follow, so its "
                    "tokens cannot be told: give rows with input_ids and labels instead"
                )
            spans.append((len(before), len(after)))
        return whole, spans

    def _cut(self, sample: Tokens) -> Tokens:
        limit = self.max_length
        if limit is None or sample.ids.size <= limit:
            return sample
        return Tokens(sample.ids[:limit], sample.labels[:limit], truncated=True)


def _given(row: Mapping[str, Any]) -> Tokens:
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
