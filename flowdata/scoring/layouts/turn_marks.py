"""Where the turns of a chat are in what a template makes of it, whatever it makes of each.

A template may write a turn otherwise once others follow: without its reasoning, with another end.
So one cannot say where a turn is by rendering the turns before. But a mark in what a turn says, of
a character that nobody writes, goes where the template puts it. From the mark of the turn before,
the whole goes on as the prompt does, until the answer begins; and from the mark of the answer as it
does where nothing follows, until the turn ends.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flowdata.scoring.layouts.spans import common_characters, common_length
from flowdata.scoring.layouts.turns import Turns, answers

# A plane of Unicode for private use.
_FIRST, _LAST = 0xF0000, 0xFFFFD
_MARKS = re.compile(f"([{chr(_FIRST)}-{chr(_LAST)}])")


class Mark(NamedTuple):
    """A mark of a turn in a text, and which time it is there: a template may repeat it."""

    turn: int
    time: int
    place: int


class MarkedRendering(NamedTuple):
    """A text, and the marks in it in order."""

    text: str
    marks: list[Mark]

    def place_of(self, mark: Mark) -> int | None:
        """Where a mark of another text is in this one."""
        same = (m.place for m in self.marks if (m.turn, m.time) == (mark.turn, mark.time))
        return next(same, None)


def mark_turns(turns: Turns, whole: str) -> Iterator[Turns]:
    """The turns with a mark at the end of what each says; none where a chat has such characters.

    First before the white space at the end of a text, which templates strip, then after it.
    """
    if _MARKS.search(whole) or len(turns) > _LAST - _FIRST:
        return
    for mark in (_mark_stripped, _mark_whole):
        yield [_mark_turn(turn, chr(_FIRST + number), mark) for number, turn in enumerate(turns)]


def _mark_turn(
    turn: dict[str, Any], character: str, mark: Callable[[str, str], str]
) -> dict[str, Any]:
    content = turn.get("content", "")
    if isinstance(content, list):
        *others, last = content
        return turn | {"content": [*others, last | {"text": mark(last["text"], character)}]}
    calls = turn.get("tool_calls")
    if calls and not content:
        return turn | {"tool_calls": [_mark_call(calls[0], character), *calls[1:]]}
    return turn | {"content": mark(content, character)}


def _mark_call(call: Any, mark: str) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return call | {"function": _mark_call(call["function"], mark)}
    return call | {"name": f"{call['name']}{mark}"} if "name" in call else call


def _mark_stripped(text: str, mark: str) -> str:
    end = len(text.rstrip())
    return text[:end] + mark + text[end:]


def _mark_whole(text: str, mark: str) -> str:
    return text + mark


def read_marks(rendered: str) -> MarkedRendering:
    """What was rendered of marked turns, without the marks, and where they are."""
    pieces = _MARKS.split(rendered)
    place = 0
    times: dict[int, int] = {}
    marks = []
    for text, mark in zip(pieces[::2], pieces[1::2], strict=False):
        place += len(text)
        turn = ord(mark) - _FIRST
        times[turn] = times.get(turn, 0) + 1
        marks.append(Mark(turn, times[turn], place))
    return MarkedRendering("".join(pieces[::2]), marks)


class TurnFinder:
    """Finds the turns of one chat in what its template makes of it.

    Args:
        render: makes a text of turns, with ``prompt=True`` one that ends where an answer begins.
        tokenizer: the tokenizer of the model.
        turns: the chat.
        whole: what is made of it.
    """

    def __init__(
        self, render: Callable[..., str], tokenizer: Any, turns: Turns, whole: str
    ) -> None:
        self._render = render
        self._tokenizer = tokenizer
        self._control = tuple(tokenizer.get_added_vocab())
        for marked in mark_turns(turns, whole):
            self._turns, self._whole = marked, read_marks(render(marked))
            if self._whole.text == whole:
                return
        raise _cannot_tell("what a turn says")

    def find(self, number: int) -> tuple[int, int]:
        """The span of an answer: from after its header to the end of the turn.

        Raises:
            ValueError: when it cannot be told where it is.
        """
        place, start = self._find_start(number)
        is_last = number == len(self._turns) - 1
        end = len(self._whole.text) if is_last else self._find_end(number)
        others = {m.turn for m in self._whole.marks if place < m.place <= end} - {number}
        own = self._place_of(number)
        if others or start > end or own is None or not start <= own <= end:
            raise _cannot_tell("an answer")
        return start, end

    def _find_start(self, number: int) -> tuple[int, int]:
        """Where what was said before an answer ends, and where the answer begins."""
        before = read_marks(self._render(self._turns[:number], prompt=True))
        place, anchor = self._anchor(before)
        expected, rest = before.text[anchor:], self._whole.text[place:]
        if rest.startswith(expected):
            return place, place + len(expected)
        alone = read_marks(self._render(self._turns[:number])).text
        header = before.text[self._common(alone, before.text) :]
        if common_length(expected, rest) >= len(expected) - len(header):
            return place, place + self._common(expected, rest)
        # The turn before, an answer too, ends otherwise than the chat.
        found = self._whole.text.find(header, place, self._place_of(number)) if header else -1
        if found < 0:
            raise _cannot_tell("a turn")
        return place, found + len(header)

    def _find_end(self, number: int) -> int:
        after = read_marks(self._render(self._turns[: number + 1]))
        place, anchor = self._anchor(after)
        tail = after.text[anchor:]
        if self._whole.text.startswith(tail, place):
            return place + len(tail)
        # The end of the chat is another one than that of an answer. What is not of the header of
        # the next turn, as it is where no answer is before it, is of this one.
        first = number
        while first and answers(self._turns[first - 1]):
            first -= 1
        others, following = self._turns[:first], self._place_of(number + 1)
        if not others or following is None:
            raise _cannot_tell("the end of a turn")
        earlier = read_marks(self._render(others))
        without = read_marks(self._render([*others, *self._turns[number + 1 :]]))
        begin = without.place_of(earlier.marks[-1]) if earlier.marks else None
        ends = [m.place for m in without.marks if m.turn == number + 1]
        if begin is None or not ends:
            raise _cannot_tell("the end of a turn")
        rest = without.text[begin : ends[0]]
        header = rest[self._common(earlier.text[earlier.marks[-1].place :], rest) :]
        if not (header and self._whole.text[place:following].endswith(header)):
            raise _cannot_tell("the end of a turn")
        return following - len(header)

    def _anchor(self, part: MarkedRendering) -> tuple[int, int]:
        """Where the last mark of a part of the chat is, in the whole and in the part."""
        if not part.marks:
            return 0, 0
        found = self._whole.place_of(part.marks[-1])
        if found is None:
            raise _cannot_tell("what a turn says")
        return found, part.marks[-1].place

    def _place_of(self, number: int) -> int | None:
        return next((m.place for m in self._whole.marks if m.turn == number), None)

    def _common(self, part: str, whole: str) -> int:
        """How far the whole goes on as a part that ends here: to its end, or a control token.

        Such a token may begin reasoning, or end the chat.
        """
        common = common_characters(self._tokenizer, part, whole)
        left = part[common:]
        after_control = not left.strip() and part[:common].endswith(self._control)
        if left and not after_control and not left.lstrip().startswith(self._control):
            raise _cannot_tell("a turn")
        return common


def _cannot_tell(what: str) -> ValueError:
    return ValueError(
        "the chat template renders a turn differently when others follow, and it cannot be told "
        f"where {what} is: give rows with input_ids and labels instead"
    )
