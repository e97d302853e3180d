"""The commands about files of rows: ``flowdata attach``, ``export`` and ``replay``."""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from flowdata.core.groups import Groups
from flowdata.core.plan import EpochPlan, EpochSize
from flowdata.core.saved_plan import saved_plan
from flowdata.errors import MismatchError
from flowdata.shell import (
    Commands,
    add_data,
    non_negative,
    one_line,
    open_data,
    path_of,
    positive,
)
from flowdata.table.loss_table import LossTable
from flowdata.weight_options import add_weight_options, weights_of_options

_DATA = "a .jsonl (also .gz, .zst) or .parquet"
_DATA_AND_TABLE = 2


def add_attach(commands: Commands) -> None:
    """The command ``attach``."""
    attach = commands.add_parser(
        "attach",
        help="weights as a further field of each row of a JSONL or Parquet file",
        description="Write a data file again, each row with its weight in a further field, for "
        "trainers that read files. Lines of JSONL keep all their other bytes. Rows are in the "
        "order of the loss table, or found by a key.",
    )
    attach.add_argument("data", type=path_of, help=_DATA)
    attach.add_argument("table", type=path_of, help="the loss table of its rows")
    attach.add_argument("-o", "--output", type=path_of, required=True, help="the file to write")
    attach.add_argument("--field", default="weight", help="name of the field (default weight)")
    _add_weights(attach)
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

    table = LossTable.load(options.table)
    rows = attach_file(
        options.data,
        options.table,
        options.output,
        field=options.field,
        key=options.key,
        weights=weights_of_options(
            table,
            options,
            _groups_in(options.data, table, options),
            on_invalid=options.on_invalid,
            normalize=options.normalize,
        ),
        overwrite=options.overwrite,
        unchecked=options.unchecked,
    )
    print(f"{rows:,} rows have a field {options.field!r}; {options.output} is written")


def add_export(commands: Commands) -> None:
    """The command ``export``."""
    export = commands.add_parser(
        "export",
        help="epochs of draws as a JSONL or Parquet file, for trainers that read files",
        description="Write the rows of a data file as FlowSampler draws them, epoch after epoch. "
        "Lines of JSONL keep their bytes but for the fields epoch and draw. A manifest beside the "
        "file says what it was made of: flowdata export --verify FILE compares all of it.",
    )
    export.add_argument(
        "files",
        type=path_of,
        nargs="*",
        metavar="data ... table",
        help=f"{_DATA}, or several in a row; and the loss table of their rows",
    )
    export.add_argument("-o", "--output", type=path_of, help="the file to write")
    export.add_argument("--epochs", type=positive, default=1, help="number of epochs (default 1)")
    export.add_argument("--first-epoch", type=non_negative, default=0, help="number of the first")
    export.add_argument("--seed", type=non_negative, default=0, help="seed of all epochs")
    export.add_argument(
        "--epoch-size",
        type=_epoch_size,
        default="full",
        help="draws of an epoch: full (default), ess, distinct, a number, or a fraction as 0.5",
    )
    export.add_argument(
        "--scheme", choices=("systematic", "multinomial"), default="systematic", help="of the draws"
    )
    export.add_argument("--alpha", type=float, default=1.0, help="draw by weight^alpha (default 1)")
    _add_weights(export)
    fields = export.add_argument_group("fields of the draws")
    fields.add_argument("--epoch-field", default="epoch", metavar="NAME", help="default epoch")
    fields.add_argument("--draw-field", default="draw", metavar="NAME", help="default draw")
    fields.add_argument("--plain", action="store_true", help="leave both out")
    fields.add_argument(
        "--weight-field", metavar="NAME", help="what --alpha leaves of the weights for the loss"
    )
    verify = export.add_argument_group("verification")
    verify.add_argument(
        "--verify", type=path_of, metavar="FILE", help="compare a file of draws with its manifest"
    )
    verify.add_argument("--output-alone", action="store_true", help="leave out what it was made of")
    export.set_defaults(run=_run_export, parser=export)


def _run_export(options: argparse.Namespace) -> None:
    from flowdata.data_files import export_file

    if options.verify is not None:
        _verify(options)
        return
    if len(options.files) < _DATA_AND_TABLE or options.output is None:
        options.parser.error("data, table and -o are needed, or --verify")
    *data, place = options.files
    table = LossTable.load(place)
    weights = weights_of_options(
        table, options, _groups_in(data, table, options), on_invalid=options.on_invalid
    )
    plan = EpochPlan(
        weights,
        epoch=options.first_epoch,
        seed=options.seed,
        epoch_size=options.epoch_size,
        scheme=options.scheme,
        alpha=options.alpha,
    )
    more: dict[str, Any] = {}
    if options.weight_field is not None:
        more = {
            "loss_weights": weights.residual(options.alpha),
            "weight_field": options.weight_field,
        }
    manifest = export_file(
        data,
        place,
        options.output,
        plan=plan,
        epochs=options.epochs,
        key=options.key,
        epoch_field=None if options.plain else options.epoch_field,
        draw_field=None if options.plain else options.draw_field,
        unchecked=options.unchecked,
        **more,
    )
    print(
        f"{manifest['rows']['output']:,} draws of {manifest['rows']['data']:,} rows, "
        f"{options.epochs:,} x {len(plan):,}; {options.output} is written: a trainer passes over "
        "it once, in its order"
    )
    if options.alpha != 1.0 and not more:
        print(
            f"note: draws by weight^{options.alpha} leave the rest of the weight to the loss: "
            "--weight-field NAME writes it"
        )


def _verify(options: argparse.Namespace) -> None:
    from flowdata.data_files import verify_file

    files = options.files
    given = {"data": files[:-1], "table": files[-1]} if len(files) > 1 else {"data": files or None}
    manifest = verify_file(options.verify, output_alone=options.output_alone, **given)
    rows, epochs = manifest["rows"], manifest["epochs"]
    made = " (what it was made of was not looked at)" if options.output_alone else ""
    print(
        f"{options.verify} is as it was written{made}: {rows['output']:,} draws of "
        f"{rows['data']:,} rows, epochs {epochs['first']} to "
        f"{epochs['first'] + epochs['number'] - 1}, seed {manifest['plan']['seed']}"
    )


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
    add_data(replay, required=False)
    replay.set_defaults(run=_run_replay, parser=replay)


def _run_replay(options: argparse.Namespace) -> None:
    table = LossTable.load(options.table)
    data = open_data(options) if options.data else None
    if data is not None:
        table.check(dataset=data)

    def groups(column: str) -> Groups:
        from flowdata.report.summary import groups_of

        if data is None:
            raise ValueError(f"--groups {column} is a column of the data: give --data too")
        return groups_of(data, column)

    # Rows that a run had dropped have no draws here either; one that had not was refused.
    weights = weights_of_options(table, options, groups, on_invalid="drop")
    state = _state_in(_read_state(options.state), options.state)
    plan, position = saved_plan(state, weights, table)
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
    found = list(_states_in(checkpoint))
    if len(found) > 1:
        raise MismatchError(f"{path} has {len(found)} states of samplers: write one to a file")
    return found[0] if found else checkpoint


def _states_in(value: Any) -> Iterator[Any]:
    if isinstance(value, dict) and {"seed", "epoch"} <= value.keys():
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _states_in(part)


def _read_state(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MismatchError(
            f"{path} is no JSON file: write what the sampler's state_dict() gives, "
            "json.dump(state, file); a checkpoint of torch has it under the name that the loop gave"
        ) from error


def _add_weights(command: argparse.ArgumentParser) -> None:
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


def _groups_in(data: Any, table: LossTable, options: argparse.Namespace) -> Callable[[str], Groups]:
    """What reads the groups of the table's rows in a field of the data."""

    def read(field: str) -> Groups:
        from flowdata.data_files.groups import groups_of_files

        return groups_of_files(data, table, field, key=options.key, unchecked=options.unchecked)

    return read


def _epoch_size(text: str) -> EpochSize:
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        return float(text)
    if text in ("full", "ess", "distinct"):
        return cast(EpochSize, text)
    raise argparse.ArgumentTypeError(
        f"full, ess, distinct, a number or a fraction is needed, got {text}"
    )
