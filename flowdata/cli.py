"""The command line: ``flowdata demo``, ``score``, ``inspect`` and ``index``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from flowdata.errors import FlowDataError, InvalidLossError
from flowdata.shell import (
    Speech,
    describe,
    name_of,
    non_negative,
    path_of,
    positive,
    seconds,
    speaking,
    temperature,
    until_the_reader_leaves,
)
from flowdata.table.loss_table import LossTable
from flowdata.version import __version__

_SHOWN_TEXT = 160

# What data, files, models and devices can do; anything else is a fault of this package.
_EXPECTED = (
    *(FlowDataError, OSError, ImportError, TypeError, ValueError),
    *(RuntimeError, MemoryError),
)


class Commands(Protocol):
    """What `argparse.ArgumentParser.add_subparsers` gives; its class has no public name."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
        """A parser of the arguments of one command."""
        ...


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
        goes_on = "; the same command goes on" if options.run is _run_score else ""
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
    _add_demo(commands)
    _add_score(commands)
    _add_inspect(commands)
    _add_index(commands)
    return parser


def _add_demo(commands: Commands) -> None:
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
    from flowdata.demo import report, run

    if options.output.is_file():
        raise NotADirectoryError(f"{options.output} is a file: give a folder")
    print(report(run(seeds=options.seeds, output=options.output)))
    print(f"\nThe picture and the loss tables are in {options.output}.")


def _add_score(commands: Commands) -> None:
    score = commands.add_parser(
        "score",
        help="losses of a language model on a data set, once, into a table",
        description="Score every sample of a data set with a causal language model and write the "
        "losses to a Parquet table. Killed at any moment, the same command goes on. On several "
        "GPUs: torchrun --nproc-per-node 4 -m flowdata score ...",
    )
    score.add_argument(
        "--model", type=name_of, required=True, help="folder, GGUF file, or name on the hub"
    )
    score.add_argument(
        "--tokenizer", type=name_of, help="folder or name; default that of the model"
    )
    _add_data(score, required=True)
    columns = score.add_argument_group(
        "columns", "without any of these, rows must have input_ids and labels"
    )
    columns.add_argument("--prompt", metavar="COLUMN", help="text that is not scored")
    columns.add_argument("--response", metavar="COLUMN", help="text that is scored")
    columns.add_argument("--messages", metavar="COLUMN", help="chats; the assistant is scored")
    columns.add_argument("--text", metavar="COLUMN", help="plain text, all of it scored")
    score.add_argument(
        "--output",
        type=path_of,
        required=True,
        help="the table, a .parquet file",
    )
    score.add_argument("--max-length", type=positive, help="cut longer samples to these tokens")
    score.add_argument(
        "--max-tokens", type=positive, help="tokens of a batch; default what keeps the device busy"
    )
    score.add_argument("--token-losses", action="store_true", help="keep the loss of each token")
    score.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="numbers to compute with; default auto, as saved",
    )
    score.add_argument("--device", help="default the GPU if there is one, else the CPU")
    score.add_argument(
        "--adapters", action="store_true", help="score a PEFT model as adapted, not its base model"
    )
    score.add_argument(
        "--num-workers", type=non_negative, default=0, help="processes that read and tokenize"
    )
    score.add_argument(
        "--rank-timeout",
        type=seconds,
        default=600.0,
        help="seconds after which torchrun's ranks give up one that does not get on (default 600)",
    )
    score.add_argument(
        "--on-invalid",
        choices=("raise", "drop"),
        default="raise",
        help="samples without a response token or with a NaN loss: stop, or give them weight 0",
    )
    score.set_defaults(run=_run_score, parser=score)


def _run_score(options: argparse.Namespace) -> None:
    from flowdata.scoring import CausalLM, score
    from flowdata.scoring.columns import Columns
    from flowdata.scoring.inference import count_rows
    from flowdata.scoring.open_inputs import open_model
    from flowdata.scoring.ranks import join_torchrun

    # A large model takes minutes to load: what may be wrong otherwise is found out before.
    _require_place(options.output)
    columns = Columns(options.prompt, options.response, options.messages, options.text)
    data = _open_data(options)
    count_rows(data)
    columns.check(data.column_names)
    with join_torchrun() as process:
        model, tokenizer = open_model(
            options.model,
            tokenizer=options.tokenizer,
            dtype=options.dtype,
            device=options.device,
            local_rank=process.local_rank,
        )
        loss = CausalLM(
            tokenizer=tokenizer,
            **asdict(columns),
            max_length=options.max_length,
            max_tokens=options.max_tokens,
            token_losses=options.token_losses,
        )
        losses = score(
            model,
            data,
            loss,
            output=options.output,
            num_workers=options.num_workers,
            on_invalid=options.on_invalid,
            adapters=options.adapters,
            model_name=str(options.model),
            rank_timeout=options.rank_timeout,
        )
        if process.rank == 0:
            _print_result(losses, options.output)


def _print_result(losses: LossTable, output: Path) -> None:
    from flowdata.report.summary import summary_text, weights_of

    # The table first: it took hours, and is safe whatever its weights are.
    print(f"{output} is written; look at it with: flowdata inspect {output}\n")
    try:
        print(summary_text(losses, weights_of(losses)))
    except InvalidLossError as error:
        speech = Speech({"temperature": "--temperature"})
        print(f"note: {speech(error)}: flowdata inspect {output} --temperature ...")


def _add_inspect(commands: Commands) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="look at a loss table: temperature, effective sample size, easy and hard samples",
        description="Print what a loss table means for training. --html writes a page with "
        "figures that needs no network; --data shows the text of the easiest and hardest samples.",
    )
    inspect.add_argument("table", type=path_of, help="a loss table, .parquet")
    inspect.add_argument(
        "--temperature",
        type=temperature,
        default="median",
        metavar="TAU",
        help="median (default), mean, quantile:Q with Q between 0 and 1, or a number",
    )
    inspect.add_argument("--html", type=path_of, help="write a report page to this file")
    inspect.add_argument("--compare", type=path_of, help="a second table of the same data set")
    _add_data(inspect, required=False)
    inspect.add_argument("--samples", type=positive, default=10, help="easiest and hardest shown")
    inspect.set_defaults(run=_run_inspect, parser=inspect)


def _run_inspect(options: argparse.Namespace) -> None:
    from flowdata.report.summary import compare, comparison_text, summary_text, weights_of

    if options.html is not None:
        _require_place(options.html)
    losses = LossTable.load(options.table)
    weights = weights_of(losses, options.temperature)
    print(summary_text(losses, weights))
    other = None
    if options.compare is not None:
        second = LossTable.load(options.compare)
        other = second, compare(losses, second, options.temperature)
        print(f"\ncompared with {options.compare}\n{comparison_text(other[1])}")
    texts = _texts(losses, options) if options.data else None
    if texts is not None:
        print(f"\n{_extremes(losses, texts, options.samples)}")
    if options.html is not None:
        from flowdata.files import replacing
        from flowdata.report.html import html_report

        page = html_report(losses, weights, texts=texts, other=other, number=options.samples)
        with replacing(options.html) as temporary:
            temporary.write_text(page, encoding="utf-8")
        print(f"\n{options.html} is written; open it in a browser")


def _add_index(commands: Commands) -> None:
    index = commands.add_parser(
        "index",
        help="where the samples of tar shards lie, without scoring them",
        description="Walk through the headers of WebDataset shards and write the shard, key, "
        "offset and size of each sample to a Parquet file. A loss table that was scored over "
        "ShardRows holds the same; this is for losses from elsewhere: "
        "LossTable.from_losses(losses, index=ShardIndex.load(file)).",
    )
    index.add_argument("urls", nargs="+", help="shards: paths or URLs, also with {000..009}")
    index.add_argument("--output", type=path_of, required=True, help="the index, a .parquet file")
    index.add_argument(
        "--allow-pipe", action="store_true", help="run the shell commands of pipe: URLs"
    )
    index.add_argument(
        "--timeout", type=seconds, default=30.0, help="seconds a server may be silent (default 30)"
    )
    index.set_defaults(run=_run_index, parser=index)


def _run_index(options: argparse.Namespace) -> None:
    from flowdata.tar.indexing import index_shards
    from flowdata.transport.access import Access

    access = Access(allow_pipe=options.allow_pipe, timeout=options.timeout)
    _require_place(options.output)
    index = index_shards(options.urls, access=access)
    index.save(options.output)
    print(
        f"{len(index):,} samples in {len(index.shards):,} shards, "
        f"{index.sizes.sum() / 1e6:,.1f} MB; {options.output} is written"
    )


def _open_data(options: argparse.Namespace) -> Any:
    from flowdata.scoring.open_inputs import open_data

    path = Path(options.data)
    if options.split is not None and (path.is_file() or (path / "state.json").exists()):
        raise ValueError(f"{path} has no splits: leave --split out")
    return open_data(options.data, options.split or "train")


def _texts(losses: LossTable, options: argparse.Namespace) -> Callable[[int], str]:
    from flowdata.scoring.open_inputs import as_text

    dataset = _open_data(options)
    losses.check(dataset=dataset)
    return lambda row: as_text(dataset[row])


def _extremes(losses: LossTable, texts: Callable[[int], str], number: int) -> str:
    from flowdata.report.summary import extremes

    lines = []
    for title, rows in zip(("easiest", "hardest"), extremes(losses.losses, number), strict=True):
        lines.append(f"{title} samples")
        for row in rows:
            text = _shortened(texts(row))
            lines.append(f"  row {row}, loss {losses.losses[row]:.4g}: {text}")
    return "\n".join(lines)


def _shortened(text: str) -> str:
    """The text on one line; by characters, because not all scripts have spaces."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_TEXT else f"{line[: _SHOWN_TEXT - 1]}…"


def _add_data(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "--data",
        type=name_of,
        required=required,
        help="a .jsonl, .json, .csv or .parquet file, a saved datasets folder, or a hub name",
    )
    command.add_argument("--split", help="split of the data, where it has some (default train)")


def _require_place(path: Path) -> None:
    """The folder of a file that will be written; better missed now than after the work."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
