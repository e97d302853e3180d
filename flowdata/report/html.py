"""A loss table as one HTML file that needs no network and opens anywhere."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from flowdata.core.group_summary import (
    is_starved,
    notes_on_groups,
    shown_groups,
    without_empty_columns,
)
from flowdata.report.contents import Contents, options_of, proxy_of
from flowdata.report.elements import cards_of, note_of, safe, table_of
from flowdata.report.figures import figure_of
from flowdata.report.left_out import NamedRow
from flowdata.report.page_style import STYLE
from flowdata.report.plots import (
    plot_comparison,
    plot_expected_counts,
    plot_groups,
    plot_lengths,
    plot_weights,
)
from flowdata.report.sample_cards import draws_of, sample_card
from flowdata.report.samples import Section
from flowdata.report.texts import visible
from flowdata.table.provenance import Provenance

_SHOWN = 200
_PARTS = 20
# A page that a browser lets load nothing, and run nothing, whatever a text in it says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html_report(contents: Contents) -> str:
    """The whole page.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    title = f"{_model_name(contents.losses.provenance)}: {contents.summary.rows:,} samples"
    parts = {
        "Losses and weights": _figures(contents),
        "Groups": _groups(contents),
        "Samples": _samples(contents),
        "Lengths": _lengths(contents),
        "Cut and dropped": _left_out(contents),
        "What an epoch shows": _epochs(contents),
        "Comparison": _comparison(contents),
        "Provenance": _provenance(contents),
    }
    shown = {name: "\n".join(part) for name, part in parts.items() if part}
    places = {name: name.lower().replace(" ", "-") for name in shown}
    body = [
        "<header>",
        f"<h1>{safe(title)}</h1>",
        f"<p>{safe(_origin(contents))}</p>",
        *_notes(contents),
        cards_of(_figures_of_weights(contents)),
        '<nav aria-label="Contents">',
        *(f'<a href="#{places[name]}">{name}</a>' for name in shown),
        "</nav>",
        "</header>",
        "<main>",
        *(
            f'<section aria-labelledby="{places[name]}"><h2 id="{places[name]}">{name}</h2>\n'
            f"{part}\n</section>"
            for name, part in shown.items()
        ),
        "</main>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _model_name(known: Provenance) -> str:
    """The last part of a model's name or path; of a proxy that of both."""
    names = [
        name.rstrip("/").rpartition("/")[2] for name in proxy_of(known) or (known.model or "",)
    ]
    return " in place of ".join(names) or "Losses"


def _origin(contents: Contents) -> str:
    losses = contents.losses
    known, tokens = losses.provenance, losses.n_tokens
    said = [
        f"loss {known.loss}" if known.loss else "",
        f"{tokens.sum(dtype='int64'):,} scored tokens" if tokens is not None else "",
        f"{known.truncated:,} samples cut to max_length" if known.truncated else "",
        f"{len(contents.parts):,} parts" if len(contents.parts) > 1 else "",
        f"scored {known.created}" if known.created else "",
        "" if contents.samples is not None else "without data: rows are named by number or key",
    ]
    return ", ".join(part for part in said if part)


def _notes(contents: Contents) -> Iterator[str]:
    if contents.proxy is not None:
        small, large = contents.proxy
        yield note_of(
            f"These are losses of a small model, {small}, in place of {large}: how far weights by "
            "the one are from weights by the other is what flowdata score --proxy said."
        )
    if any(part.rows < part.of for part in contents.parts):
        rows = [f"{part.rows:,} of {part.of:,} rows" for part in contents.parts[:3]]
        more = ", …" if len(contents.parts) > 3 else ""
        yield note_of(f"This table is a selection: {', '.join(rows)}{more}.")
    yield from map(note_of, contents.summary.notes)


def _figures_of_weights(contents: Contents) -> dict[str, str]:
    summary = contents.summary
    tau = summary.temperature
    return {
        "samples": f"{summary.rows:,}",
        "temperature τ": summary.how if tau is None else f"{tau:.4g}",
        "effective sample size, of all rows": f"{summary.ess_fraction:.1%}",
        "mean weight": f"{summary.mean:.3g}",
        "expected draws of the likeliest row in an epoch": f"{summary.largest_expected_count:.3g}",
        "of rows are expected less than once in 100 epochs": f"{summary.rarely_drawn:.1%}",
    }


def _figures(contents: Contents) -> list[str]:
    weights, summary, quantiles = contents.weights, contents.summary, contents.quantiles
    tau = weights.temperature
    at = "" if tau is None else f" The temperature is {tau:.4g}."
    spread = ", ".join(f"{place:.0%} {value:.4g}" for place, value in quantiles.items())
    how = "which falls with its loss; at τ it is 37% of the largest there could be"
    return [
        f"<p>A sample is drawn in proportion to its weight{'' if tau is None else f', {how}'}. "
        "What draws are said to be here are expectations, not counts of a run.</p>",
        '<div class="figures">',
        figure_of(
            "losses",
            f"Histogram of the losses, and the weight of each. Quantiles: {spread}.{at}",
            lambda axes: plot_weights(weights, axes, contents.groups),
        ),
        figure_of(
            "draws",
            "Expected draws of each row in an epoch, from the likeliest row, "
            f"{summary.largest_expected_count:.3g}, to the rest; {summary.rarely_drawn:.1%} of the "
            "rows are expected less than once in 100 epochs.",
            lambda axes: plot_expected_counts(axes, weights),
        ),
        "</div>",
        table_of(
            ["quantile of the loss", *(f"{place:.0%}" for place in quantiles)],
            [["loss", *(f"{value:.4g}" for value in quantiles.values())]],
        ),
    ]


def _groups(contents: Contents) -> list[str]:
    groups = contents.summary.groups
    if not groups:
        return []
    shown = shown_groups(groups)
    # Not where somebody asked for the shares that they have.
    noted = set(notes_on_groups(groups)) <= set(contents.summary.notes)
    starved = [group for group in shown if noted and is_starved(group)]
    head = [
        *("group", "rows", "share of rows", "median loss", "expected share of draws"),
        *("expected share of tokens drawn", "effective sample size"),
    ]
    rows = [
        [
            visible(str(group.name)) + (" (starved)" if group in starved else ""),
            f"{group.rows:,}",
            f"{group.share_of_rows:.1%}",
            "" if group.median_loss is None else f"{group.median_loss:.4g}",
            f"{group.share_of_draws:.1%}",
            "" if group.share_of_tokens is None else f"{group.share_of_tokens:.1%}",
            f"{group.ess:,.1f}",
        ]
        for group in shown
    ]
    head, *rows = without_empty_columns(head, rows)
    said = [
        f"{group.name}: {group.share_of_rows:.1%} of the rows, {group.share_of_draws:.1%} of draws"
        for group in shown[:12]
    ]
    more = len(groups) - len(shown)
    return [
        figure_of(
            "groups",
            visible(f"Share of each group. {'; '.join(said)}"),
            lambda axes: plot_groups(axes, groups),
            height=1.1 + 0.45 * min(len(groups), 12),
        ),
        table_of(head, rows),
        *([f"<p>{more:,} more groups, each of fewer rows, are not shown.</p>"] if more else []),
        *(
            ["<p>Starved: drawn less than half as often as rows are on average.</p>"]
            if starved
            else []
        ),
    ]


def _samples(contents: Contents) -> list[str]:
    found = []
    samples = contents.samples
    if samples is None:
        found.append("<p>Give --data to see their texts.</p>")
    else:
        among = "all rows" if samples.all_read else "the rows that were read"
        found.append(
            f"<p>Each text once; rows that have it too are counted among {among}. The bar is the "
            "weight of a row, over the largest; expected draws are those in an epoch of as many "
            "draws as rows.</p>"
        )
    for section in contents.sections:
        found.append(f"<h3>{safe(section.title)}</h3>")
        found += _section(section, contents)
    return found


def _section(section: Section, contents: Contents) -> list[str]:
    samples = contents.samples
    if samples is not None:
        most = contents.summary.largest_expected_count
        return [sample_card(sample, samples, most) for sample in section.samples]
    named = any(sample.name is not None for sample in section.samples)
    head = ["row", *(["key"] if named else []), "loss", "expected draws in an epoch"]
    rows = [
        [
            f"{sample.row:,}",
            *([sample.name or ""] if named else []),
            f"{sample.loss:.4g}",
            draws_of(sample),
        ]
        for sample in section.samples
    ]
    return [table_of(head, rows, text_column=1 if named else None)]


def _lengths(contents: Contents) -> list[str]:
    lengths = contents.lengths
    if lengths is None:
        return []
    cards = {
        "median": f"{lengths.median:,}",
        "95% of rows have at most": f"{lengths.most:,}",
        f"longest, row {lengths.longest_row:,}": f"{lengths.longest:,}",
        "mean of all rows": f"{lengths.mean:,.1f}",
        "expected mean of a draw": f"{lengths.expected_mean_of_draws:,.1f}",
        "in all rows together": f"{lengths.tokens:,}",
        "expected in an epoch of as many draws as rows": f"{lengths.expected_tokens:,.0f}",
    }
    if lengths.empty:
        cards["rows without a token"] = f"{lengths.empty:,}"
    largest = max(lengths.bars, key=lambda bar: bar.expected_share_of_tokens)
    alt = (
        f"Histogram of {lengths.of}, by share of rows and by expected share of tokens drawn: "
        f"median {lengths.median:,}, longest {lengths.longest:,}; most tokens drawn, "
        f"{largest.expected_share_of_tokens:.1%}, come from rows of {largest.shortest:,} to "
        f"{largest.longest:,}."
    )
    return [
        f"<p>{safe(lengths.of).capitalize()}.</p>",
        figure_of("lengths", alt, lambda axes: plot_lengths(axes, lengths)),
        cards_of(cards),
    ]


def _left_out(contents: Contents) -> list[str]:
    left = contents.left_out
    most = "max_length" if left.max_length is None else f"max_length={left.max_length:,}"
    if left.cut is None:
        found = ["<p>How many rows were cut is not known of this table.</p>"]
    elif not left.cut:
        found = ["<p>No row was cut.</p>"]
    else:
        share = left.cut / contents.summary.rows
        found = [f"<p>{left.cut:,} rows ({share:.1%}) were longer than {most} and were cut.</p>"]
    if left.first_as_long and left.as_long is not None:
        which = "those that were cut" if left.as_long == left.cut else "the cut ones are among them"
        caption = f"{_count(left.as_long)} of just this length: {which}. The first:"
        found.append(_named(left.first_as_long, contents, caption))
    if not left.dropped:
        found.append("<p>All rows have a valid loss: none was dropped.</p>")
    else:
        found.append(f"<p>{_count(left.dropped)} without a valid loss, never drawn.</p>")
    for cause in left.causes:
        caption = f"{_count(cause.rows)}: {cause.why}. The first:"
        found.append(_named(cause.first, contents, caption))
    return found


def _count(rows: int) -> str:
    return f"{rows:,} row" if rows == 1 else f"{rows:,} rows"


def _named(named: Sequence[NamedRow], contents: Contents, caption: str) -> str:
    """Rows by all that is known of them."""
    samples, keys = contents.samples, any(each.name is not None for each in named)
    if samples is None and not keys:
        return f"<p>{caption} row {', '.join(f'{each.row:,}' for each in named)}.</p>"
    head = ["row", *(["key"] if keys else []), *([] if samples is None else ["text"])]
    rows = [[f"{each.row:,}", *([each.name or ""] if keys else [])] for each in named]
    for row, each in zip(rows, named, strict=True):
        if samples is not None:
            row.append(" ".join(samples.text(each.row)[: 5 * _SHOWN].split())[:_SHOWN])
    return table_of(head, rows, text_column=len(head) - 1, caption=caption)


def _epochs(contents: Contents) -> list[str]:
    rows = [epoch.cells() for epoch in contents.epochs]
    head = ["epoch_size", "draws", "expected distinct rows", "expected draws of the likeliest row"]
    return [table_of(head, rows)]


def _comparison(contents: Contents) -> list[str]:
    if contents.other is None:
        return []
    other, comparison = contents.other
    losses = contents.losses
    rows = [
        ["rank correlation of the losses", f"{comparison.correlation:.3f}"],
        ["expected draws in common", f"{comparison.shared_draws:.1%}"],
        ["hardest tenth in common", f"{comparison.hardest_shared:.1%}"],
    ]
    name = _model_name(other.provenance) if other.provenance.model else "the other table"
    return [
        f"<p>With {safe(name)}, {comparison.rows:,} rows that are valid in both.</p>",
        '<div class="figures">',
        figure_of(
            "compared",
            "Losses of each row in both tables, as a density; rank correlation "
            f"{comparison.correlation:.3f}.",
            lambda axes: plot_comparison(axes, losses.losses, other.losses),
        ),
        table_of(["what", "how much"], rows),
        "</div>",
    ]


def _provenance(contents: Contents) -> list[str]:
    known = contents.losses.provenance
    rows = [
        [name, str(value)]
        for name, value in asdict(known).items()
        if value is not None and name not in ("options", "parts")
    ]
    rows += [[f"option {name}", str(value)] for name, value in options_of(known).items()]
    found = [table_of(["of the table", "is"], rows, text_column=1)]
    if contents.parts:
        lines = [
            [f"{number}", f"{part.rows:,}", f"{part.of:,}", part.model or "", part.loss or ""]
            for number, part in enumerate(contents.parts[:_PARTS])
        ]
        more = len(contents.parts) - len(lines)
        caption = "Parts that the table is made of" + (f"; {more:,} more" if more else "")
        head = ["part", "rows here", "rows it had", "model", "loss"]
        found.append(table_of(head, lines, text_column=3, caption=caption))
    return found
