"""What a chat template itself tags as the assistant's: ``{% generation %}``."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np

from flowdata.scoring.layouts.turn_marks import MarkedRendering, mark_turns, read_marks
from flowdata.scoring.layouts.turns import Turns, answers

Span = tuple[int, int]

# transformers 5.23, render_jinja_template.
_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TAGS = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
# Of Unicode's last plane, which has no characters.
_BEGIN, _END = "\U0010fffc", "\U0010fffd"


@lru_cache(maxsize=16)
def has_tags(template: str) -> bool:
    """Whether a template has generation tags."""
    return bool(_TAG.search(template))


def tagged_spans(
    template: str, options: Mapping[str, Any], turns: Turns, whole: str
) -> list[tuple[Span, frozenset[int]]] | None:
    """What is tagged of a chat, and the turns that it may be of.

    Args:
        template: a template with tags.
        options: what it is given beside the turns, special tokens among it.
        turns: the chat.
        whole: what it makes of them; where it makes something else now, there are no spans.

    Raises:
        ValueError: for tags in a macro or a block: transformers takes the places in there for
            places in the chat.
    """
    rendered, spans = _render(template, options, turns)
    if rendered != whole:
        return None
    _check_places(template, options, turns, whole, spans)
    owners = _owners(template, options, turns, whole, spans)
    return list(zip(spans, owners, strict=True))


def _render(template: str, options: Mapping[str, Any], turns: Turns) -> tuple[str, list[Span]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, spans = cast(
        "tuple[list[str], list[list[Span]]]",
        render_jinja_template(
            [turns], chat_template=template, return_assistant_tokens_mask=True, **options
        ),
    )
    return rendered[0], spans[0]


@lru_cache(maxsize=16)
def _with_edges(template: str) -> str:
    """A template that writes a mark in place of each of its generation tags."""

    def write(tag: re.Match[str]) -> str:
        before, is_end, after = tag.groups()
        edge = _END if is_end else _BEGIN
        # A block, as white space around it is stripped otherwise than around an expression.
        return f"{{%{before} if true %}}{{{{ '{edge}' }}}}{{% endif {after}%}}"

    return _TAGS.sub(write, template)


def _check_places(
    template: str, options: Mapping[str, Any], turns: Turns, whole: str, spans: list[Span]
) -> None:
    """Make sure that what transformers takes for tagged is what stands between the tags."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered = cast(
        "tuple[list[str], Any]",
        render_jinja_template([turns], chat_template=_with_edges(template), **options),
    )
    pieces = re.split(f"([{_BEGIN}{_END}])", rendered[0][0])
    places = np.cumsum([len(text) for text in pieces[::2]]).tolist()
    tagged = list(zip(places[:-1:2], places[1:-1:2], strict=True))
    if "".join(pieces[::2]) == whole and spans != tagged:
        raise ValueError(
            "transformers takes another part of the chat for the assistant's than the chat "
            "template has between its generation tags, as they are in a macro or a block: take "
            "them out of it"
        )


def _owners(
    template: str, options: Mapping[str, Any], turns: Turns, whole: str, spans: list[Span]
) -> list[frozenset[int]]:
    """The turns that each span may be of."""
    for marked_turns in mark_turns(turns, whole):
        rendered, marked_spans = _render(template, options, marked_turns)
        marked = read_marks(rendered)
        if marked.text == whole and len(marked_spans) == len(spans):
            return [_marked_owners(marked, span, turns) for span in spans]
    speakers = [number for number, turn in enumerate(turns) if answers(turn)]
    if len(spans) == len(speakers):
        return [frozenset({number}) for number in speakers]
    return [frozenset(range(len(turns)))] * len(spans)


def _marked_owners(marked: MarkedRendering, span: Span, turns: Turns) -> frozenset[int]:
    first, last = span
    inside = {mark.turn for mark in marked.marks if first < mark.place <= last}
    if inside:
        return frozenset(inside)
    around = [mark.turn for mark in marked.marks if mark.place <= first][-1:]
    around += [mark.turn for mark in marked.marks if mark.place > last][:1]
    return frozenset(number for number in around if answers(turns[number]))
