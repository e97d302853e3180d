"""Samples as people look at them: a card for each, its text escaped and cut to a readable size."""

import base64
import html
from collections.abc import Sequence

from flowdata.report.samples import Sample, Samples
from flowdata.report.texts import Field, fields_of

_AT_ONCE, _MOST, _MOST_OF_MANY = 500, 4_000, 1_000
"""Characters of a text that are shown at once, and at all; fewer where a sample has many."""
_LINES_AT_ONCE = 12
_MANY = 6
_MOST_FIELDS = 64
_MOST_OTHERS, _MOST_OF_OTHER = 8, 120
_LARGEST_IMAGE = 100_000


def sample_card(sample: Sample, samples: Samples, most_expected: float) -> str:
    """A row with its figures and its text.

    Args:
        sample: the row.
        samples: the data, some of whose columns are the text.
        most_expected: the expected draws of the likeliest row.
    """
    content = sample.content or {}
    fields = fields_of(content, samples.columns)
    others = fields_of(content, samples.others[:_MOST_OTHERS])
    facts = [
        f"<b>row {sample.row:,}</b>",
        "" if sample.name is None else f"<span>{escaped(sample.name, _MOST_OF_OTHER)}</span>",
        f"<span>loss {sample.loss:.4g}</span>",
        f"<span>{draws_of(sample)} expected draws</span>",
        _alike(sample, samples),
    ]
    width = 100.0 * sample.expected_draws / most_expected
    return (
        f'<article class="sample"><header>{"".join(facts)}</header>'
        f'<div class="meter" aria-hidden="true"><i style="width:{width:.1f}%"></i></div>'
        f"<dl>{_fields(fields)}</dl>{_others(others, len(samples.others))}</article>"
    )


def draws_of(sample: Sample) -> str:
    """The expected draws of a row, for people."""
    drawn = sample.expected_draws
    return f"{drawn:.3g}" if drawn >= 0.001 or drawn == 0.0 else "under 0.001"


def _alike(sample: Sample, samples: Samples) -> str:
    if not sample.rows_alike or sample.rows_alike == 1:
        return ""
    least = "" if samples.all_read else "at least "
    return f"<span>{least}{sample.rows_alike:,} rows have this text</span>"


def _fields(fields: Sequence[Field]) -> str:
    most = _MOST if len(fields) <= _MANY else _MOST_OF_MANY
    shown = [
        f'<dt>{escaped(field.name, _MOST_OF_OTHER)}</dt><dd dir="auto">{_value(field, most)}</dd>'
        for field in fields[:_MOST_FIELDS]
    ]
    if len(fields) > _MOST_FIELDS:
        shown.append(f"<dt>…</dt><dd>{len(fields) - _MOST_FIELDS:,} more</dd>")
    return "".join(shown)


def _value(field: Field, most: int) -> str:
    if field.image is not None and len(field.image[1]) <= _LARGEST_IMAGE:
        kind, data = field.image
        alt = html.escape(f"{field.name}: {field.text}")
        code = base64.b64encode(data).decode("ascii")
        return f'<img alt="{alt}" src="data:{kind};base64,{code}">'
    text = field.text
    if not text:
        return "<i>(empty)</i>"
    at_once = min(_AT_ONCE, len("\n".join(text.split("\n", _LINES_AT_ONCE)[:_LINES_AT_ONCE])))
    if len(text) <= 1.2 * at_once:
        return html.escape(text)
    rest = text[at_once:most]
    said = f"{len(text) - at_once:,} more characters"
    if len(text) > most:
        said += f", {len(rest):,} of them shown"
        rest += "…"
    return (
        f"{html.escape(text[:at_once])}<details><summary>{said}</summary>"
        f"{html.escape(rest)}</details>"
    )


def _others(fields: Sequence[Field], count: int) -> str:
    if not fields:
        return ""
    said = [
        f"{escaped(field.name, _MOST_OF_OTHER)}: "
        f"<bdi>{escaped(' '.join(field.text.split()), _MOST_OF_OTHER)}</bdi>"
        for field in fields[:_MOST_OTHERS]
    ]
    if count > _MOST_OTHERS:
        said.append(f"{count - _MOST_OTHERS:,} more columns")
    return f'<p class="also">{"; ".join(said)}</p>'


def escaped(text: str, most: int) -> str:
    """A text for HTML, shortened."""
    return html.escape(text if len(text) <= most else f"{text[: most - 1]}…")
