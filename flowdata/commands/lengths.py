"""``flowdata lengths``: tokens of each sample, without a model."""

import argparse
from dataclasses import asdict

from flowdata.commands.options import (
    Commands,
    add_columns,
    add_data,
    name_of,
    non_negative,
    open_data,
    path_of,
    positive,
    require_place,
)


def add_lengths(commands: Commands) -> None:
    """The command ``lengths``."""
    lengths = commands.add_parser(
        "lengths",
        help="tokens of each sample, without a model, for packing and batches of like length",
        description="Count the tokens of every sample of a data set, as a model is given them, and "
        "add them to a loss table, or write a small Parquet file. Samples are read as `flowdata "
        "score` reads them. Killed at any moment, the same command goes on.",
    )
    lengths.add_argument(
        "--tokenizer", type=name_of, help="folder, GGUF file, or name on the hub, for texts"
    )
    add_data(lengths, required=True)
    add_columns(lengths, "input_ids")
    place = lengths.add_mutually_exclusive_group(required=True)
    place.add_argument("--table", type=path_of, help="a loss table of this data, written anew")
    place.add_argument("--output", type=path_of, help="a new .parquet file")
    lengths.add_argument("--max-length", type=positive, help="count longer samples as these tokens")
    lengths.add_argument(
        "--num-workers", type=non_negative, default=0, help="processes that read and tokenize"
    )
    lengths.set_defaults(run=_run_lengths, parser=lengths, goes_on=True)


def _run_lengths(options: argparse.Namespace) -> None:
    from flowdata.report.summary import lengths_text
    from flowdata.scoring import CausalLM
    from flowdata.scoring.layouts.columns import TOKEN_COLUMNS, Columns
    from flowdata.scoring.models.inference import count_rows
    from flowdata.scoring.open_inputs import open_tokenizer
    from flowdata.scoring.row_lengths import count_lengths, give_lengths

    require_place(options.table or options.output)
    columns = Columns(options.prompt, options.response, options.messages, options.text)
    data = open_data(options)
    count_rows(data)
    if columns.names != TOKEN_COLUMNS:
        columns.check(data.column_names)
    elif "input_ids" not in data.column_names:
        raise ValueError(
            f"there is no column input_ids, the columns are {sorted(data.column_names)}: name "
            "columns of text with --prompt and --response, --messages or --text"
        )
    tokenizer = None if options.tokenizer is None else open_tokenizer(options.tokenizer)
    loss = CausalLM(tokenizer=tokenizer, **asdict(columns), max_length=options.max_length)
    if options.table is not None:
        found = give_lengths(options.table, data, loss, num_workers=options.num_workers)
    else:
        found = count_lengths(data, loss, output=options.output, num_workers=options.num_workers)
    print(f"{options.output} is written" if options.output else f"{options.table} has lengths now")
    print(f"\n{lengths_text(found)}")
