#!/usr/bin/env python
"""Speed: what scoring and training of a language model take, alone on a device."""

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import smollm2
from lab import MIXED, SCANS, Lab, Task
from language import PRESETS
from measure import Machine, Table, canvas, horizontal_bars, number, peak_memory, settle_memory
from methods import DISTINCT, FLOW, STANDARD
from packed import DISTINCT_PADDED, FILL, PADDED, adamw, loader_of, loss_of
from publishing import command_line, publish
from torch.utils.data import DataLoader

from flowdata import CausalLM, score

HELP = """\
Score and train SmolLM2-135M, a method after the other, and measure seconds, tokens a second and
peak memory. Nothing else should run on the device.
"""

ABOUT = """\
SmolLM2-135M-Instruct, alone on the device; bfloat16 autocast, parameters in float32, SDPA
attention, no compilation. Tokens are those of texts; places are with what fills batches up. Memory
is the peak of what tensors take (GPU), or of the process (CPU).

- Scoring: flowdata.score of tokenized rows, from the call to the table.
- Training: forward, loss, backward, AdamW and making the batch, steps after the first three.
  Padded batches have as many tokens of texts a step as packs have places.
"""

WARM_UP = 3


def main() -> None:
    """Measure and write."""
    options, machine = parser().parse_args(), Machine.here()
    preset = replace(
        PRESETS["gpu"],
        samples={SCANS: options.samples, MIXED: options.samples},
        evaluated=8,
        questions=8,
        skills=2,
    )
    lab = Lab(preset, options.model or str(smollm2()), options.device)
    tasks = {name: lab.task(name, 1) for name in options.tasks}
    scored = [scoring(lab, name, task, options) for name, task in tasks.items()]
    trained = [
        training(lab, name, task, method, packs, options)
        for name, task in tasks.items()
        for packs in options.packs
        for method in (PADDED, STANDARD, FLOW, DISTINCT_PADDED, DISTINCT)
    ]
    device = (
        torch.cuda.get_device_name(options.device)
        if lab.device.type == "cuda"
        else f"{machine.cpu}, {machine.cores} cores"
    )
    publish(
        options.output,
        "language_speed",
        f"Measured on: {device}.\n{ABOUT}",
        [table_of_scoring(scored), table_of_training(trained)],
        {"device": device, "scoring": scored, "training": trained},
        partial(draw, trained),
        machine=machine,
        name=f"language-speed-{lab.device.type}",
    )


def scoring(lab: Lab, name: str, task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """What the scoring pass takes: the second of two, as the first loads kernels."""
    rows = task.tuning.rows * options.repeats
    took, peak = 0.0, 0
    for _ in range(2):
        _reset(lab.device)
        began = time.perf_counter()
        with torch.autocast(lab.device.type, torch.bfloat16):
            table = score(lab.start, rows, CausalLM(), device=lab.device, progress=False)
        took, peak = time.perf_counter() - began, _peak(lab.device)
    assert table.lengths is not None
    tokens = int(table.lengths.sum())
    found = {"task": name, "rows": len(rows), "tokens": tokens, "seconds": took, "peak": peak}
    print(found, flush=True)
    return found


def training(
    lab: Lab, name: str, task: Task, method: str, packs: int, options: argparse.Namespace
) -> dict[str, Any]:
    """What steps of a method take."""
    tuning = replace(task.tuning, packs=packs)
    model = copy.deepcopy(lab.start)
    model.train()
    optimizer = adamw(model.parameters(), 1e-6)
    batches = endless(loader_of(method, tuning, 1))
    _reset(lab.device)
    tokens = places = 0
    began = 0.0
    for step, batch in enumerate(islice(batches, WARM_UP + options.steps)):
        if step == WARM_UP:
            _wait(lab.device)
            began = time.perf_counter()
        optimizer.zero_grad()
        loss_of(model, batch, lab.device).backward()
        optimizer.step()
        if step >= WARM_UP:
            tokens += int((batch["input_ids"] != FILL).sum())
            places += batch["input_ids"].numel()
    _wait(lab.device)
    found = {
        "task": name,
        "method": method,
        "packs": packs,
        "steps": options.steps,
        "tokens": tokens,
        "places": places,
        "seconds": time.perf_counter() - began,
        "peak": _peak(lab.device),
    }
    print(found, flush=True)
    return found


def endless(loader: DataLoader[Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of one epoch after the other."""
    while True:
        yield from loader


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        settle_memory(0)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table_of_scoring(found: list[dict[str, Any]]) -> Table:
    """Scoring, by task."""
    rows = [
        [
            each["task"],
            f"{each['rows']:,}",
            f"{each['tokens']:,}",
            f"{each['seconds']:.2f}",
            number(each["tokens"] / each["seconds"]),
            f"{each['peak'] / 1e9:.2f}",
        ]
        for each in found
    ]
    header = ["", "rows", "tokens", "seconds", "tokens/s", "peak memory, GB"]
    return Table("Scoring", header, rows)


def table_of_training(found: list[dict[str, Any]]) -> Table:
    """Training, by task, size of a step and method."""
    rows = [
        [
            f"{each['task']}, {each['packs'] * PRESETS['gpu'].pack:,} places a step: "
            f"{each['method']}",
            f"{1000 * each['seconds'] / each['steps']:.1f}",
            f"{each['tokens'] / each['steps']:,.0f}",
            number(each["tokens"] / each["seconds"]),
            f"{1 - each['tokens'] / each['places']:.1%}",
            f"{each['peak'] / 1e9:.2f}",
        ]
        for each in found
    ]
    header = ["", "ms a step", "tokens a step", "tokens/s", "filled up", "peak memory, GB"]
    return Table("Training", header, rows)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second of training."""
    with canvas(path, rows=1, columns=2) as (_, axes):
        largest = max(each["packs"] for each in found)
        tasks = list(dict.fromkeys(each["task"] for each in found))
        for part, task in zip(np.atleast_1d(axes), tasks, strict=False):
            shown = [each for each in found if each["task"] == task and each["packs"] == largest]
            labels = [each["method"] for each in shown]
            rates = [each["tokens"] / each["seconds"] for each in shown]
            horizontal_bars(part, task, "tokens of texts a second", labels, rates)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--samples", type=int, default=900, help="rows of each task; default 900")
    made.add_argument("--tasks", nargs="+", choices=(SCANS, MIXED), default=[SCANS, MIXED])
    made.add_argument("--repeats", type=int, default=4, help="scored rows are so many times those")
    made.add_argument("--packs", type=int, nargs="+", default=[4, 32], help="of a step")
    made.add_argument("--steps", type=int, default=15, help="that are timed; default 15")
    made.add_argument("--model", help="folder or name of another causal model")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


if __name__ == "__main__":
    main()
