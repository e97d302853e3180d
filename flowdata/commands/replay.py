"""``flowdata replay``: which rows a step of training had."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowdata.commands.arrange_options import add_arrange_options, arrangements_of_options
from flowdata.commands.options import Commands, add_data, non_negative, open_data, path_of, positive
from flowdata.commands.speech import one_line
from flowdata.commands.weight_options import add_weight_options, weights_of_options
from flowdata.core.groups import Groups
from flowdata.core.saved_plan import saved_plan
from flowdata.core.states import EPOCH, PLAN, SEED
from flowdata.errors import MismatchError
from flowdata.table.loss_table import LossTable


def add_replay(commands: Commands) -> None:
    """The command ``replay``."""
    replay = commands.add_parser(
        "replay",
        help="which rows a step of training had, without any log",
        description="Print the rows of a step, from the loss table and a saved state of the "
        "sampler: they are a pure function of these. Steps count from 0 in each epoch.",
    )
    replay.add_argument("--table", type=path_of, required=True, help="the loss table of the run")
    replay.add_argument(
        "--state", type=path_of, required=True, help="a JSON file of the sampler's state_dict()"
    )
    replay.add_argument("--step", type=non_negative, required=True, help="of the epoch, from 0")
    replay.add_argument("--epoch", type=non_negative, help="default that of the state")
    replay.add_argument(
        "--batch-size",
        type=positive,
        required=True,
        help="draws (or packs) of one rank in a step, times the steps that gradients accumulate",
    )
    replay.add_argument(
        "--ranks", type=positive, default=1, help="processes of the run (default 1)"
    )
    replay.add_argument("--rank", type=non_negative, help="one of them; default all together")
    replay.add_argument("--drop-last", action="store_true", help="as of the sampler")
    add_weight_options(replay)
    add_arrange_options(replay, "default --batch-size times --ranks")
    add_data(replay, required=False, several=True)
    replay.set_defaults(run=_run_replay, parser=replay)


def _run_replay(options: argparse.Namespace) -> None:
    table = LossTable.load(options.table)
    data = open_data(options) if options.data else None
    if data is not None:
        from flowdata.report.data_of_tables import rows_of_table

        data = rows_of_table(table, data)

    def groups(column: str) -> Groups:
        from flowdata.report.summary import groups_of

        if data is None:
            raise ValueError(f"{column} is a column of the data: give --data too")
        return groups_of(data, column)

    # Rows that a run had dropped have no draws here either; one that had not was refused.
    weights = weights_of_options(table, options, groups, on_invalid="drop")
    state = _state_in(_read_state(options.state), options.state)
    together = options.batch_size * options.ranks
    arrange = arrangements_of_options(options, weights, table, groups, together)
    plan, position = saved_plan(state, weights, table, arrange)
    plan = plan if options.epoch is None else plan.at_epoch(options.epoch)
    try:
        found: Any = plan.rows_of_step(
            options.step,
            options.batch_size,
            options.ranks,
            options.rank,
            drop_last=options.drop_last,
        )
    except IndexError as error:
        raise ValueError(str(error)) from error
    whose = "all ranks" if options.rank is None else f"rank {options.rank}"
    print(f"epoch {plan.epoch}, seed {plan.seed}, step {options.step:,}, {whose}")
    if position is not None and options.epoch is None:
        print(f"the state was saved after {position:,} of {len(plan):,} draws")
    packs = found if isinstance(found, list) else [found]
    for number, rows in enumerate(packs):
        if isinstance(found, list):
            print(f"pack {number} of the step")
        for line in _described(rows, table, data):
            print(f"  {line}")


def _described(rows: Any, table: LossTable, data: Any) -> Iterator[str]:
    from flowdata.report.texts import as_text

    for row in rows.tolist():
        key = "" if table.keys is None else f", key {table.keys[row]!r}"
        text = "" if data is None else f": {one_line(as_text(data[row]))}"
        yield f"row {row}{key}, loss {table.losses[row]:.4g}{text}"


def _state_in(checkpoint: Any, path: Path) -> Any:
    """The state of a sampler in what a loop has saved: all of it, or some part."""
    if isinstance(checkpoint, dict) and {"manifest", "plan"} <= checkpoint.keys():
        raise MismatchError(
            f"{path} is the manifest of draws that flowdata export wrote: their file has the rows "
            "of each step, in its order"
        )
    # A loop may keep a seed and an epoch of its own; first states had no plan in them.
    found = list(_states_in(checkpoint, {SEED, EPOCH, PLAN}))
    found = found or list(_states_in(checkpoint, {SEED, EPOCH}))
    if len(found) > 1:
        raise MismatchError(f"{path} has {len(found)} states of samplers: write one to a file")
    return found[0] if found else checkpoint


def _states_in(value: Any, names: set[str]) -> Iterator[Any]:
    if isinstance(value, dict) and names <= value.keys():
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _states_in(part, names)


def _read_state(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MismatchError(
            f"{path} is no JSON file: write what the sampler's state_dict() gives, "
            "json.dump(state, file); a checkpoint of torch has it under the name that the loop gave"
        ) from error
