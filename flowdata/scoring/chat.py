"""Chats: what a turn may be, and what the chat template makes of the turns."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from flowdata.scoring.spans import MarkedText, common_length

Turns = list[dict[str, Any]]

# OpenAI writes weight, axolotl train and training, ms-swift loss: whether a turn is trained on.
_FLAGS = ("weight", "train", "training", "trainable", "loss")
# What says which parts of a turn are trained on, or how much.
_FINER_FLAGS = (
    "train_detail", "train_offset", "training_detail", "loss_scale", "loss_weight", "loss_mask",
    "mask", "train_on", "ignore_loss",
)  # fmt: skip
# transformers 5.23, chat_template_utils: a template reads a turn's reasoning by one of these.
_REASONING = ("reasoning_content", "reasoning", "thinking")
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


def read_turns(value: Any, column: str) -> Turns:
    """The turns in a column, each a dict of its own.

    Raises:
        TypeError, ValueError: for anything but a list of dicts with role and content.
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
    read: dict[str, Any] = _plain(turn)
    needed = ("role",) if read.get("tool_calls") else ("role", "content")
    if missing := [key for key in needed if key not in read]:
        raise ValueError(
            f"a turn of a chat has no {missing}, it has {sorted(map(str, read))}: {where}; rename "
            "its keys to role and content"
        )
    content = read.get("content", "")
    if not isinstance(content, str | list) or content == []:
        shown = content if content == [] else type(content).__name__
        raise TypeError(f"the content of {where} is {shown}, not text")
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


def _plain(value: Any) -> Any:
    """A value without arrays, which a template would print, and without keys that have None.

    A column of a table has each key in each turn, part, call and tool; what a template makes of
    None, such as null or an image, nobody has said. So does trl 1.16, remove_none_values.
    """
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _scored_turns(turns: Turns) -> list[bool]:
    """Which turns are scored: what the assistant says, but where a flag of the turn says no.

    Raises:
        ValueError: for flags that say something else.
    """
    return [_is_scored(number, turn) for number, turn in enumerate(turns)]


def _is_scored(number: int, turn: Mapping[str, Any]) -> bool:
    found = {name: turn[name] for name in _FLAGS if name in turn}
    said_by_assistant = bool(turn["role"] == "assistant")
    for name, value in found.items():
        if isinstance(value, str) or value not in (0, 1):
            raise ValueError(
                f"turn {number} has {name}={value!r}: a turn is scored or not, {name} 1 or 0; "
                "give rows with input_ids and labels for anything else"
            )
        if value and not said_by_assistant:
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
    return said_by_assistant and values != {False}


class ChatTemplate:
    """The chat template of a tokenizer, with the tools and options of one row.

    Args:
        tokenizer: has ``apply_chat_template``.
        row: its columns ``tools`` (schemas, or JSON) and ``chat_template_kwargs`` are honoured.

    Raises:
        TypeError, ValueError: for a tokenizer without a template, or options that are none.
    """

    def __init__(self, tokenizer: Any, row: Mapping[str, Any]) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template to render turns with: use that of a chat "
                "model, or set tokenizer.chat_template"
            )
        self._tokenizer = tokenizer
        self._options = _options(row)

    def mark_chat(self, turns: Turns) -> MarkedText:
        """The conversation, and where in it the assistant speaks.

        Raises:
            ValueError: when the template does not take it, or its turns cannot be told apart.
        """
        scored = _scored_turns(turns)
        whole = self._render_all(turns)
        if (tagged := self._tagged_spans(turns, whole)) is not None:
            speaks = [keep for keep, turn in zip(scored, turns, strict=True) if _answers(turn)]
            if len(tagged) == len(speaks):
                kept = zip(tagged, speaks, strict=True)
                return MarkedText(whole, [span for span, keep in kept if keep], rendered=True)
            if all(speaks):
                return MarkedText(whole, tagged, rendered=True)
        if scored[0]:
            raise ValueError(
                "the chat begins with the assistant: put what it answers before it, or the weight "
                "0 into this turn"
            )
        spans = []
        for number in np.flatnonzero(scored).tolist():
            before = self._render(turns[:number], prompt=True)
            after = self._render(turns[: number + 1])
            if not (whole.startswith(after) and after.startswith(before)):
                raise ValueError(
                    "the chat template renders a turn differently when others follow, so its "
                    "tokens cannot be told: give rows with input_ids and labels instead"
                )
            spans.append((len(before), len(after)))
        return MarkedText(whole, spans, rendered=True)

    def mark_completion(self, prompt: Turns, completion: Turns) -> MarkedText:
        """Prompt and completion, of which all that follows the prompt is scored.

        Raises:
            ValueError: when the template does not take them, or the completion repeats the prompt.
        """
        if not prompt:
            raise ValueError("the prompt has no turn: a template needs one before the completion")
        if completion[: len(prompt)] == prompt:
            raise ValueError(
                "the response begins with the turns of the prompt: leave prompt= out, or these "
                "turns out of the response"
            )
        flagged = [turn["role"] == "assistant" for turn in completion]
        if _scored_turns(completion) != flagged or any(
            turn.get(name) for turn in prompt for name in _FLAGS
        ):
            raise ValueError(
                "turns say which of them are trained on, but all of a response is scored, and "
                "nothing of a prompt: put the turns into one column, messages="
            )
        whole = self._render_all([*prompt, *completion])
        head = self._render(prompt, prompt=True)
        begin = common_length(whole, head)
        return MarkedText(whole, [(begin, len(whole))], head, rendered=True)

    def _render_all(self, turns: Turns) -> str:
        """The rendered turns.

        Raises:
            ValueError: when the template prints parts of them as Python does, or leaves them out.
        """
        whole = self._render(turns)
        self._check_contents(turns)
        if "tools" in self._options and whole == self._render(turns, tools=None):
            raise ValueError(
                "the row has tools, which the chat template does not render: use a template that "
                "does, or take the column out"
            )
        template = str(self._tokenizer.chat_template)
        for name in ("tool_calls", *_REASONING):
            read_as = _REASONING if name in _REASONING else (name,)
            if any(turn.get(name) for turn in turns) and not any(n in template for n in read_as):
                raise ValueError(
                    f"a turn has {name}, which the chat template does not render: use a template "
                    "that does, or take it out of the turn"
                )
        return whole

    def _check_contents(self, turns: Turns) -> None:
        """Make sure that what each turn says is rendered, and of parts only their text.

        Templates for content in parts may go over a text letter by letter, and find no part.
        """
        marks: dict[str, int] = {}

        def mark(number: int) -> str:
            name = f"turn{number}part{len(marks)}of"
            marks[name] = number
            return name

        marked = []
        for number, turn in enumerate(turns):
            content = turn.get("content")
            if isinstance(content, list):
                content = [part | {"text": mark(number)} for part in content if part["text"]]
            elif content:
                content = mark(number)
            marked.append(turn | {"content": content})
        try:
            # A template may change the case of what is said.
            shown = self._render(marked).lower()
        except ValueError:
            # What is said may have to be of a form, as JSON is.
            return
        for name, number in marks.items():
            in_parts = isinstance(turns[number]["content"], list)
            if in_parts and re.search(rf"""text['"]\s*:\s*['"]{name}""", shown):
                raise ValueError(
                    f"the chat template prints the parts of turn {number} as Python does: join "
                    "their texts into one, content as text"
                )
            if name not in shown:
                other = "as one text" if in_parts else 'in parts, [{"type": "text", "text": ...}]'
                raise ValueError(
                    f"the chat template leaves out what turn {number} says: give its content "
                    f"{other}, or take the turn out"
                )

    def _tagged_spans(self, turns: Turns, whole: str) -> list[tuple[int, int]] | None:
        """What the template itself marks as the assistant's; None where it marks nothing."""
        options = self._tokenizer.special_tokens_map | self._options
        template = options.pop("chat_template", self._tokenizer.chat_template)
        if not isinstance(template, str) or not _GENERATION_TAG.search(template):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, spans = cast(
            "tuple[list[str], list[list[tuple[int, int]]]]",
            render_jinja_template(
                [turns], chat_template=template, return_assistant_tokens_mask=True, **options
            ),
        )
        return spans[0] if rendered[0] == whole else None

    def _render(self, turns: Turns, *, prompt: bool = False, **changed: Any) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=prompt, **(self._options | changed)
            )
        # transformers 5.23, apply_chat_template: whatever the Jinja template raises, of any type.
        except Exception as error:
            raise ValueError(f"the chat template does not take the chat: {error}") from error
        return text


def _answers(turn: Mapping[str, Any]) -> bool:
    return bool(turn["role"] == "assistant")


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row has for its template."""
    options = _plain(row.get("chat_template_kwargs")) or {}
    if not isinstance(options, dict):
        raise TypeError(f"chat_template_kwargs must be a dict, got {type(options).__name__}")
    tools = _plain(row.get("tools"))
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"tools are text, but not JSON: {error}") from error
    # trl 1.16, data_utils.apply_chat_template: some templates render a list of no tools.
    return options | ({"tools": tools} if tools else {})
