"""Options of commands that draw rows: what stands next to what."""

import argparse
from collections.abc import Callable

from flowdata.commands.options import positive
from flowdata.core.arrangement import Arrangement
from flowdata.core.by_length import ByLength
from flowdata.core.groups import Groups
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights
from flowdata.table.loss_table import LossTable


def add_arrange_options(command: argparse.ArgumentParser, otherwise: str) -> None:
    """Options that `arrangements_of_options` reads.

    Args:
        command: the parser.
        otherwise: what the size of a batch is where it is not given.
    """
    arrange = command.add_argument_group("arrangement of the draws, as the run had it")
    arrange.add_argument(
        "--strata",
        nargs="?",
        const="",
        metavar="COLUMN",
        help="each batch gets its share of each group of this field; without a name, of the groups "
        "of the weights",
    )
    arrange.add_argument("--levels", type=positive, help="of weights in each group (default 5)")
    arrange.add_argument(
        "--by-length",
        action="store_true",
        help="batches of rows of similar length, by the lengths of the table",
    )
    arrange.add_argument("--window", type=positive, help="batches sorted at a time (default 50)")
    arrange.add_argument(
        "--arranged-batch",
        type=positive,
        metavar="DRAWS",
        help=f"batch of these, of all ranks together ({otherwise})",
    )


def arrangements_of_options(
    options: argparse.Namespace,
    weights: FlowWeights,
    table: LossTable,
    groups_of: Callable[[str], Groups],
    batch_size: int | None = None,
) -> list[Arrangement]:
    """What the options ask for: nothing, or one arrangement under each number of groups.

    The draws of all are the same; saved states have a hash of the numbers, which are those of the
    data, or count the names in order.

    Args:
        options: of `add_arrange_options`.
        weights: the run's.
        table: with the lengths of rows.
        groups_of: what reads the groups of a field.
        batch_size: of all ranks, where the options have none.
    """
    sizes = {"--levels": options.levels, "--window": options.window}
    wrong = "--window" if options.strata is not None else "--levels"
    if options.strata is not None and options.by_length:
        options.parser.error("--strata and --by-length are two arrangements: give one")
    if options.strata is None and not options.by_length:
        given = sizes | {"--arranged-batch": options.arranged_batch}
        for flag, value in given.items():
            if value is not None:
                options.parser.error(f"{flag} is of --strata or --by-length: give one of them too")
        return []
    if sizes[wrong] is not None:
        other = "--by-length" if wrong == "--window" else "--strata"
        options.parser.error(f"{wrong} is of {other}: leave it out")
    batch_size = options.arranged_batch or batch_size
    if batch_size is None:
        options.parser.error("--strata and --by-length need --arranged-batch")
    assert batch_size is not None
    if options.by_length:
        return [ByLength(table, batch_size, options.window or ByLength.window)]
    groups = _groups(options, weights, groups_of)
    levels = options.levels or Strata.levels
    found = [Strata(groups.codes, batch_size, levels)]
    if all(isinstance(name, int) for name in groups.names):
        numbers = [int(name) for name in groups.names]
        found.insert(0, Strata([numbers[code] for code in groups.codes], batch_size, levels))
    return [*found]


def _groups(
    options: argparse.Namespace, weights: FlowWeights, groups_of: Callable[[str], Groups]
) -> Groups:
    if options.strata:
        return groups_of(options.strata)
    if weights.made.groups is None:
        raise ValueError("the weights have no groups: --strata needs the name of a field")
    return weights.made.groups
