#!/usr/bin/env python
"""Packing: useful tokens a second of fine-tuning a language model, and what packing costs."""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import smollm2
from measure import (
    Machine,
    Reading,
    Results,
    Table,
    Target,
    Task,
    canvas,
    horizontal_bars,
    in_fresh_process,
    number,
    quotient,
)
from packing_batches import (
    BATCH,
    GROUPED,
    PADDED,
    SOURCES,
    TRL_ROW,
    TRL_SINGLE,
    Shares,
    Step,
    endless,
    lengths_of,
    loaders,
    name_of,
    shares,
    tokenized,
    useful,
)
from packing_plans import (
    BYTES,
    CAPACITY,
    EPOCHS,
    FILL,
    FIRST,
    LABELS,
    MEMORY,
    NEXT,
    OURS,
    TIME,
    TRL,
    TRL_WHOLE,
    Epochs,
    measured,
    packs_of_epochs,
)
from publishing import command_line, publish
from tqdm import tqdm

HELP = """\
Fine-tune SmolLM2-135M on texts of mixed length in batches that are padded, grouped by length or
packed, in turns in one process; and time packing itself, beside what TRL and transformers do. The
padded batches need 20 GB of memory.
"""

ABOUT = f"""\
- code: functions of the standard library, after what they are for; chats: what is said and answered
  in chatterbot-corpus; maths: questions with worked answers of reasoning-gym.
- A step is forward, loss, backward and AdamW of SmolLM2-135M-Instruct, float32, SDPA attention, and
  making the batch. Methods take turns; in a round each makes steps until it has seen as many
  tokens of texts. Tokens that fill up do not count. "Rounds" are the lowest and highest of them.
- Rows and packs are drawn by weight, those of TRL shuffled: pack_dataset(..., "bfd") and the
  collate function of SFTTrainer, which puts the packs of a batch into one row, in the same loop.
- Padding is that of a whole epoch. "Short" is the share of an epoch's loss that the shortest third
  of the texts has, where the loss of each batch is the mean over its tokens.
- Packing is measured in processes of their own, with one thread, in seconds of processor; lengths
  are drawn from those of the texts, packs have {CAPACITY:,} tokens. "First epoch" has everything
  from weights and lengths on, and the memory is that of both. TRL's time and memory are with the
  tokens, which it copies. Flattening knows no largest size: its fill is the mean batch over the
  largest.
"""


MEANT_FILL = 0.9
"""A step of packs ends a turn though it is not quite full."""


@dataclass(frozen=True)
class Turn:
    """Steps of one method in one round: tokens of texts, seconds by the clock and of processors."""

    tokens: int
    seconds: float
    processor: float


def main() -> None:
    """Measure one thing in this process, or everything."""
    made = parser()
    options = made.parse_args()
    if options.measure is not None:
        method, quantity, file = options.measure
        print(json.dumps(measured(method, quantity, np.load(file))))
        return
    shortest, longest = min(options.max_lengths), max(options.max_lengths)
    if not options.longest <= shortest <= longest <= options.tokens:
        made.error("--longest <= --max-lengths <= --tokens is needed")
    machine = Machine.here()
    rows = tokenized(options.sources, options.texts, options.longest)
    lengths = lengths_of(rows)
    epochs = packs_of_epochs(lengths)
    plans = packing_of(lengths, options)
    steps, made_of = {}, {}
    if options.rounds:
        found = loaders(rows, options.tokens, options.max_lengths)
        made_of = {name: shares(loader, lengths) for name, loader in found.items()}
        steps = trained({name: endless(loader) for name, loader in found.items()}, options)
    rates = {name: rate(turns) for name, turns in steps.items()}
    publish(
        options.output,
        "packing",
        f"- {told_of(lengths, options.sources)}\n{ABOUT}",
        [
            *([steps_table(steps, made_of)] if steps else []),
            plans_table(plans, options),
            epochs_table(epochs),
        ],
        {
            "steps": {name: [asdict(turn) for turn in turns] for name, turns in steps.items()},
            "shares": {name: asdict(each) for name, each in made_of.items()},
            "medians": plans.medians(),
            "epochs": asdict(epochs),
        },
        partial(draw, rates, made_of, plans, epochs, options),
        machine=machine,
        goals=targets(rates, plans, epochs, options),
    )


# Training steps.


def trained(
    methods: dict[str, Iterator[Step]], options: argparse.Namespace
) -> dict[str, list[Turn]]:
    """The turns of each method, one in each round."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)
    if options.layers:
        model.model.layers = model.model.layers[: options.layers]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(batches: Step) -> None:
        optimizer.zero_grad()
        for batch in batches:
            (model(**batch, use_cache=False).loss / len(batches)).backward()
        optimizer.step()

    # The first step makes the optimizer's state.
    step([{name: torch.ones(BATCH, 8, dtype=torch.int64) for name in ("input_ids", "labels")}])
    turns: dict[str, list[Turn]] = {name: [] for name in methods}
    names = list(methods)
    for round_ in tqdm(range(options.rounds), unit="round"):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            tokens, started, processor = 0, time.perf_counter(), time.process_time()
            while tokens < options.tokens * MEANT_FILL:
                batches = next(methods[name])
                step(batches)
                tokens += useful(batches)
            took = time.perf_counter() - started, time.process_time() - processor
            turns[name].append(Turn(tokens, *took))
    return turns


def rate(turns: Sequence[Turn], of: str = "seconds") -> float:
    """Tokens of texts a second of all turns together."""
    return sum(turn.tokens for turn in turns) / sum(getattr(turn, of) for turn in turns)


# Packing itself.


def packing_of(lengths: np.ndarray[Any, Any], options: argparse.Namespace) -> Results:
    """What each method takes to pack draws of these lengths, in processes of their own."""
    random = np.random.default_rng(0)
    readings = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lengths.npy"
        tasks = [
            (round_, Task(method, draws_of(method, options), quantity))
            for round_ in range(options.repeats)
            for method in LABELS
            for quantity in (TIME, MEMORY)
        ]
        for round_, task in tqdm(tasks, desc="packing"):
            np.save(file, random.choice(lengths, task.n))
            arguments = ["--measure", task.method, task.quantity, str(file)]
            figures = in_fresh_process(Path(__file__), arguments)
            readings.append(Reading(task, round_, figures))
    return Results(readings)


def draws_of(method: str, options: argparse.Namespace) -> int:
    """How many draws a method packs."""
    return int(options.draws if method == OURS else max(options.draws // 10, 1))


# What the readings amount to.


def targets(
    rates: dict[str, float], plans: Results, epochs: Epochs, options: argparse.Namespace
) -> list[Target]:
    """What is to be kept."""

    def figure(method: str, name: str) -> float | None:
        return plans.median(method, draws_of(method, options), name)

    capacity = options.max_lengths[0]
    packs = [rates.get(name_of(capacity, tokens)) for tokens in (options.tokens, capacity)]
    theirs = [rates.get(name.format(capacity)) for name in (TRL_ROW, TRL_SINGLE)]
    pairs = list(zip(packs, theirs, strict=True))
    base, grouped = rates.get(PADDED), rates.get(GROUPED)
    bfd = figure(TRL, FIRST)
    fill = figure(OURS, FILL)
    return [
        Target("tokens/s: packs / random", 2.5, quotient(packs[0], base), at_least=True),
        Target("tokens/s: ByLength / random", 2.0, quotient(grouped, base), at_least=True),
        Target("tokens/s: packs / TRL's, a batch", 1.0, quotient(*pairs[0]), at_least=True),
        Target("tokens/s: packs / TRL's, one by one", 1.0, quotient(*pairs[1]), at_least=True),
        Target(
            "packing: TRL's time / that of an epoch",
            50.0,
            quotient(bfd, figure(OURS, NEXT)),
            at_least=True,
        ),
        Target("packing: seconds of the first epoch, of a million draws", 1.0, figure(OURS, FIRST)),
        Target("packing: bytes a draw", 60.0, figure(OURS, BYTES)),
        Target(FILL, 0.99, fill, at_least=True),
        Target(
            "fill / that of TRL, all rows at once",
            1.0,
            quotient(fill, figure(TRL_WHOLE, FILL)),
            at_least=True,
        ),
        Target(f"numbers of packs in {EPOCHS} epochs", 1.0, float(len(set(epochs.planned)))),
    ]


def steps_table(steps: dict[str, list[Turn]], made_of: dict[str, Shares]) -> Table:
    """Training, by method."""
    base = rate(steps[PADDED])
    rows = []
    for name, turns in steps.items():
        each = [turn.tokens / turn.seconds for turn in turns]
        rows.append(
            [
                name,
                number(rate(turns)),
                f"{number(min(each))} - {number(max(each))}",
                f"{rate(turns) / base:.2f}",
                f"{rate(turns, 'processor') / rate(steps[PADDED], 'processor'):.2f}",
                f"{100 * made_of[name].padding:.1f}",
                f"{100 * made_of[name].short:.1f}",
            ]
        )
    header = ["", "tokens/s", "rounds", "ratio", "by processor time", "padding, %", "short, %"]
    return Table("Tokens of texts a second", header, rows)


def plans_table(plans: Results, options: argparse.Namespace) -> Table:
    """Packing, by method."""
    rows = []
    for method, label in LABELS.items():
        draws = draws_of(method, options)
        first, again, size, fill = (
            plans.median(method, draws, name) for name in (FIRST, NEXT, BYTES, FILL)
        )
        rows.append(
            [
                label,
                f"{draws:,}",
                number(first),
                number(again),
                number(size),
                f"{100 * (fill or 0):.2f}",
            ]
        )
    header = ["", "draws", "s a million, first epoch", "next epochs", "bytes a draw", "fill, %"]
    return Table(f"Packing, {CAPACITY:,} tokens a pack", header, rows)


def epochs_table(epochs: Epochs) -> Table:
    """Packs of many epochs."""
    rows = [
        [name, f"{min(counts):,}", f"{max(counts):,}", f"{len(set(counts))}"]
        for name, counts in (
            ("PackPlan", epochs.planned),
            ("each epoch packed for itself", epochs.each),
        )
    ]
    note = (
        "No pack of any epoch was too long; the least fill of an epoch was "
        f"{100 * epochs.fill:.2f} %."
    )
    return Table(
        f"Packs of {EPOCHS} epochs of the texts", ["", "least", "most", "numbers"], rows, note
    )


def told_of(lengths: np.ndarray[Any, Any], sources: Sequence[str]) -> str:
    """What the texts are like."""
    return (
        f"{lengths.size:,} texts ({', '.join(sources)}) of {lengths.mean():.0f} tokens, "
        f"{np.median(lengths):.0f} in the median, cut at {lengths.max():,}."
    )


def draw(
    rates: dict[str, float],
    made_of: dict[str, Shares],
    plans: Results,
    epochs: Epochs,
    options: argparse.Namespace,
    path: Path,
) -> None:
    """Training, padding, the time of packing, and packs by epoch."""
    with canvas(path, rows=2, columns=2) as (_, ((speed, waste), (cost, counts))):
        names = list(rates) or ["not run"]
        horizontal_bars(
            speed, "Tokens of texts a second", "tokens/s", names, [*rates.values()] or [0.0]
        )
        horizontal_bars(
            waste,
            "Padding",
            "% of the tokens computed",
            names,
            [100 * made_of[name].padding if name in made_of else 0.0 for name in names],
        )
        seconds = [
            plans.median(method, draws_of(method, options), FIRST) or 0.0 for method in LABELS
        ]
        labels = [label.replace(", ", ",\n") for label in LABELS.values()]
        horizontal_bars(cost, "Packing a million draws", "seconds of processor", labels, seconds)
        counts.plot(epochs.each, color="0.6", label="each epoch packed for itself")
        counts.plot(epochs.planned, color="#0072B2", linewidth=2.4, label="PackPlan")
        counts.set(title="Packs of an epoch", xlabel="epoch", ylabel="packs")
        counts.legend(frameon=False)
        counts.grid(True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--texts", type=int, default=6000, help="default 6,000")
    made.add_argument(
        "--sources", nargs="+", choices=SOURCES, default=list(SOURCES), help="of the texts"
    )
    made.add_argument(
        "--rounds", type=int, default=2, help="of training steps (default 2); 0 leaves them out"
    )
    made.add_argument("--tokens", type=int, default=2048, help="of a step of packs (default 2,048)")
    made.add_argument(
        "--max-lengths",
        type=int,
        nargs="+",
        default=[512, 2048],
        help="of packs; TRL has the first (default 512 2048)",
    )
    made.add_argument("--longest", type=int, default=512, help="tokens of a text (default 512)")
    made.add_argument("--layers", type=int, help="use only the first layers of the model")
    made.add_argument(
        "--draws",
        type=int,
        default=10**6,
        help="that are packed (default a million); others pack a tenth",
    )
    made.add_argument(
        "--repeats", type=int, default=1, help="processes of each kind that pack (default 1)"
    )
    made.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    main()
