"""``flowdata merge``: one loss table of what jobs of an array have scored."""

import argparse

from flowdata.commands.options import Commands, new_table_of, require_place, table_of
from flowdata.commands.speech import print_summary
from flowdata.table.checks import require_same_pass
from flowdata.table.loss_table import LossTable


def add_merge(commands: Commands) -> None:
    """The command ``merge``."""
    merge = commands.add_parser(
        "merge",
        help="the loss table of what jobs of an array, or a pass that was stopped, have scored",
        description="Put together what flowdata score has left in folders TABLE.parts, by jobs of "
        "an array or on several machines, to one loss table. Needs neither the model nor the data, "
        "says which rows and jobs are missing, and refuses parts of different passes. Deletes "
        "nothing.",
    )
    merge.add_argument(
        "parts",
        nargs="+",
        type=table_of,
        help="folders TABLE.parts, or folders that have some; paths or URLs",
    )
    merge.add_argument(
        *("-o", "--output"),
        type=new_table_of,
        required=True,
        help="the table, a .parquet file or a URL",
    )
    merge.set_defaults(run=_run_merge, parser=merge)


def _run_merge(options: argparse.Namespace) -> None:
    output = options.output
    require_place(output)
    table = LossTable.merge(options.parts)
    if output.is_file():
        require_same_pass(
            table.provenance.identity(),
            LossTable.load(output).provenance.identity(),
            what=f"the table {output}",
            advice="Choose another --output, or delete it",
        )
    table.save(output)
    print_summary(table, output)
