"""Figures inside a page: SVG whose text is text, described for those who do not see it."""

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

_TAG = re.compile(r"<[^<>]+>")
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')


def figure_of(name: str, alt: str, draw: Callable[[Any], None], height: float = 3.6) -> str:
    """A figure element.

    Args:
        name: of the figure in its page, a plain word.
        alt: what it shows, in words.
        draw: draws into the matplotlib Axes that it is given.
        height: in inches; the width is 5.4.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    return f"<figure>{_svg(name, alt, draw, height)}</figure>"


def _svg(name: str, alt: str, draw: Callable[[Any], None], height: float) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the figures of a report need matplotlib: pip install 'flowdata[plot]'"
        ) from error

    page = io.StringIO()
    # Text as text can be found and copied; with a salt the same table gives the same page.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # matplotlib 3.11 warns of scripts that its own font has not, but the browser's have.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph", category=UserWarning)
        figure = Figure(figsize=(5.4, height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(page, format="svg", metadata={"Date": None})
    text = page.getvalue()
    # HTML has no place for the XML declaration before it, nor need for what is said of the file.
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Names that are those of one figure in the page.
    own = _TAG.sub(lambda tag: _REFERENCE.sub(rf"\g<1>{name}-", tag[0]), text)
    return own.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)
