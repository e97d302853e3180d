"""The command line: ``flowdata demo``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import flowdata
from flowdata.errors import FlowDataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit status 0, 1 for an error of the data, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (FlowDataError, OSError, ModuleNotFoundError) as error:
        print(f"flowdata: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowdata",
        description="Fine-tune without forgetting: score each sample once with the pre-trained "
        "model, then draw it in proportion to exp(-loss / temperature).",
    )
    parser.add_argument("--version", action="version", version=f"flowdata {flowdata.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_demo(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
        "--seeds",
        type=_positive,
        default=5,
        help="number of repetitions, each with its own data split, network and order (default 5)",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("flowdata-demo"),
        help="directory for the loss tables and the picture (default ./flowdata-demo)",
    )
    demo.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> None:
    from flowdata.demo import report, run

    print(report(run(seeds=options.seeds, output=options.output)))
    print(f"\nThe picture and the loss tables are in {options.output}.")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, got {number}")
    return number
