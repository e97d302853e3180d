"""The scoring pass beside the two-pass procedure it replaces, on a real language model."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import smollm2
from measure import (
    Figures,
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
    peak_memory,
    quotient,
    settle_memory,
)
from publishing import command_line, publish
from texts import functions
from torch.nn import functional as F
from tqdm import tqdm

from flowdata import CausalLM, FlowWeights, LossTable, score
from flowdata.scoring.token_rows import IGNORED, Tokens

OURS, PADDED, TWO_PASSES, FILE = "score", "padded", "two passes", "table"
LABELS = {
    OURS: "flowdata.score",
    PADDED: "padded loop",
    TWO_PASSES: "two padded passes",
}
PADDED_BATCH = 16
LONGEST = 384

HELP = """\
Score functions of the Python standard library (the docstring is the prompt, the code the response)
with SmolLM2-135M-Instruct in float32, each method in a process of its own on all cores.
Also saves, loads and weights a table of many rows.
"""

ABOUT = f"""\
- {LABELS[OURS]}: one pass; batches of similar length under a token budget, logits of response
  tokens only.
- {LABELS[PADDED]}: one pass; batches of {PADDED_BATCH} in the order of the data, padded to the
  longest; the model's logits and one cross-entropy with ignore_index; inference mode.
- {LABELS[TWO_PASSES]}: the published FLOW procedure, one pass for the median and one for the
  weights; batches as above, all logits copied to float32.
"""


def main() -> None:
    """Measure one thing in this process, or everything in others."""
    options = parser().parse_args()
    if options.measure is not None:
        method, size, _ = options.measure
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        print(json.dumps(table_file(int(size)) if method == FILE else scored(method, int(size))))
        return
    smollm2()
    machine = Machine.here()
    tasks = [Task(method, options.samples, "pass") for method in LABELS]
    tasks.append(Task(FILE, options.rows, "file"))
    rounds = [(round_, task) for round_ in range(options.repeats) for task in tasks]
    results = Results(
        Reading(task, round_, in_fresh_process(Path(__file__), task.arguments))
        for round_, task in tqdm(rounds, unit="process")
    )
    publish(
        options.output,
        "scoring",
        ABOUT,
        tables(results, options),
        {"medians": results.medians()},
        partial(draw, results, options),
        machine=machine,
        goals=targets(results, options.samples, options.rows),
    )


# What a process measures.


def scored(method: str, samples: int) -> Figures:
    """Seconds of a pass and of the whole procedure, and its peak memory above the model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loss = CausalLM(
        tokenizer=AutoTokenizer.from_pretrained(folder),
        prompt="prompt",
        response="response",
        max_length=LONGEST,
    )
    # Tokenized beforehand, for all methods: what is compared is the model's part.
    tokens = [sample for sample in loss.reader()(functions()) if not sample.truncated]
    order = np.random.default_rng(0).permutation(len(tokens))[:samples]
    chosen = [tokens[place] for place in order]
    if len(chosen) < samples:
        raise ValueError(f"there are only {len(chosen)} functions of at most {LONGEST} tokens")
    warm_up(model)
    resident = settle_memory(1 << 20)
    started = time.perf_counter()
    if method == OURS:
        rows = [{"input_ids": sample.ids, "labels": sample.labels} for sample in chosen]
        losses = score(model, rows, CausalLM(), progress=False).losses
        passes = 1
    else:
        passes = 2 if method == TWO_PASSES else 1
        for _ in range(passes):
            losses = padded_pass(model, chosen, whole=method == TWO_PASSES)
    total = time.perf_counter() - started
    weights = FlowWeights.from_losses(losses)
    return {
        "pass_s": [total / passes],
        "total_s": [total],
        "peak_bytes": [float(peak_memory() - resident)],
        "temperature": [float(weights.temperature or 0)],
        "tokens": [float(sum(sample.ids.size for sample in chosen))],
    }


def padded_pass(model: Any, samples: Sequence[Tokens], *, whole: bool) -> np.ndarray[Any, Any]:
    """Mean losses over response tokens, in batches as they come."""
    losses = []
    with torch.inference_mode():
        for start in range(0, len(samples), PADDED_BATCH):
            batch = samples[start : start + PADDED_BATCH]
            width = max(sample.ids.size for sample in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            labels = torch.full((len(batch), width), IGNORED)
            mask = torch.zeros(len(batch), width, dtype=torch.long)
            for row, sample in enumerate(batch):
                size = sample.ids.size
                ids[row, :size] = torch.from_numpy(sample.ids)
                labels[row, :size] = torch.from_numpy(sample.labels)
                mask[row, :size] = 1
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            # The label of position t is token t + 1, so that logits need not be sliced.
            targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
            if whole:
                logits = logits.to(torch.float32, copy=True)
            each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            counted = (targets != IGNORED).sum(dim=1)
            losses.append(each.view(targets.shape).sum(dim=1) / counted)
    return torch.cat(losses).numpy()


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
        "save_s": [marks[1] - marks[0]],
        "load_s": [marks[2] - marks[1]],
        "weights_s": [marks[3] - marks[2]],
        "load_memory_ratio": [loaded / used],
        "weights_memory_ratio": [
            (peak_memory() - resident) / (used + weights.relative.nbytes),
        ],
    }


def warm_up(model: Any) -> None:
    """Pay for what a process pays once."""
    row = {"input_ids": np.arange(16), "labels": np.arange(16)}
    score(model, [row, row], CausalLM(), progress=False)


# What the readings amount to.


def targets(results: Results, samples: int, rows: int) -> list[Target]:
    """The limits for flowdata."""

    def share(of: str, figure: str) -> float | None:
        own = results.median(OURS, samples, figure)
        return quotient(own, results.median(of, samples, figure))

    return [
        Target("time / two passes", 1 / 4, share(TWO_PASSES, "total_s")),
        Target("time / one of the two passes", 1 / 2, share(TWO_PASSES, "pass_s")),
        Target("peak memory / two passes", 1.0, share(TWO_PASSES, "peak_bytes")),
        Target("time / padded loop", 1 / 1.5, share(PADDED, "total_s")),
        Target("memory of loading / column", 3.0, results.median(FILE, rows, "load_memory_ratio")),
        Target(
            "memory of weights / columns", 3.0, results.median(FILE, rows, "weights_memory_ratio")
        ),
    ]


def tables(results: Results, options: argparse.Namespace) -> list[Table]:
    """Everything a reader wants to see."""
    median = results.median
    own = median(OURS, options.samples, "total_s")
    lines = []
    for method, label in LABELS.items():
        total, tokens = (median(method, options.samples, name) for name in ("total_s", "tokens"))
        peak = quotient(median(method, options.samples, "peak_bytes"), 1e6)
        each = median(method, options.samples, "pass_s")
        lines.append(
            [label]
            + [
                number(value)
                for value in (total, quotient(total, own), quotient(tokens, each), peak)
            ]
        )
    file = [
        [name, number(median(FILE, options.rows, figure))]
        for name, figure in (
            ("save, s", "save_s"),
            ("load, s", "load_s"),
            ("median and weights, s", "weights_s"),
        )
    ]
    return [
        Table(
            f"{options.samples} samples",
            ["", "seconds", "times ours", "tokens/s a pass", "peak MB above the model"],
            lines,
        ),
        Table(f"A table of {options.rows:,} rows", ["", "seconds"], file),
    ]


def draw(results: Results, options: argparse.Namespace, path: Path) -> None:
    """Time and memory of each method."""
    with canvas(path, rows=1, columns=2) as (_, axes):
        names = list(LABELS.values())
        for part, figure, what in zip(
            axes, ("total_s", "peak_bytes"), ("seconds", "peak memory, MB"), strict=True
        ):
            scale = 1.0 if figure == "total_s" else 1e6
            values = [results.median(m, options.samples, figure) or 0.0 for m in LABELS]
            horizontal_bars(part, what, what, names, [value / scale for value in values])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line(HELP)
    options.add_argument("--samples", type=int, default=512, help="functions that are scored")
    options.add_argument("--rows", type=int, default=10**7, help="rows of the large table")
    options.add_argument("--repeats", type=int, default=1, help="processes of each method")
    options.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    return options


if __name__ == "__main__":
    main()
