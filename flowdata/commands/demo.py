"""``flowdata demo``: digits with and without FLOW."""

import argparse
from pathlib import Path

from flowdata.commands.options import Commands, path_of, positive


def add_demo(commands: Commands) -> None:
    """The command ``demo``."""
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
    from flowdata.demo import new_head, turned_digits

    chosen = new_head if options.new_head else turned_digits
    if options.output.is_file():
        raise NotADirectoryError(f"{options.output} is a file: give a folder")
    print(chosen.report(chosen.run(seeds=options.seeds, output=options.output)))
    print(f"\nThe picture and the loss tables are in {options.output}.")
