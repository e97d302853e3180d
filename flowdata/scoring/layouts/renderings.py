"""What a chat template makes of turns, remembered for chats that differ only in what is said.

Where the answers of a chat are is found out by rendering beginnings of it, which takes a time that
grows with the square of its turns. But a template that does not look into what is said writes the
same around it: so a name is rendered in place of each text, and what is said put in afterwards.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from flowdata.scoring.layouts.turns import Turns

_NAME = re.compile(r"(turn\d+part\d+of)")
_ROLES = ("system", "developer", "user", "assistant", "tool", "model")
_STRIPS = ("strip", "lstrip", "rstrip")
_MOST_REMEMBERED = 4_096


def name_of(number: int) -> str:
    """A text that stands for another one: letters and digits, which no template looks for."""
    return f"turn{number}part{number}of"


class Renderings:
    """What was rendered of turns with names in them, cut at the names."""

    def __init__(self) -> None:
        self._pieces: dict[Any, list[str] | None] = {}

    def pieces(self, key: Any, render: Callable[[], str]) -> list[str] | None:
        """What is rendered, once for a key; None for what the template does not take."""
        if key in self._pieces:
            return self._pieces[key]
        try:
            found = _NAME.split(render())
        except ValueError:
            found = None
        if len(self._pieces) >= _MOST_REMEMBERED:
            self._pieces.clear()
        self._pieces[key] = found
        return found


class _Form(NamedTuple):
    """A turn with a name for its text, and what it was made of."""

    turn: dict[str, Any]
    key: str
    name: str
    text: str
    original: dict[str, Any]


class NamedRenderer:
    """Renders turns of one chat with names for what is said, and puts that in.

    Args:
        render: renders turns, with ``prompt=True`` one that ends where an answer begins.
        remembered: what was rendered before.
        key: template and options.
    """

    def __init__(self, render: Callable[..., str], remembered: Renderings, key: Any) -> None:
        self._render = render
        self._remembered = remembered
        self._key = key
        self._forms: dict[int, _Form] = {}
        self._names: dict[str, str] = {}

    def named(self, turns: Turns) -> list[str] | None:
        """What is made of turns that have names, in pieces."""
        key = (self._key, False, tuple(map(repr, turns)))
        return self._remembered.pieces(key, lambda: self._render(turns))

    def render(self, turns: Turns, *, prompt: bool = False) -> str:
        """What `render` makes of turns, where the template does not look into what is said."""
        forms = [
            self._forms.get(id(turn)) or self._form(place, turn) for place, turn in enumerate(turns)
        ]
        said = {form.name: form.text for form in forms}
        pieces = None
        if all(said[form.name] == form.text for form in forms):
            key = (self._key, prompt, tuple([form.key for form in forms]))
            named = [form.turn for form in forms]
            pieces = self._remembered.pieces(key, lambda: self._render(named, prompt=prompt))
        if pieces is None:
            return self._render(turns, prompt=prompt)
        return "".join([said.get(piece, piece) for piece in pieces])

    def renders(self, template: str, turns: Turns, whole: str) -> bool:
        """Whether it may be used for parts of a chat, of which the whole is known."""
        texts = texts_looked_for(template)
        if texts is None:
            return False
        said = [turn["content"] for turn in turns if isinstance(turn.get("content"), str)]
        if any(text in one for text in texts for one in said):
            return False
        return self.render(turns) == whole

    def _form(self, place: int, turn: dict[str, Any]) -> _Form:
        """A turn with a name, the same for the same text; white space around the text stays."""
        content = turn.get("content")
        named, name, text = turn, "", ""
        if isinstance(content, str) and (text := content.strip()):
            name = self._names.setdefault(text, name_of(place))
            named = turn | {"content": content.replace(text, name, 1)}
        # The turn itself is kept, so that no other one has its id.
        self._forms[id(turn)] = _Form(named, repr(named), name, text, turn)
        return self._forms[id(turn)]


@lru_cache(maxsize=16)
def texts_looked_for(template: str) -> frozenset[str] | None:
    """Texts that a template compares with others, or looks for; None where that is not known.

    Such as ``</think>``: a turn that has one in what it says may be written otherwise.
    """
    from jinja2 import Environment, TemplateSyntaxError, nodes

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    # The tags of a trainer's own.
    except TemplateSyntaxError:
        return None

    def key_of(node: nodes.Node) -> Any:
        if isinstance(node, nodes.Getattr):
            return node.attr
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            return node.arg.value
        return None

    def constants(node: nodes.Node) -> Iterator[str]:
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            # A key of a turn.
            yield from constants(node.node)
        elif not isinstance(node, nodes.Call):
            for child in node.iter_child_nodes():
                yield from constants(child)

    found: set[str] = set()
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Assign, nodes.Test)):
        called = node.node if isinstance(node, nodes.Call) else None
        if isinstance(called, nodes.Getattr) and called.attr in _STRIPS:
            continue
        # As part["type"] == "text".
        if isinstance(node, nodes.Compare) and key_of(node.expr) not in (None, "content"):
            continue
        for child in node.iter_child_nodes():
            found.update(constants(child))
    found -= {"", *_ROLES}
    if any(text in name_of(number) for text in found for number in range(10)):
        return None
    return frozenset(found)
