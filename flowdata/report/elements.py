"""Elements of a page: texts made safe, tables with heads, cards of figures."""

from collections.abc import Mapping, Sequence

from flowdata.report.sample_cards import escaped
from flowdata.report.texts import visible

_LONG = 200


def safe(text: object, most: int = _LONG) -> str:
    """A text of one element: nothing in it is HTML, nothing hidden, and it is not long."""
    return escaped(visible(str(text)), most)


def note_of(text: str) -> str:
    """A sentence that a reader should not miss."""
    return f'<p class="note" role="note">{safe(text, 2_000)}</p>'


def cards_of(cards: Mapping[str, str]) -> str:
    """Figures, each by what it is."""
    shown = (
        f"<div><b>{safe(value)}</b><span>{safe(name)}</span></div>" for name, value in cards.items()
    )
    return f'<div class="cards">{"".join(shown)}</div>'


def table_of(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    text_column: int | None = None,
    caption: str | None = None,
) -> str:
    """A table with heads of columns and of rows; one column may be of texts, others are numbers."""

    def kind(column: int) -> str:
        return ' class="text" dir="auto"' if column == text_column else ' class="number"'

    heads = "".join(
        f'<th scope="col"{kind(column) if 0 < column != text_column else ""}>{safe(name)}</th>'
        for column, name in enumerate(head)
    )
    lines = "".join(
        f'<tr><th scope="row">{safe(first)}</th>'
        + "".join(
            f"<td{kind(column)}>{safe(cell)}</td>" for column, cell in enumerate(cells, start=1)
        )
        + "</tr>"
        for first, *cells in rows
    )
    above = "" if caption is None else f"<caption>{safe(caption)}</caption>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{safe(caption or head[0])}">'
        f"<table>{above}<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
