"""Options of commands that weigh rows: how weights are made of a loss table."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowdata.commands.options import add_temperature, path_of
from flowdata.core.groups import Groups
from flowdata.core.weights import FlowWeights, Normalization
from flowdata.errors import MismatchError
from flowdata.table.loss_table import LossTable
from flowdata.table.saved_weights import load_weights

DATA_FILE = "a .jsonl (also .gz, .zst) or .parquet"
_NAMED = ("rows", "tokens", "equal", "flow")


def add_weight_options(command: argparse.ArgumentParser) -> None:
    """Options that `weights_of_options` reads."""
    weights = command.add_argument_group("weights, as the run made them")
    add_temperature(weights)
    weights.add_argument(
        "--weights",
        dest="weights_file",
        type=path_of,
        metavar="FILE",
        help="weights of any function, product or mix, in place of the other options: a file of "
        "flowdata.save_weights, or a .npy of one for each row of the table",
    )
    weights.add_argument(
        "--groups",
        metavar="COLUMN",
        help="a field of the data: each group of rows has a temperature of its own",
    )
    weights.add_argument(
        "--shares",
        type=_shares,
        metavar="WHAT",
        help="of the draws, for each group: rows (default), tokens, equal, flow, or numbers, "
        "NAME=0.5,NAME=0.5 or as JSON",
    )
    weights.add_argument(
        "--by", choices=("rows", "tokens"), default="rows", help="what shares are of (default rows)"
    )


def add_file_weight_options(command: argparse.ArgumentParser) -> None:
    """Options of commands that give the rows of files their weights."""
    command.add_argument(
        "--key",
        metavar="COLUMN",
        help="find rows by the table's keys, which this field has (default that of score --key)",
    )
    command.add_argument(
        "--unchecked",
        action="store_true",
        help="take rows in the table's order unseen: they were scored in another form",
    )
    add_weight_options(command)
    command.add_argument(
        "--on-invalid",
        choices=("raise", "drop"),
        default="raise",
        help="losses that are NaN, infinite or negative: stop, or weight 0",
    )


def weights_of_options(
    table: LossTable,
    options: argparse.Namespace,
    groups_of: Callable[[str], Groups],
    **more: Any,
) -> FlowWeights:
    """The weights that the options ask for.

    Args:
        table: of the losses.
        options: of `add_weight_options`.
        groups_of: what reads the groups of a field.
        more: further arguments of ``table.weights``.
    """
    if options.weights_file is not None:
        return _weights_in(options.weights_file, table, options, more.get("normalize"))
    if options.groups is None:
        if options.shares is not None or options.by != "rows":
            options.parser.error("--shares and --by are of groups: give --groups COLUMN too")
        return table.weights(options.temperature, **more)
    groups = groups_of(options.groups)
    shares = options.shares
    if isinstance(shares, dict):
        # A whole number is given as a text, and JSON has no other names.
        by_text = {str(name): name for name in groups.names}
        shares = {by_text.get(name, name): share for name, share in shares.items()}
    more |= {"groups": groups, "shares": shares, "by": options.by}
    return table.weights(options.temperature, **more)


def print_groups(weights: FlowWeights) -> None:
    """Say what each group gets, where there are some."""
    if weights.has_groups:
        print(weights.summary())


def _weights_in(
    path: Path, table: LossTable, options: argparse.Namespace, normalize: Normalization
) -> FlowWeights:
    others = ("temperature", "groups", "shares", "by", "on_invalid")
    for name in others:
        if getattr(options, name, None) != options.parser.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            options.parser.error(f"--weights are made already: leave {flag} out")
    if path.suffix.lower() == ".npy":
        try:
            found = FlowWeights.from_weights(np.load(path, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise MismatchError(f"{path} holds no weights, one for each row: {error}") from error
    else:
        found = load_weights(path, table)
    if len(found) != len(table):
        raise MismatchError(
            f"{path} has {len(found):,} weights, and the loss table {len(table):,} rows: give "
            "those of its rows"
        )
    return found if normalize is None else FlowWeights(found.made, normalize=normalize)


def groups_in(data: Any, table: LossTable, options: argparse.Namespace) -> Callable[[str], Groups]:
    """What reads the groups of the table's rows in a field of the data."""

    def read(field: str) -> Groups:
        from flowdata.data_files.groups import groups_of_files

        return groups_of_files(data, table, field, key=options.key, unchecked=options.unchecked)

    return read


def _shares(text: str) -> Any:
    if text in _NAMED:
        return text
    try:
        pairs = (part.rpartition("=") for part in text.split(","))
        found = json.loads(text) if text.startswith("{") else {n: float(s) for n, _, s in pairs}
        if all(name and type(share) in (int, float) for name, share in found.items()):
            return found
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"rows, tokens, equal, flow or NAME=NUMBER,... is needed, got {text}"
    )
