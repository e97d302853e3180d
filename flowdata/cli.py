"""The command line: ``flowdata`` and its commands."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowdata.array_commands import add_merge
from flowdata.errors import FlowDataError
from flowdata.file_commands import add_attach, add_export, add_replay
from flowdata.language_commands import add_lengths, add_score
from flowdata.shell import (
    Commands,
    Speech,
    add_data,
    add_temperature,
    describe,
    one_line,
    open_data,
    path_of,
    positive,
    require_place,
    seconds,
    speaking,
    table_of,
    until_the_reader_leaves,
)
from flowdata.table.loss_table import LossTable
from flowdata.version import __version__

if TYPE_CHECKING:
    from flowdata.report.contents import Contents

# What data, files, models and devices can do; anything else is a fault of this package.
_EXPECTED = (
    *(FlowDataError, OSError, ImportError, TypeError, ValueError),
    *(RuntimeError, MemoryError),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 1 for an error of the data, 2 for wrong usage, 130 when interrupted,
        141 when what reads the output has left.
    """
    options = _parser().parse_args(arguments)
    return until_the_reader_leaves(partial(_run, options))


def _run(options: argparse.Namespace) -> int:
    speech = Speech.of(options.parser)
    try:
        with speaking(speech):
            options.run(options)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        goes_on = "; the same command goes on" if "goes_on" in options else ""
        print(f"\nflowdata: stopped{goes_on}", file=sys.stderr)
        return 130
    except _EXPECTED as error:
        print(f"flowdata: {speech(describe(error))}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowdata",
        description="Fine-tune without forgetting: score each sample once with the pre-trained "
        "model, then draw it in proportion to exp(-loss / temperature).",
    )
    parser.add_argument("--version", action="version", version=f"flowdata {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_demo(commands)
    add_score(commands)
    add_merge(commands)
    add_lengths(commands)
    add_attach(commands)
    add_export(commands)
    add_replay(commands)
    _add_inspect(commands)
    _add_index(commands)
    return parser


def _add_demo(commands: Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="fine-tune on real digits with and without FLOW, about a minute on two cores",
        description="A small network that reads upright digits is fine-tuned to read turned ones, "
        "from data of which half is harmful: wrong labels and pieces of photographs. One plain "
        "training function is called with different DataLoaders: shuffle=True, FlowSampler, "
        "FlowSampler with distinct samples, and two controls that show what a smaller learning "
        "rate or fewer steps would do. Prints what each kept and learned, and draws a picture.",
    )
    demo.add_argument(
        "--new-head",
        action="store_true",
        help="another task, with a new head: a network that reads the digits 0 to 4 learns 5 to 9; "
        "the new head is scored out of fold, and, to see what that is good for, on its own rows",
    )
    demo.add_argument(
        "--seeds",
        type=positive,
        default=5,
        help="number of repetitions, each with its own data split, network and order (default 5)",
    )
    demo.add_argument(
        "--output",
        type=path_of,
        default=Path("flowdata-demo"),
        help="directory for the loss tables and the picture (default ./flowdata-demo)",
    )
    demo.set_defaults(run=_run_demo, parser=demo)


def _run_demo(options: argparse.Namespace) -> None:
    from flowdata import demo, demo_new_head

    chosen = demo_new_head if options.new_head else demo
    if options.output.is_file():
        raise NotADirectoryError(f"{options.output} is a file: give a folder")
    print(chosen.report(chosen.run(seeds=options.seeds, output=options.output)))
    print(f"\nThe picture and the loss tables are in {options.output}.")


def _add_inspect(commands: Commands) -> None:
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


def _add_index(commands: Commands) -> None:
    index = commands.add_parser(
        "index",
        help="where the samples of tar shards lie, without scoring them",
        description="Walk through the headers of WebDataset shards and write the shard, key, "
        "offset and size of each sample to a Parquet file. A loss table that was scored over "
        "ShardRows holds the same; this is for losses from elsewhere: "
        "LossTable.from_losses(losses, index=ShardIndex.load(file)).",
    )
    index.add_argument("urls", nargs="+", help="shards: paths or URLs, also with {000..009}")
    index.add_argument("--output", type=path_of, required=True, help="the index, a .parquet file")
    index.add_argument(
        "--allow-pipe", action="store_true", help="run the shell commands of pipe: URLs"
    )
    index.add_argument(
        "--timeout", type=seconds, default=30.0, help="seconds a server may be silent (default 30)"
    )
    index.set_defaults(run=_run_index, parser=index)


def _run_index(options: argparse.Namespace) -> None:
    from flowdata.tar.indexing import index_shards
    from flowdata.transport.access import Access

    access = Access(allow_pipe=options.allow_pipe, timeout=options.timeout)
    require_place(options.output)
    index = index_shards(options.urls, access=access)
    index.save(options.output)
    print(
        f"{len(index):,} samples in {len(index.shards):,} shards, "
        f"{index.sizes.sum() / 1e6:,.1f} MB; {options.output} is written"
    )
