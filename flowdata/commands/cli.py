"""The command line: ``flowdata`` and its commands."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from flowdata.commands.attach import add_attach
from flowdata.commands.demo import add_demo
from flowdata.commands.export import add_export
from flowdata.commands.index import add_index
from flowdata.commands.inspect import add_inspect
from flowdata.commands.lengths import add_lengths
from flowdata.commands.merge import add_merge
from flowdata.commands.replay import add_replay
from flowdata.commands.score import add_score
from flowdata.commands.speech import Speech, describe, speaking, until_the_reader_leaves
from flowdata.errors import FlowDataError
from flowdata.version import __version__

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
    add_demo(commands)
    add_score(commands)
    add_merge(commands)
    add_lengths(commands)
    add_attach(commands)
    add_export(commands)
    add_replay(commands)
    add_inspect(commands)
    add_index(commands)
    return parser
