"""The scoring pass beside the limit of all, and the two-pass procedure it replaces."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import torch
from measure import (
    Figures,
    Machine,
    Table,
    Target,
    canvas,
    horizontal_bars,
    in_fresh_process,
    number,
    peak_memory,
    quotient,
    settle_memory,
)
from publishing import command_line, publish
from scoring_inputs import LONGEST, export, load, model_folder, texts
from scoring_methods import (
    BARE,
    LABELS,
    LIMIT,
    PADDED,
    PADDED_BATCH,
    PUBLISHED,
    TEXTS,
    TOKENS,
    WORKERS,
    Data,
    compile_body,
    run,
    warm_up,
)
from tqdm import tqdm

from flowdata import CausalLM, FlowWeights, LossTable

Readings: TypeAlias = dict[str, dict[str, list[float]]]
"""Of each method, figures by name, a value a round."""

FLOAT32, COMPILED = "float32", "-compiled"
FILE = "table"
KINDS = {
    "cpu": [FLOAT32, "bfloat16"],
    "cuda": [FLOAT32, "bfloat16", f"bfloat16{COMPILED}"],
}
METHODS = {
    "cpu": [BARE, LIMIT, TEXTS, PADDED, PUBLISHED],
    "cuda": [BARE, LIMIT, TEXTS, WORKERS, TOKENS, PADDED, PUBLISHED],
}
OFTEN = [BARE, LIMIT, TEXTS, WORKERS, TOKENS]
"""What is measured in every round; the rest is in the first alone."""

HELP = """\
Score chats, maths questions, novels and code of mixed lengths with a language model, and compare
with a forward pass over the same tokens in full batches, and with padded loops. Each precision has
a process of its own on all cores, in which methods take turns on the same rows. Also saves, loads
and weights a table of many rows.

For a machine that cannot fetch the model: --export FOLDER here; there
    python benchmarks/scoring.py --device cuda --model FOLDER --texts FOLDER/texts.jsonl --rows 0
"""

ABOUT = f"""\
- {LABELS[LIMIT]}: a forward pass over the same real tokens, one text after another in rows of one
  length, as many as the budget of a batch has: no padding, no mask, no loss. The head makes logits
  of as many positions as are scored, fewer than all. Without the head it is {LABELS[BARE]!r}.
- flowdata.score: one pass from texts, tokenized in it; batches of similar length under a token
  budget, logits of response tokens only.
- {LABELS[PADDED]}: one pass; batches of {PADDED_BATCH} in the order of the data, padded to the
  longest; the model's logits and one cross-entropy with ignore_index; inference mode.
- {LABELS[PUBLISHED]}: the published FLOW procedure, one pass for the median and one for the
  weights; batches as above, all logits copied to float32. One is measured, and counted twice.

Padded loops are timed on a quarter of the rows, which makes no difference to them. Methods take
turns; "of the limit" is the median over the rounds of the time of the limit by that
of the method, on the same rows. Tokens are real ones, without padding.
"""


def main() -> None:
    """Measure one thing in this process, or everything in others."""
    options = parser().parse_args()
    if options.measure is not None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        found = table_file(options.rows) if options.measure == FILE else measured(options)
        print(json.dumps(found))
        return
    if options.export is not None:
        export(options.export, model_folder(options.model))
        return
    model_folder(options.model)
    machine = Machine.here()
    kinds = options.kinds or KINDS[options.device]
    tasks = [*kinds, *([FILE] if options.rows else [])]
    found = {
        kind: in_fresh_process(Path(__file__), [*sys.argv[1:], "--measure", kind])
        for kind in tqdm(tasks, unit="process")
    }
    file = found.pop(FILE, {})
    results = {kind: by_method(figures) for kind, figures in found.items()}
    publish(
        options.output,
        "scoring",
        ABOUT + device_name(options.device),
        tables(results, file),
        {"results": results, "file": file},
        partial(draw, results),
        machine=machine,
        goals=targets(results.get(FLOAT32, {}), file),
    )


# What a process measures.


def measured(options: argparse.Namespace) -> Figures:
    """Figures of each method, "method figure", and the losses of the first round."""
    kind: str = options.measure
    dtype = kind.removesuffix(COMPILED)
    model, tokenizer = load(model_folder(options.model), dtype, options.device)
    loss = CausalLM(tokenizer=tokenizer, prompt="prompt", response="response")
    rows = texts(options.texts)
    read = list(zip(rows, loss.reader()(rows), strict=True))
    chosen = [each for each in read if 2 <= each[1].ids.size <= LONGEST]
    if len(chosen) < options.samples:
        raise ValueError(f"there are only {len(chosen)} texts of at most {LONGEST} tokens")
    methods = METHODS[options.device]
    slow = options.device == "cpu" and dtype != FLOAT32
    if slow:
        methods = [LIMIT, TEXTS]
    if kind.endswith(COMPILED):
        compile_body(model)
        methods = [method for method in methods if method in OFTEN]
    figures: Figures = defaultdict(list)
    first = data_of(chosen[: min(64, options.samples) if options.device == "cuda" else 2], loss)
    figures["warm-up seconds"].append(warm_up(model, first))
    for round_ in range(1 if slow else options.rounds):
        # Other rows in every round, as long as there are some.
        start = round_ * options.samples % (len(chosen) - options.samples + 1)
        data = data_of(chosen[start : start + options.samples], loss)
        order = methods[round_ % len(methods) :] + methods[: round_ % len(methods)]
        for method in order if round_ == 0 else [each for each in order if each in OFTEN]:
            few = chosen[start : start + max(options.samples // 4, 1)]
            some = data if method in OFTEN else data_of(few, loss)
            values, losses = run(method, model, some)
            for name, (value,) in values.items():
                of_all = 1.0 if name == "peak_bytes" else data.size / some.size
                figures[f"{method} {name}"].append(value * of_all)
            if round_ == 0 and method == TEXTS:
                figures["losses of-texts"] += losses
    return figures


def data_of(chosen: list[Any], loss: CausalLM) -> Data:
    """Rows and their tokens."""
    return Data([row for row, _ in chosen], loss, [tokens for _, tokens in chosen])


def by_method(figures: Figures) -> Readings:
    """Figures that a process measured, by method."""
    found: Readings = defaultdict(dict)
    for name, values in figures.items():
        method, figure = name.split(" ", 1)
        found[method][figure] = values
    return dict(found)


def table_file(rows: int) -> Figures:
    """Seconds to save, load and weight a table of many rows, and memory over its column."""
    losses = np.random.default_rng(0).gamma(2.0, size=rows).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "losses.parquet"
        LossTable.from_losses(losses[:1000]).save(path)
        LossTable.load(path)
        marks = [time.perf_counter()]
        LossTable.from_losses(losses).save(path)
        marks.append(time.perf_counter())
        del losses
        resident = settle_memory(1 << 20)
        table = LossTable.load(path)
        marks.append(time.perf_counter())
        loaded = peak_memory() - resident
        weights = table.weights()
        marks.append(time.perf_counter())
    used = table.losses.nbytes
    return {
        "rows": [float(rows)],
        "save, s": [marks[1] - marks[0]],
        "load, s": [marks[2] - marks[1]],
        "median and weights, s": [marks[3] - marks[2]],
        "memory of loading / column": [loaded / used],
        "memory of weights / columns": [
            (peak_memory() - resident) / (used + weights.relative.nbytes)
        ],
    }


# What the readings amount to.


def share(readings: Readings, method: str, of: str, figure: str) -> float | None:
    """Median over the rounds that measured both: figure of one method by that of another."""
    if method not in readings or of not in readings:
        return None
    pairs = zip(readings[method][figure], readings[of][figure], strict=False)
    return median(one / other for one, other in pairs)


def targets(readings: Readings, file: Figures) -> list[Target]:
    """The limits for flowdata."""

    def of_file(name: str) -> float | None:
        return file[name][0] if file else None

    parts = partial(share, readings, TEXTS)
    return [
        Target("tokens/s / limit", 0.9, share(readings, LIMIT, TEXTS, "seconds"), at_least=True),
        Target("time / two passes", 1 / 4, parts(PUBLISHED, "seconds")),
        Target("time / one of the two passes", 1 / 2, parts(PUBLISHED, "pass_s")),
        Target("time / padded loop", 1 / 1.5, parts(PADDED, "seconds")),
        Target("peak memory / two passes", 1.0, parts(PUBLISHED, "peak_bytes")),
        *(Target(name, 3.0, of_file(name)) for name in file if name.startswith("memory")),
    ]


def tables(results: dict[str, Readings], file: Figures) -> list[Table | str]:
    """Everything a reader wants to see."""
    found: list[Table | str] = [table_of(kind, readings) for kind, readings in results.items()]
    exact = results.get(FLOAT32, {}).get("losses")
    for kind, readings in results.items():
        if exact and kind != FLOAT32 and "losses" in readings:
            found.append(weights_text(kind, exact["of-texts"], readings["losses"]["of-texts"]))
    if file:
        lines = [[name, number(values[0])] for name, values in file.items() if name.endswith(", s")]
        found.append(Table(f"A table of {file['rows'][0]:,.0f} rows", ["", "seconds"], lines))
    return found


def table_of(kind: str, readings: Readings) -> Table:
    """What each method takes."""
    lines = []
    for method, label in LABELS.items():
        if method not in readings:
            continue
        figures = readings[method]
        lines.append(
            [
                label,
                number(figures["seconds"][0]),
                number(quotient(sum(figures["tokens"]), sum(figures["pass_s"]))),
                *(number(share(readings, LIMIT, method, name)) for name in TIMES),
                number(figures["peak_bytes"][0] / 1e6),
            ]
        )
    header = ["", "seconds", "tokens/s a pass", "of the limit", "by processor time", "peak MB"]
    tokens = readings[LIMIT]["tokens"]
    start = readings["warm-up"]["seconds"][0]
    note = f"Seconds and peak memory, above the model, of {tokens[0]:,.0f} tokens."
    note += f" Rounds: {len(tokens)}. The first call took {start:.3g} s."
    return Table(kind, header, lines, note)


TIMES = "seconds", "processor_s"


def weights_text(kind: str, exact: list[float], losses: list[float]) -> str:
    """How far weights are from those of single precision."""
    own, other = (FlowWeights.from_losses(np.array(each)) for each in (exact, losses))
    errors = np.abs(other.values / own.values - 1)
    moved = np.abs(other.values / other.mean - own.values / own.mean).mean() / 2
    return (
        f"Weights by {kind} against {FLOAT32}, {len(exact):,} rows: relative difference "
        f"{np.median(errors):.2%} (median), {errors.max():.2%} (largest); "
        f"{moved:.2%} of the draws go to other rows.\n"
    )


def device_name(device: str) -> str:
    """The GPU, for the page."""
    return f"\nDevice: {torch.cuda.get_device_name()}\n" if device == "cuda" else ""


def draw(results: dict[str, Readings], path: Path) -> None:
    """Tokens a second of each method."""
    with canvas(path, rows=1, columns=len(results)) as (_, axes):
        for part, (kind, readings) in zip(np.atleast_1d(axes), results.items(), strict=True):
            shown = [method for method in LABELS if method in readings]
            rates = [
                sum(readings[each]["tokens"]) / sum(readings[each]["pass_s"]) for each in shown
            ]
            names = [LABELS[method] for method in shown]
            horizontal_bars(part, kind, "real tokens a second, one pass", names, rates)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line(HELP)
    options.add_argument("--samples", type=int, default=448, help="texts of a round (default 448)")
    options.add_argument("--rounds", type=int, default=1, help="of all methods (default 1)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--model", type=Path, help="folder of a model and its tokenizer")
    options.add_argument("--texts", type=Path, help="JSON lines of prompt and response")
    options.add_argument("--kinds", nargs="+", help="such as float32, bfloat16-compiled")
    options.add_argument("--rows", type=int, default=10**7, help="rows of the table; 0: none")
    options.add_argument("--export", type=Path, help="write texts and configuration, and stop")
    options.add_argument("--measure", help=argparse.SUPPRESS)
    return options


if __name__ == "__main__":
    main()
