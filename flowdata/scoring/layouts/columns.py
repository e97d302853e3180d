"""Names of the columns of a data set of language, and what may stand in them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOKEN_COLUMNS = ("input_ids", "labels")

MASK_COLUMNS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
"""Which tokens are scored, where there are no labels; the names TRL and transformers use."""


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
        return tuple(name for name in named if name) or TOKEN_COLUMNS

    def check_choice(self, turns: str | None) -> None:
        """Make sure that there may be turns, if some are chosen.

        Raises:
            ValueError: for columns of something else.
        """
        if turns and not (self.messages or self.response):
            raise ValueError(
                f"turns={turns!r} says which turns of a chat are scored: name messages=, or "
                "prompt= and response= of turns"
            )

    def check(self, found: Iterable[str]) -> None:
        """Make sure that all are among the columns that were found.

        Raises:
            ValueError: saying which are missing, and which there are.
        """
        found = set(map(str, found))
        missing = [name for name in self.names if name not in found]
        if missing == ["labels"] and any(name in found for name in MASK_COLUMNS):
            return
        if missing:
            raise ValueError(
                f"there is no column {missing}, the columns are {sorted(found)}; rows need "
                "input_ids and labels (-100 where a token is not scored), or name columns of text: "
                "prompt and response, messages, or text, with a tokenizer"
            )


def is_turns(value: Any) -> bool:
    """Whether a value is a list of dicts, as the turns of a chat are."""
    return (
        isinstance(value, Sequence | np.ndarray)
        and not isinstance(value, str | bytes)
        and all(isinstance(turn, Mapping) for turn in value)
    )


def as_text(value: Any, column: str) -> str:
    """The text in a column.

    Raises:
        TypeError: for anything else: its printed form is not what a model was trained on.
        ValueError: for text that cannot be written.
    """
    if isinstance(value, str):
        require_unicode(value)
        return str(value)
    if is_turns(value):
        raise TypeError(
            f"column {column!r} holds the turns of a chat, not text: name it messages, or, where "
            "it answers a prompt of turns, response"
        )
    shown = repr(value)
    raise TypeError(
        f"column {column!r} holds {shown[:60]}{'...' if len(shown) > 60 else ''} of type "
        f"{type(value).__name__}, not text: make text of it as the model shall read it, or leave "
        "the row out"
    )


def require_unicode(text: str) -> None:
    """Make sure that a text is one that can be written, and tokenized.

    Raises:
        ValueError: for halves of characters, as what was cut in JSON ends with.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has half a character, {text[error.start]!r}, at place {error.start}, and no "
            'tokenizer takes it: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from error
