"""The command line: ``flowdata demo``, ``score``, ``inspect`` and ``index``."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import flowdata
from flowdata.errors import FlowDataError
from flowdata.losses import LossTable

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_SHOWN_TEXT = 160


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit status 0, 1 for an error of the data, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (FlowDataError, OSError, ModuleNotFoundError, TypeError, ValueError) as error:
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


def _add_score(commands: Commands) -> None:
    score = commands.add_parser(
        "score",
        help="losses of a language model on a data set, once, into a table",
        description="Score every sample of a data set with a causal language model and write the "
        "losses to a Parquet table. Killed at any moment, the same command goes on. On several "
        "GPUs: torchrun --nproc-per-node 4 -m flowdata score ...",
    )
    score.add_argument("--model", required=True, help="folder, GGUF file, or name on the hub")
    score.add_argument("--tokenizer", help="folder or name; default that of the model")
    _add_data(score, required=True)
    columns = score.add_argument_group(
        "columns", "without any of these, rows must have input_ids and labels"
    )
    columns.add_argument("--prompt", metavar="COLUMN", help="text that is not scored")
    columns.add_argument("--response", metavar="COLUMN", help="text that is scored")
    columns.add_argument("--messages", metavar="COLUMN", help="chats; the assistant is scored")
    columns.add_argument("--text", metavar="COLUMN", help="plain text, all of it scored")
    score.add_argument("--output", type=Path, required=True, help="the table, a .parquet file")
    score.add_argument("--max-length", type=_positive, help="cut longer samples to these tokens")
    score.add_argument(
        "--max-tokens", type=_positive, help="tokens of a batch; default what keeps the device busy"
    )
    score.add_argument("--token-losses", action="store_true", help="keep the loss of each token")
    score.add_argument(
        "--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16"
    )
    score.add_argument("--device", help="default the GPU if there is one, else the CPU")
    score.add_argument(
        "--on-invalid",
        choices=("raise", "drop"),
        default="raise",
        help="samples without a response token or with a NaN loss: stop, or give them weight 0",
    )
    score.set_defaults(run=_run_score)


def _run_score(options: argparse.Namespace) -> None:
    from flowdata.report.summary import summary_text, weights_of
    from flowdata.scoring import CausalLM, score
    from flowdata.scoring.ranks import joined_by_torchrun
    from flowdata.scoring.sources import open_data, open_model

    with joined_by_torchrun() as local_rank:
        model, tokenizer = open_model(
            options.model,
            tokenizer=options.tokenizer,
            dtype=options.dtype,
            device=options.device,
            local_rank=local_rank,
        )
        loss = CausalLM(
            tokenizer=tokenizer,
            prompt=options.prompt,
            response=options.response,
            messages=options.messages,
            text=options.text,
            max_length=options.max_length,
            max_tokens=options.max_tokens,
            token_losses=options.token_losses,
        )
        losses = score(
            model,
            open_data(options.data, options.split),
            loss,
            output=options.output,
            on_invalid=options.on_invalid,
            model_name=str(options.model),
        )
        if local_rank == 0:
            print(summary_text(losses, weights_of(losses)))
            print(
                f"\n{options.output} is written; look at it with: flowdata inspect {options.output}"
            )


def _add_inspect(commands: Commands) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="look at a loss table: temperature, effective sample size, easy and hard samples",
        description="Print what a loss table means for training. --html writes a page with "
        "figures that needs no network; --data shows the text of the easiest and hardest samples.",
    )
    inspect.add_argument("table", type=Path, help="a loss table, .parquet")
    inspect.add_argument("--html", type=Path, help="write a report page to this file")
    inspect.add_argument("--compare", type=Path, help="a second table of the same data set")
    _add_data(inspect, required=False)
    inspect.add_argument("--samples", type=_positive, default=10, help="easiest and hardest shown")
    inspect.set_defaults(run=_run_inspect)


def _run_inspect(options: argparse.Namespace) -> None:
    from flowdata.report.summary import compare, comparison_text, summary_text, weights_of

    losses = LossTable.load(options.table)
    weights = weights_of(losses)
    print(summary_text(losses, weights))
    other = None
    if options.compare is not None:
        second = LossTable.load(options.compare)
        other = second, compare(losses, second)
        print(f"\ncompared with {options.compare}\n{comparison_text(other[1])}")
    texts = _texts(losses, options.data, options.split) if options.data else None
    if texts is not None and options.html is None:
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
    index.add_argument("--output", type=Path, required=True, help="the index, a .parquet file")
    index.add_argument(
        "--allow-pipe", action="store_true", help="run the shell commands of pipe: URLs"
    )
    index.add_argument(
        "--timeout", type=float, default=30.0, help="seconds a server may be silent (default 30)"
    )
    index.set_defaults(run=_run_index)


def _run_index(options: argparse.Namespace) -> None:
    from flowdata.shards import Access, ShardIndex

    access = Access(allow_pipe=options.allow_pipe, timeout=options.timeout)
    index = ShardIndex.of(options.urls, access=access)
    index.save(options.output)
    print(
        f"{len(index):,} samples in {len(index.shards):,} shards, "
        f"{index.sizes.sum() / 1e6:,.1f} MB; {options.output} is written"
    )


def _texts(losses: LossTable, data: str, split: str) -> Callable[[int], str]:
    from flowdata.scoring.sources import as_text, open_data

    dataset = open_data(data, split)
    losses.check(dataset=dataset)
    return lambda row: as_text(dataset[row])


def _extremes(losses: LossTable, texts: Callable[[int], str], number: int) -> str:
    from flowdata.report.summary import extremes

    lines = []
    for title, rows in zip(("easiest", "hardest"), extremes(losses.losses, number), strict=True):
        lines.append(f"{title} samples")
        for row in rows:
            text = textwrap.shorten(texts(row), _SHOWN_TEXT)
            lines.append(f"  row {row}, loss {losses.losses[row]:.4g}: {text}")
    return "\n".join(lines)


def _add_data(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "--data",
        required=required,
        help="a .jsonl, .json, .csv or .parquet file, a saved datasets folder, or a hub name",
    )
    command.add_argument("--split", default="train", help="split of the data (default train)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, got {number}")
    return number
