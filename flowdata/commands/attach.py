"""``flowdata attach``: weights as a field of the rows of a file."""

import argparse

from flowdata.commands.options import Commands, path_of
from flowdata.commands.weight_options import (
    DATA_FILE,
    add_file_weight_options,
    groups_in,
    print_groups,
    weights_of_options,
)
from flowdata.table.loss_table import LossTable


def add_attach(commands: Commands) -> None:
    """The command ``attach``."""
    attach = commands.add_parser(
        "attach",
        help="weights as a further field of each row of a JSONL or Parquet file",
        description="Write data files again, each row with its weight in a further field, for "
        "trainers that read files. Lines of JSONL keep all their other bytes. Rows are in the "
        "order of the loss table, or found by a key.",
    )
    attach.add_argument(
        "files",
        type=path_of,
        nargs="+",
        metavar="data ... table",
        help=f"{DATA_FILE}, or several in a row; and the loss table of their rows",
    )
    attach.add_argument(
        "-o",
        "--output",
        type=path_of,
        required=True,
        help="the file to write; or a folder, in which each file has the name that it had",
    )
    attach.add_argument("--field", default="weight", help="name of the field (default weight)")
    add_file_weight_options(attach)
    attach.add_argument(
        "--normalize",
        choices=("mean", "max", "sum"),
        help="divide the weights by this (default: leave them as they are, exp(-loss / tau))",
    )
    attach.add_argument(
        "--overwrite", action="store_true", help="replace the field, if it is there"
    )
    attach.set_defaults(run=_run_attach, parser=attach)


def _run_attach(options: argparse.Namespace) -> None:
    from flowdata.data_files import attach_file

    *data, place = options.files
    if not data:
        options.parser.error("data and table are needed")
    table = LossTable.load(place)
    weights = weights_of_options(
        table,
        options,
        groups_in(data, table, options),
        on_invalid=options.on_invalid,
        normalize=options.normalize,
    )
    rows = attach_file(
        data,
        place,
        options.output,
        field=options.field,
        key=options.key,
        weights=weights,
        overwrite=options.overwrite,
        unchecked=options.unchecked,
    )
    place = "has them" if options.output.is_dir() else "is written"
    print(f"{rows:,} rows have a field {options.field!r}; {options.output} {place}")
    print_groups(weights)
