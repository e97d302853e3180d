"""Turns of a chat: what one may be, and which of them are scored."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from flowdata.scoring.layouts.columns import require_unicode

Turns = list[dict[str, Any]]
Which = Literal["assistant", "last", "all"]

# OpenAI writes weight, axolotl train and training, ms-swift loss: whether a turn is trained on.
_FLAGS = ("weight", "train", "training", "trainable", "loss")
# What says which parts of a turn are trained on, or how much.
_FINER_FLAGS = (
    "train_detail", "train_offset", "training_detail", "loss_scale", "loss_weight", "loss_mask",
    "mask", "train_on", "ignore_loss",
)  # fmt: skip
# As ShareGPT, Gemini and others name the assistant.
_OTHER_NAMES = ("gpt", "chatgpt", "model", "bot", "chatbot", "ai", "assistant")
_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_turns(value: Any, column: str) -> Turns:
    """The turns in a column, each a dict of its own.

    Raises:
        TypeError, ValueError: for anything but a list of dicts with role and content of text.
    """
    if isinstance(value, str):
        raise TypeError(
            f"the chat in column {column!r} is stored as text: parse it into a list of turns, "
            "json.loads"
        )
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, bytes):
        raise TypeError(
            f"a chat is a list of turns, got {type(value).__name__} in column {column!r}"
        )
    return [_read_turn(number, turn, column) for number, turn in enumerate(value)]


def _read_turn(number: int, turn: Any, column: str) -> dict[str, Any]:
    where = f"turn {number} in column {column!r}"
    if not isinstance(turn, Mapping):
        raise TypeError(f"a turn of a chat is a dict, got {type(turn).__name__}: {where}")
    read: dict[str, Any] = plain_value(turn)
    # trl 1.16, maybe_convert_to_chatml: other names of the keys; roles remain what they are.
    if read.get("from") in _ROLES and "value" in read:
        read = {"role": read.pop("from"), "content": read.pop("value")} | read
    needed = ("role",) if read.get("tool_calls") else ("role", "content")
    missing = [key for key in needed if key not in read]
    if missing == ["content"] and "content" in turn:
        raise ValueError(
            f"the content of {where} is None, and it calls no tool: give it text, which may be "
            "empty, or take the turn out"
        )
    if missing:
        raise ValueError(
            f"a turn of a chat has no {missing}, it has {sorted(map(str, read))}: {where}; rename "
            "its keys to role and content, and the roles to user and assistant"
        )
    content = read.get("content", "")
    if not isinstance(content, str | list) or content == []:
        shown = content if content == [] else type(content).__name__
        raise TypeError(f"the content of {where} is {shown}, not text")
    if isinstance(content, str):
        require_unicode(content)
    if not isinstance(read["role"], str):
        raise TypeError(f"the role of {where} is {type(read['role']).__name__}, not text")
    for part in content if isinstance(content, list) else ():
        if not (
            isinstance(part, Mapping)
            and part.get("type", "text") == "text"
            and isinstance(part.get("text"), str)
        ):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(
                f"{where} has a part that is not text ({kind}): have the processor of the model "
                "make input_ids, labels and what else its forward takes"
            )
    return read


def plain_value(value: Any) -> Any:
    """A value without arrays, which a template would print, and without keys that have None.

    A column of a table has each key in each turn, part, call and tool; what a template makes of
    None, such as null or an image, nobody has said. So does trl 1.16, remove_none_values.
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain_value(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value


def scored_turns(turns: Turns, which: Which = "assistant") -> list[bool]:
    """Which turns are scored: what the assistant says, but where a flag of the turn says no.

    Args:
        turns: the chat.
        which: all that the assistant says, or the last of it, or whatever anyone says.

    Raises:
        ValueError: for flags that say something else.
    """
    flagged = [_is_flagged(number, turn, which) for number, turn in enumerate(turns)]
    if which == "all":
        return [True] * len(turns)
    speaks = [number for number, turn in enumerate(turns) if answers(turn)]
    chosen = set(speaks[-1:] if which == "last" else speaks)
    return [flag is not False and number in chosen for number, flag in enumerate(flagged)]


def answers(turn: Mapping[str, Any]) -> bool:
    """Whether a turn is the assistant's."""
    return bool(turn["role"] == "assistant")


def require_assistant(turns: Turns) -> None:
    """Make sure that the assistant of a chat has not another name.

    Raises:
        ValueError: for turns of none, where somebody speaks who is called as assistants are.
    """
    roles = [turn["role"] for turn in turns]
    others = [role for role in roles if role.lower() in _OTHER_NAMES]
    if others and "assistant" not in roles:
        raise ValueError(
            f"the chat has no turn of role 'assistant', its roles are {sorted({*roles})}: rename "
            f"{others[0]!r} to 'assistant'"
        )


def wants_training(turns: Turns) -> bool:
    """Whether a turn says that it is to be trained on."""
    return any(turn.get(name) for turn in turns for name in _FLAGS)


def _is_flagged(number: int, turn: Mapping[str, Any], which: Which) -> bool | None:
    """What the flags of a turn say; None without any."""
    found = {name: turn[name] for name in _FLAGS if name in turn}
    for name, value in found.items():
        if isinstance(value, str) or value not in (0, 1):
            raise ValueError(
                f"turn {number} has {name}={value!r}: a turn is scored or not, {name} 1 or 0; "
                "give rows with input_ids and labels for anything else"
            )
        if which == "all" and not value:
            raise ValueError(
                f"turn {number} has {name}={value!r}, but turns='all' scores all of a chat: leave "
                "one of them out"
            )
        if which != "all" and value and not answers(turn):
            raise ValueError(
                f"turn {number} of {turn['role']!r} has {name}={value!r}, but only what the "
                "assistant says is scored: take it out, or give rows with input_ids and labels"
            )
    if finer := [name for name in _FINER_FLAGS if name in turn]:
        raise ValueError(
            f"turn {number} has {finer}, which say what of a turn is trained on: give rows with "
            "input_ids and labels"
        )
    if len(values := {bool(value) for value in found.values()}) > 1:
        raise ValueError(f"turn {number} is scored and not scored: {found}")
    return next(iter(values), None)
