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
    FLOW_LORA,
    GARBLED,
    HARMFUL,
    LORA,
    OFF_DOMAIN,
    SWAPPED,
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

TASKS = (HARMFUL, CLEAN)
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
Fine-tune SmolLM2-135M on maths questions, once for each task, method and seed, and measure what it
knew (novels, general questions) and what it was to learn (questions of other templates).
"""

ABOUT = f"""\
SmolLM2-135M-Instruct is fine-tuned on questions of reasoning-gym's gsm_symbolic with worked
answers. Mean and standard deviation over the seeds.

- "novels": perplexity on paragraphs of Jane Austen. "knowledge": percent of general questions whose
  answer is the likeliest of four by mean token loss. Both are what the model knew.
- "maths": perplexity of right answers to questions of templates that were not trained on; "hardest"
  that of the tenth which the pre-trained model finds hardest.

"{HARMFUL}": {SWAPPED:.0%} of the answers are those of other questions, {GARBLED:.0%} have their
words in any order, {OFF_DOMAIN:.0%} are Python functions instead. "{CLEAN}": all are right.

Long texts are cut (`max_length` of the preset). AdamW, constant rate, bfloat16 autocast everywhere,
batches in the order of the DataLoader. LoRA has rank and alpha 64 on all linear layers. AdamW
cancels the scale of the loss, so FLOW's reweighting with weights as they are and of mean 1 are the
same. Controls have the rate of standard fine-tuning (times the mean weight for the first).
"""

NOVELS = Measure("novels", "perplexity of novels", lower_is_better=True)
MATHS = Measure("maths", "perplexity of maths", lower_is_better=True)
COMPARISON = Comparison(
    "language",
    ABOUT,
    (
        NOVELS,
        Measure("knowledge", "knowledge, %"),
        MATHS,
        Measure("hardest", "hardest maths", lower_is_better=True),
    ),
    kept=NOVELS,
    learned=MATHS,
)


CPU = Preset(80, 1, 4, 24, 32, 144, (5e-5,), (5e-4,), 1, TASKS, METHODS)
PRESETS = {
    "smoke": Preset(8, 1, 4, 6, 4, 96, (5e-5,), (5e-4,), 1, TASKS, METHODS),
    "cpu": CPU,
    "cpu-seeds": replace(
        CPU,
        rates=(2e-5, 5e-5, 1e-4, 2e-4),
        seeds=10,
        tasks=(HARMFUL,),
        methods=(STANDARD, *CONTROLS, FLOW),
    ),
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
        "Each method has that of these rates at which the mean loss of held-out samples of the\n"
        f"fine-tuning data (of another seed) is lowest: {full}; with LoRA {adapted}."
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
