"""A small model in place of the large one on the command line: ``flowdata score --proxy``."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from flowdata.commands.options import name_of, positive
from flowdata.commands.speech import print_summary

SAMPLE = 512


def add_proxy(command: argparse.ArgumentParser) -> None:
    """The options of a small model."""
    proxy = command.add_argument_group(
        "proxy", "a small model scores all rows, and --model a sample that says how far it will do"
    )
    proxy.add_argument(
        "--proxy", type=name_of, metavar="SMALL", help="folder, GGUF file, or name, as of --model"
    )
    proxy.add_argument("--sample", type=positive, help=f"rows that both score (default {SAMPLE})")


def score_by_proxy(
    options: argparse.Namespace, data: Any, loss_of: Callable[[argparse.Namespace], Any]
) -> None:
    """Score all rows with the small model, some with the large one, and print how they agree."""
    from flowdata.scoring.open_inputs import open_model
    from flowdata.scoring.passes.ranks import join_torchrun
    from flowdata.scoring.proxy import score_proxy

    if options.shard is not None or options.engine != "torch":
        raise ValueError("--proxy is for a pass of this process or of torchrun's")
    small = argparse.Namespace(**vars(options) | {"model": options.proxy, "tokenizer": None})
    with join_torchrun() as process:
        load = partial(
            open_model,
            dtype=options.dtype,
            device=options.device,
            local_rank=process.local_rank,
            as_saved=options.loss != "causal_lm",
        )
        found = score_proxy(
            lambda: load(options.model),
            data,
            loss_of(options),
            proxy=lambda: load(options.proxy),
            proxy_loss=loss_of(small),
            sample=SAMPLE if options.sample is None else options.sample,
            output=options.output,
            model_name=str(options.model),
            proxy_name=str(options.proxy),
            key=options.key,
            known=options.known,
            num_workers=options.num_workers,
            on_invalid=options.on_invalid,
            adapters=options.adapters,
            rank_timeout=options.rank_timeout,
        )
        if process.rank == 0:
            print_summary(found.table, options.output)
            print(f"\nlosses of {options.proxy} in place of {options.model}\n{found}")
