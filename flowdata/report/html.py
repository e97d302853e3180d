"""A loss table as one HTML file that needs no network and opens anywhere."""

import html
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from flowdata.core.group_summary import GroupSummary, groups_table
from flowdata.core.groups import Groups
from flowdata.core.weight_summary import summary_of
from flowdata.core.weights import FlowWeights
from flowdata.report.plots import plot_comparison, plot_expected_counts, plot_weights
from flowdata.report.summary import Comparison, epoch_summaries, extremes
from flowdata.table.loss_table import LossTable

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5d6878; --line: #dfe4ea; --card: #f6f8fa; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1060px;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { color: var(--soft); margin: .2rem 0 .8rem; max-width: 75ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7rem; }
.cards div { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.3rem; font-weight: 600; }
.cards span { color: var(--soft); font-size: .85rem; }
.note { background: #fff4d6; border-radius: 8px; padding: .7rem .9rem; margin: 1rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 1rem; }
.figures svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .85rem; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .7rem .4rem 0; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; }
td.text div { max-height: 9.5em; overflow: auto; }
"""


def html_report(
    losses: LossTable,
    weights: FlowWeights,
    *,
    texts: Callable[[int], str] | None = None,
    other: tuple[LossTable, Comparison] | None = None,
    groups: Groups | None = None,
    number: int = 10,
) -> str:
    """The whole page.

    Args:
        losses: the table.
        weights: its weights.
        texts: gives the text of a row, where the data is at hand.
        other: a second table and how it compares.
        groups: of the rows, whose figures are shown; default: those of the weights.
        number: easiest and hardest rows that are shown.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    known = losses.provenance
    title = f"{_base_name(known.model) or 'Losses'}: {len(losses):,} samples"
    summary = summary_of(weights, groups)
    tau = summary.temperature
    cards = {
        "samples": f"{summary.rows:,}",
        "temperature": html.escape(summary.how) if tau is None else f"{tau:.4g}",
        "effective sample size": f"{summary.ess_fraction:.1%}",
        "mean weight": f"{summary.mean:.3g}",
        "largest expected count": f"{summary.largest_expected_count:.3g}",
        "rarely drawn": f"{summary.rarely_drawn:.1%}",
    }
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_origin(losses))}</p>",
        '<div class="cards">',
        *(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in cards.items()),
        "</div>",
        *(f'<div class="note">{html.escape(note)}</div>' for note in summary.notes),
        *_figures(weights, groups),
        *_groups(summary.groups),
        *_epochs(weights),
        *_extremes(losses, weights, texts, number),
        *([] if other is None else _comparison(losses, *other)),
        *_provenance(losses),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _base_name(model: str | None) -> str:
    """The last part of a model's name or path."""
    return (model or "").rstrip("/").rpartition("/")[2]


def _origin(losses: LossTable) -> str:
    known = losses.provenance
    tokens = losses.n_tokens
    parts = [
        f"loss {known.loss}" if known.loss else "",
        f"{tokens.sum(dtype=np.int64):,} response tokens" if tokens is not None else "",
        f"{known.truncated:,} samples cut to max_length" if known.truncated else "",
        f"scored {known.created}" if known.created else "",
    ]
    return ", ".join(part for part in parts if part)


def _figures(weights: FlowWeights, groups: Groups | None) -> list[str]:
    of_temperature = "; the temperature is where it has fallen to 37 %"
    return [
        "<h2>Losses and weights</h2>",
        "<p>A sample is drawn in proportion to its weight, which falls with its loss"
        f"{of_temperature}.</p>"
        if weights.temperature is not None
        else "<p>A sample is drawn in proportion to its weight.</p>",
        '<div class="figures">',
        _draw_svg(lambda axes: plot_weights(weights, axes, groups)),
        _draw_svg(lambda axes: plot_expected_counts(axes, weights)),
        "</div>",
    ]


def _groups(groups: Sequence[GroupSummary]) -> list[str]:
    if not groups:
        return []
    head, *rows = groups_table(groups)
    return ["<h2>Groups</h2>", _table(head, rows)]


def _epochs(weights: FlowWeights) -> list[str]:
    rows = [
        [epoch.name, f"{epoch.draws:,}", f"{epoch.distinct:,.0f}", f"{epoch.most_repeats:.2f}"]
        for epoch in epoch_summaries(weights)
    ]
    return [
        "<h2>What an epoch shows</h2>",
        _table(["epoch_size", "draws", "distinct rows", "most repeats of a row"], rows),
    ]


def _extremes(
    losses: LossTable, weights: FlowWeights, texts: Callable[[int], str] | None, number: int
) -> list[str]:
    expected = weights.expected_counts()
    head = ["row", "loss", "draws an epoch"] + (["sample"] if texts else [])
    parts = []
    for title, rows in zip(
        ("Easiest samples", "Hardest samples"), extremes(losses.losses, number), strict=True
    ):
        lines = [
            [f"{row}", f"{losses.losses[row]:.4g}", f"{expected[row]:.3g}"]
            + ([texts(row)] if texts else [])
            for row in rows
        ]
        parts += [f"<h2>{title}</h2>", _table(head, lines, text_column=3)]
    return parts


def _comparison(losses: LossTable, other: LossTable, comparison: Comparison) -> list[str]:
    rows = [
        ["rank correlation of the losses", f"{comparison.correlation:.3f}"],
        ["draws in common", f"{comparison.shared_draws:.1%}"],
        ["hardest tenth in common", f"{comparison.hardest_shared:.1%}"],
    ]
    name = _base_name(other.provenance.model) or "the other table"
    return [
        f"<h2>Compared with {html.escape(name)}</h2>",
        '<div class="figures">',
        _draw_svg(lambda axes: plot_comparison(axes, losses.losses, other.losses)),
        _table(["", f"{comparison.rows:,} rows"], rows),
        "</div>",
    ]


def _provenance(losses: LossTable) -> list[str]:
    rows = [
        [name, str(value)] for name, value in asdict(losses.provenance).items() if value is not None
    ]
    return ["<h2>Provenance</h2>", _table(["", ""], rows, text_column=1)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text_column: int = -1) -> str:
    def cell(tag: str, column: int, content: str) -> str:
        content = html.escape(content)
        if tag == "td" and column == text_column:
            return f'<td class="text"><div>{content}</div></td>'
        kind = ' class="number"' if column > 0 and column != text_column else ""
        return f"<{tag}{kind}>{content}</{tag}>"

    lines = [("th", head), *(("td", row) for row in rows)]
    return (
        "<table>"
        + "".join(
            "<tr>" + "".join(cell(tag, *pair) for pair in enumerate(cells)) + "</tr>"
            for tag, cells in lines
        )
        + "</table>"
    )


def _draw_svg(draw: Callable[[Any], None]) -> str:
    """A figure as SVG inside the page, its text as text."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the figures of a report need matplotlib: pip install 'flowdata[plot]'"
        ) from error

    # Text as text can be found and copied, and without a date the same table gives the same page.
    page = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(6.2, 4.0), layout="constrained")
        draw(figure.subplots())
        figure.savefig(page, format="svg", metadata={"Date": None})
    text = page.getvalue()
    # HTML has no place for the XML declaration before it.
    return text[text.index("<svg") :]
