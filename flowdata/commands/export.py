"""``flowdata export``: epochs of draws as a file, and whether such a file is as it was written."""

import argparse
import contextlib
from typing import Any, cast

from flowdata.commands.arrange_options import add_arrange_options, arrangements_of_options
from flowdata.commands.options import Commands, non_negative, path_of, positive
from flowdata.commands.weight_options import (
    DATA_FILE,
    add_file_weight_options,
    groups_in,
    print_groups,
    weights_of_options,
)
from flowdata.core.plan import EpochPlan, EpochSize
from flowdata.table.loss_table import LossTable

_DATA_AND_TABLE = 2


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
        help=f"{DATA_FILE}, or several in a row; and the loss table of their rows",
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
    add_file_weight_options(export)
    add_arrange_options(export, "needed")
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
        if options.output is not None:
            options.parser.error("--verify compares a file, and writes none: leave -o out")
        _verify(options)
        return
    if len(options.files) < _DATA_AND_TABLE or options.output is None:
        options.parser.error("data, table and -o are needed, or --verify")
    if options.plain and (options.epoch_field, options.draw_field) != ("epoch", "draw"):
        options.parser.error("--plain leaves both fields out: leave --epoch-field and the like out")
    *data, place = options.files
    table = LossTable.load(place)
    groups = groups_in(data, table, options)
    weights = weights_of_options(table, options, groups, on_invalid=options.on_invalid)
    arrangements = arrangements_of_options(options, weights, table, groups)
    plan = EpochPlan(
        weights,
        epoch=options.first_epoch,
        seed=options.seed,
        epoch_size=options.epoch_size,
        scheme=options.scheme,
        alpha=options.alpha,
        arrange=arrangements[0] if arrangements else None,
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
    print_groups(weights)
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
