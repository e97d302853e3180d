"""``flowdata inspect``: what a loss table means for training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowdata.commands.options import (
    Commands,
    add_data,
    add_temperature,
    open_data,
    path_of,
    positive,
    require_place,
    table_of,
)
from flowdata.commands.speech import one_line
from flowdata.table.loss_table import LossTable

if TYPE_CHECKING:
    from flowdata.report.contents import Contents


def add_inspect(commands: Commands) -> None:
    """The command ``inspect``."""
    inspect = commands.add_parser(
        "inspect",
        help="look at a loss table: temperature, effective sample size, easy and hard samples",
        description="Print what a loss table means for training. --html writes a page with "
        "figures that needs no network; --data shows the text of the easiest and hardest samples, "
        "and of those on both sides of the temperature, --by what each group of them gets.",
    )
    inspect.add_argument("table", type=table_of, help="a loss table, .parquet, also as a URL")
    add_temperature(inspect)
    inspect.add_argument("--html", type=path_of, help="write a report page to this file")
    inspect.add_argument("--compare", type=path_of, help="a second table of the same data set")
    add_data(inspect, required=False)
    inspect.add_argument(
        "--by", metavar="COLUMN", help="a column of the data: what rows of each value of it get"
    )
    inspect.add_argument("--json", action="store_true", help="print JSON, without texts")
    inspect.add_argument("--samples", type=positive, default=10, help="easiest and hardest shown")
    inspect.set_defaults(run=_run_inspect, parser=inspect)


def _run_inspect(options: argparse.Namespace) -> None:
    from flowdata.report.as_json import json_report
    from flowdata.report.contents import contents_of
    from flowdata.report.samples import Samples
    from flowdata.report.summary import (
        compare,
        comparison_text,
        figures_of,
        groups_of,
        lengths_text,
        summary_text,
        weights_of,
    )

    if options.html is not None:
        require_place(options.html)
    if options.by is not None and not options.data:
        raise ValueError(f"--by {options.by} is a column of the data: give --data too")
    losses = LossTable.load(options.table)
    if not losses.has_losses:
        if options.html or options.compare or options.data or options.json:
            raise ValueError(
                f"{options.table} has lengths and no losses: leave --html, --compare, --data and "
                "--json out"
            )
        print(lengths_text(losses))
        return
    weights = weights_of(losses, options.temperature)
    data = _data(losses, options) if options.data else None
    second = None if options.compare is None else LossTable.load(options.compare)
    groups = None if options.by is None else groups_of(data, options.by)
    other = None if second is None else (second, compare(losses, second, options.temperature))
    figures = figures_of(losses, weights, groups)
    if not options.json:
        print(summary_text(losses, figures))
        if other is not None:
            print(f"\ncompared with {options.compare}\n{comparison_text(other[1])}")
    if data is None and not options.json and options.html is None:
        return
    contents = contents_of(
        losses,
        weights,
        samples=None if data is None else Samples(data, losses.provenance),
        groups=groups,
        figures=figures,
        other=other,
        number=options.samples,
    )
    if options.json:
        print(json_report(contents))
    elif contents.samples is not None:
        print(f"\n{_shown_samples(contents)}")
    if options.html is not None:
        _write_page(contents, options.html, said=not options.json)


def _write_page(contents: "Contents", path: Path, *, said: bool) -> None:
    from flowdata.files import replacing
    from flowdata.report.html import html_report

    page = html_report(contents)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    if said:
        print(f"\n{path} is written; open it in a browser")


def _data(losses: LossTable, options: argparse.Namespace) -> Any:
    from flowdata.report.data_of_tables import rows_of_table

    return rows_of_table(losses, open_data(options))


def _shown_samples(contents: "Contents") -> str:
    from flowdata.report.texts import as_text, visible

    lines = []
    for section in contents.sections:
        lines.append(section.title[0].lower() + section.title[1:])
        for sample in section.samples:
            alike = f" ({sample.rows_alike:,} rows)" if (sample.rows_alike or 1) > 1 else ""
            text = visible(one_line(as_text(sample.content or {})))
            lines.append(f"  row {sample.row}{alike}, loss {sample.loss:.4g}: {text}")
    return "\n".join(lines)
