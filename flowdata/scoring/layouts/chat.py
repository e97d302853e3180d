"""Chats: what the chat template makes of the turns, and which of it is scored.

The text is always what the template writes of the whole chat, as it is trained on. Where in it the
assistant speaks, the template says itself by its generation tags; else it is what follows the
prompt, the turns before with the header of an answer; and where the template writes the turns
before otherwise once others follow, it is looked up in the text by marks.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from flowdata.errors import warn
from flowdata.scoring.layouts.generation_tags import has_tags, tagged_spans
from flowdata.scoring.layouts.renderings import NamedRenderer, Renderings, name_of
from flowdata.scoring.layouts.spans import MarkedText, common_length
from flowdata.scoring.layouts.turn_marks import TurnFinder
from flowdata.scoring.layouts.turns import (
    Turns,
    Which,
    answers,
    plain_value,
    require_assistant,
    scored_turns,
    wants_training,
)

# transformers 5.23, chat_template_utils: a template reads a turn's reasoning by one of these.
_REASONING = ("reasoning_content", "reasoning", "thinking")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


class ChatTemplate:
    """The chat template of a tokenizer, with the tools and options of one row.

    Args:
        tokenizer: has ``apply_chat_template``.
        row: its columns ``tools`` (schemas, or JSON) and ``chat_template_kwargs`` are honoured.
        remembered: what was rendered for other rows.

    Raises:
        TypeError, ValueError: for a tokenizer without a template, or options that are none.
    """

    def __init__(
        self, tokenizer: Any, row: Mapping[str, Any], remembered: Renderings | None = None
    ) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template to render turns with: use that of a chat "
                "model, or set tokenizer.chat_template"
            )
        self._tokenizer = tokenizer
        self._options = _options(row)
        # Some models have one template for tools, and one without.
        self._template: str = tokenizer.get_chat_template(
            self._options.pop("chat_template", None), self._options.get("tools")
        )
        key = (self._template, repr(self._options))
        self._by_name = NamedRenderer(self.render, remembered or Renderings(), key)

    def mark_chat(self, turns: Turns, which: Which = "assistant") -> MarkedText:
        """The conversation, and where in it the assistant speaks.

        Args:
            turns: the chat.
            which: of what the assistant says all, or the last turn; or all of the chat.

        Raises:
            ValueError: when the template does not take it, or its turns cannot be told apart.
        """
        return self._mark(turns, scored_turns(turns, which), which)

    def mark_completion(
        self, prompt: Turns, completion: Turns, which: Which | None = None
    ) -> MarkedText:
        """Prompt and completion, of which all that follows the prompt is scored.

        Args:
            prompt: the turns before.
            completion: the turns after it.
            which: as of `mark_chat`; with it, nothing else of the completion is scored.

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
        together = [*prompt, *completion]
        if which == "all":
            return self.mark_chat(together, which)
        scored = scored_turns(completion, which or "assistant")
        chosen = which is None and scored != [answers(turn) for turn in completion]
        if chosen or wants_training(prompt):
            raise ValueError(
                "turns say which of them are trained on, but all of a response is scored, and "
                'nothing of a prompt: say turns="assistant", or put the turns into one column, '
                "messages="
            )
        if which is not None:
            return self._mark(together, [False] * len(prompt) + scored, which, len(prompt))
        whole = self._render_all(together)
        head = self.render(prompt, prompt=True)
        begin = common_length(whole, head)
        return MarkedText(whole, [(begin, len(whole))], head, rendered=True)

    def _mark(
        self, turns: Turns, scored: list[bool], which: Which, of_prompt: int = 0
    ) -> MarkedText:
        whole = self._render_all(turns)
        if which == "all":
            return MarkedText(whole, [(0, len(whole))], rendered=True)
        # What the template tags of others, as a caller of tools, is scored as it says.
        left_out = [
            number < of_prompt or (not keep and (answers(turn) or which == "last"))
            for number, (keep, turn) in enumerate(zip(scored, turns, strict=True))
        ]
        spans = self._tagged_spans(turns, whole, left_out)
        if spans is None:
            spans = self._spans_after_prompts(turns, whole, scored)
        return MarkedText(whole, spans, rendered=True)

    def _tagged_spans(
        self, turns: Turns, whole: str, left_out: list[bool]
    ) -> list[tuple[int, int]] | None:
        """What the template itself marks as the assistant's; None where it does not say whose."""
        if not has_tags(self._template):
            return None
        options = self._tokenizer.special_tokens_map | self._options
        tagged = tagged_spans(self._template, options, turns, whole)
        if tagged is None:
            return None
        spans = []
        for span, owners in tagged:
            of_owners = {left_out[number] for number in owners}
            if len(of_owners) > 1:
                return None
            if of_owners == {False}:
                spans.append(span)
        return spans

    def _spans_after_prompts(
        self, turns: Turns, whole: str, scored: list[bool]
    ) -> list[tuple[int, int]]:
        """What follows the prompt of each answer."""
        require_assistant(turns)
        if scored[0]:
            raise ValueError(
                "the chat begins with the assistant: put what it answers before it, or the weight "
                "0 into this turn"
            )
        by_name = self._by_name.renders(self._template, turns, whole)
        render = self._by_name.render if by_name else self.render
        finder = None
        spans = []
        for number in np.flatnonzero(scored).tolist():
            before = render(turns[:number], prompt=True)
            after = render(turns[: number + 1])
            if whole.startswith(after) and after.startswith(before):
                spans.append((len(before), len(after)))
                continue
            finder = finder or TurnFinder(render, self._tokenizer, turns, whole)
            spans.append(finder.find(number))
        return spans

    def _render_all(self, turns: Turns) -> str:
        """The rendered turns.

        Raises:
            ValueError: when the template prints parts of them as Python does, or leaves them out.
        """
        whole = self.render(turns)
        self._check_contents(turns)
        if "tools" in self._options and whole == self.render(turns, tools=None):
            raise ValueError(
                "the row has tools, which the chat template does not render: use a template that "
                "does, or take the column out"
            )
        read = _without_comments(self._template)
        for name in ("tool_calls", *_REASONING):
            read_as = _REASONING if name in _REASONING else (name,)
            if any(turn.get(name) for turn in turns) and not any(n in read for n in read_as):
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
            name = name_of(len(marks))
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
        pieces = self._by_name.named(marked)
        if pieces is None:
            # What is said may have to be of a form, as JSON is.
            return
        # A template may change the case of what is said.
        shown = "".join(pieces).lower()
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

    def render(self, turns: Turns, *, prompt: bool = False, **changed: Any) -> str:
        """What the template makes of turns, and of the header of an answer to them.

        Raises:
            ValueError: when it does not take them.
        """
        options = {"chat_template": self._template} | self._options | changed
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=prompt, **options
            )
        # transformers 5.23, apply_chat_template: whatever the Jinja template raises, of any type.
        except Exception as error:
            raise ValueError(f"the chat template does not take the chat: {error}") from error
        return text


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row has for its template."""
    options = plain_value(row.get("chat_template_kwargs")) or {}
    if not isinstance(options, dict):
        raise TypeError(f"chat_template_kwargs must be a dict, got {type(options).__name__}")
    tools = plain_value(row.get("tools"))
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"tools are text, but not JSON: {error}") from error
    # trl 1.16, data_utils.apply_chat_template: some templates render a list of no tools.
    return options | ({"tools": tools} if tools else {})


def warn_if_dated(tokenizer: Any) -> None:
    """Warn of a chat template that writes the date of the day on which it is used."""
    templates = tokenizer.chat_template
    texts = templates.values() if isinstance(templates, Mapping) else [templates]
    # transformers 5.23, chat_template_utils: what Llama 3.2 and gpt-oss call.
    if any("strftime_now" in _without_comments(text) for text in texts if text):
        warn(
            "the chat template writes the date of today (strftime_now): a pass that goes on "
            "another day has other prompts, and so has a training then. Put a date in its place "
            "in tokenizer.chat_template, or, where it takes one, into chat_template_kwargs"
        )


@lru_cache(maxsize=16)
def _without_comments(template: str) -> str:
    return _COMMENT.sub("", template)
