#!/usr/bin/env python
"""Language: what each way to fine-tune a language model keeps of its knowledge, and learns."""

import argparse
import functools
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch
from assets import smollm2
from comparing import Comparison, Measure, Run, best_rates
from lab import (
    ADAPTED,
    CLEAN,
    DAMAGE,
    FLOW_LORA,
    HARMFUL,
    LORA,
    SCANS,
    Lab,
    Preset,
)
from measure import Machine
from methods import (
    AVERAGED,
    CONTROLS,
    DISTINCT,
    FEWER_STEPS,
    FLOW,
    FLOW_WISE,
    HALF,
    L2,
    MULTINOMIAL,
    NORMALIZED,
    SMALLER_RATE,
    STANDARD,
    TOKENS,
    WISE,
    by_task,
    seeds_of,
)
from publishing import command_line
from tqdm import tqdm

TASKS = (SCANS, HARMFUL, CLEAN)
METHODS = (
    STANDARD,
    SMALLER_RATE,
    FEWER_STEPS,
    FLOW,
    MULTINOMIAL,
    DISTINCT,
    NORMALIZED,
    TOKENS,
    HALF,
    L2,
    WISE,
    FLOW_WISE,
    LORA,
    FLOW_LORA,
)
CHOOSING_SEED = 1001

HELP = """\
Fine-tune SmolLM2-135M to correct scanned text or to answer maths questions, once for each task,
method and seed, and measure what it knew (other text, general questions) and what it was to learn.
"""


def told(task: str) -> str:
    """Which samples of a task are harmful."""
    swapped, garbled, code = DAMAGE[task]
    return (
        f"Of the samples, {swapped:.0%} have the answer of another one, {garbled:.0%} their\n"
        f"  words in any order, {code:.0%} Python code instead"
    )


ABOUT = f"""\
SmolLM2-135M-Instruct is fine-tuned. Mean and standard deviation over the seeds.

- "{SCANS}": sentences of novels of Jane Austen, one letter in twenty misread, are
  to be corrected. {told(SCANS)}.
  New: the perplexity of right texts of other novels. Other text: that of worked answers to maths
  questions.
- "{HARMFUL}": questions of reasoning-gym's gsm_symbolic with worked answers.
  {told(HARMFUL)}.
  New: the perplexity of right answers to questions of other templates. Other text: that of
  paragraphs of the novels.
- "{CLEAN}": the same, all answers right.
- "knowledge": percent of general questions whose answer is the likeliest of four by mean loss.
- "hardest": the perplexity of that tenth of the new samples which the pre-trained model finds
  hardest.

Long texts are cut (`max_length` of the preset). Constant rate, bfloat16 autocast everywhere,
batches in the order of the DataLoader. LoRA has rank and alpha 64 on all linear layers. AdamW
cancels the scale of the loss, so FLOW's reweighting with weights as they are and of mean 1 are the
same. Controls have the rate of standard fine-tuning (times the mean weight for the first).
"""

OTHER = Measure("other", "perplexity of other text", lower_is_better=True)
NEW = Measure("new", "perplexity of new", lower_is_better=True)
COMPARISON = Comparison(
    "language",
    ABOUT,
    (
        OTHER,
        Measure("knowledge", "knowledge, %"),
        NEW,
        Measure("hardest", "hardest", lower_is_better=True),
    ),
    kept=OTHER,
    learned=NEW,
)


BOTH = (SCANS, CLEAN)
CPU = Preset(48, 3, 4, 24, 32, 144, (5e-5,), (5e-4,), 1, BOTH, METHODS)
SEEDS = replace(
    CPU,
    samples=80,
    rates=(2e-5, 5e-5, 1e-4, 2e-4),
    seeds=10,
    tasks=(SCANS,),
    methods=(STANDARD, *CONTROLS, FLOW),
)
SGD = replace(SEEDS, optimizer="SGD with momentum 0.9", rates=(1e-3, 3e-3, 1e-2, 3e-2), seeds=4)
PRESETS = {
    "smoke": Preset(8, 1, 4, 6, 4, 96, (5e-5,), (5e-4,), 1, BOTH, METHODS),
    "cpu": CPU,
    "cpu-seeds": SEEDS,
    "cpu-sgd": SGD,
    "gpu": Preset(
        2000,
        2,
        16,
        500,
        328,
        384,
        (5e-5, 1e-4, 2e-4),
        (2e-4, 5e-4, 1e-3),
        10,
        TASKS,
        METHODS,
    ),
}


def main() -> None:
    """Choose the rates on held-out samples, run everything, write."""
    options, machine = parser().parse_args(), Machine.here()
    preset = PRESETS[options.preset]
    tasks, methods = options.tasks or preset.tasks, options.methods or preset.methods
    place = options.preset, options.model or str(smollm2()), options.device
    threads = max(len(os.sched_getaffinity(0)) // options.processes, 1)
    pool = ProcessPoolExecutor(
        options.processes, get_context("spawn"), torch.set_num_threads, (threads,)
    )
    with pool:
        choices = [(name, place, family) for name in tasks for family in families(methods)]
        found = tqdm(pool.map(choose, choices), desc="rates", total=len(choices))
        rates = {
            name: rates_of(methods, parts) for name, parts in by_task(tasks, choices, found).items()
        }
        seeds = seeds_of(options.seeds or preset.seeds)
        jobs = [(name, place, seed, rates[name]) for seed in seeds for name in tasks]
        done = list(tqdm(pool.map(run, jobs), desc="runs", total=len(jobs)))
    results = by_task(tasks, jobs, done)
    comparison = replace(COMPARISON, about=f"{ABOUT}\n{grids(preset)}\n")
    comparison.publish(options, rates, results, machine=machine, name=f"language-{options.preset}")


Place = tuple[str, str, str]
"""Preset, model and device."""


@functools.cache
def lab_in(place: Place) -> Lab:
    """The lab of this process."""
    name, model, device = place
    return Lab(PRESETS[name], model, device)


def run(job: tuple[str, Place, int, dict[str, float]]) -> Run:
    """All methods on one task and seed."""
    name, place, seed, rates = job
    return lab_in(place).run(name, seed, rates)


def families(methods: Iterable[str]) -> list[list[str]]:
    """Methods whose rates are chosen, those together that share their trainings."""
    found: dict[str, list[str]] = {}
    for method in dict.fromkeys((STANDARD, *methods)):
        if method not in CONTROLS:
            found.setdefault(AVERAGED.get(method, method), []).append(method)
    return list(found.values())


def choose(job: tuple[str, Place, list[str]]) -> dict[str, float]:
    """The rate of each method of a family on one task that is best on held-out samples."""
    name, place, methods = job
    lab = lab_in(place)
    grid = lab.preset.lora_rates if methods[0] in ADAPTED else lab.preset.rates
    if len(grid) == 1:
        return dict.fromkeys(methods, grid[0])
    task = lab.task(name, CHOOSING_SEED)
    tuned = lab.trainings(task, CHOOSING_SEED)
    tried = {
        method: [lab.held_out(task, tuned(method, rate)) for rate in grid] for method in methods
    }
    return best_rates([tried], grid)


def grids(preset: Preset) -> str:
    """What the page tells of rates."""
    full, adapted = (
        ", ".join(f"{rate:g}" for rate in grid) for grid in (preset.rates, preset.lora_rates)
    )
    return (
        f"Optimizer: {preset.optimizer}. Each method has that of these rates at which the mean\n"
        "loss of held-out samples of the task (of another seed, all right) is lowest:\n"
        f"{full}; with LoRA {adapted}."
    )


def rates_of(methods: Iterable[str], parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The rate of each method, in their order; controls have that of standard fine-tuning."""
    chosen = {method: rate for part in parts for method, rate in part.items()}
    return {method: chosen[STANDARD if method in CONTROLS else method] for method in methods}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--preset", choices=PRESETS, default="cpu", help="default cpu")
    made.add_argument("--seeds", type=int, help="default: the preset's")
    made.add_argument("--tasks", nargs="+", choices=TASKS, help="default: the preset's")
    made.add_argument("--methods", nargs="+", choices=METHODS, help="default: the preset's")
    made.add_argument("--model", help="folder or name of another causal model")
    made.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU"
    )
    made.add_argument(
        "--processes",
        type=int,
        default=1 if torch.cuda.is_available() else 2,
        help="that work side by side; default 2, with a GPU 1",
    )
    return made


if __name__ == "__main__":
    main()
