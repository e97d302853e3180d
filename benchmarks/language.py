#!/usr/bin/env python
"""Language: what each way to fine-tune a language model keeps of its knowledge, and learns."""

import argparse
import os
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from assets import smollm2
from lab import CLEAN, HARMFUL, MIXED, PRE_TRAINED, SCANS, TASKS, Lab, Preset
from language_page import publish_page
from methods import STANDARD
from packed import (
    AVERAGED,
    CONTROL_OF,
    DISTINCT_PADDED,
    EQUAL,
    GROUPS,
    LORA_METHODS,
    PADDED,
    TOKEN_VARIANTS,
    WHOLE,
    WISE_METHODS,
)
from publishing import command_line
from records import ENDING, Record, Records, append
from starts import begin, check_settings

CHOOSING_SEED = 1001
TRAININGS_OF_A_JOB = 4

HELP = """\
Fine-tune SmolLM2-135M on four tasks, once for each method and seed, and measure what it knew (other
text, general questions, ten families of small tasks) and what it was to learn. Every result is kept
at once: the same command goes on where it was cut off, also on another machine (--done).
"""

ALL = (*WHOLE, *WISE_METHODS, *LORA_METHODS, *TOKEN_VARIANTS, PADDED, DISTINCT_PADDED)
FEW = (*WHOLE, *WISE_METHODS, *TOKEN_VARIANTS)
OF_SOURCES = (*WHOLE, GROUPS, EQUAL)
SMOKE = Preset(
    samples={SCANS: 12, CLEAN: 12, HARMFUL: 12, MIXED: 12},
    epochs=1,
    pack=384,
    packs=1,
    evaluated=3,
    questions=2,
    skills=2,
    rates=(5e-5,),
    lora_rates=(5e-4,),
    seeds=1,
    methods={SCANS: ALL, MIXED: (STANDARD, GROUPS)},
)
CPU = Preset(
    samples={SCANS: 96, CLEAN: 60, HARMFUL: 60, MIXED: 60},
    epochs=2,
    pack=384,
    packs=1,
    evaluated=24,
    questions=32,
    skills=4,
    rates=(5e-5,),
    lora_rates=(5e-4,),
    seeds=1,
    methods={SCANS: ALL, CLEAN: ALL},
)
GPU = Preset(
    samples={SCANS: 640, CLEAN: 320, HARMFUL: 320, MIXED: 480},
    epochs=2,
    pack=384,
    packs=4,
    evaluated=160,
    questions=164,
    skills=16,
    rates=(5e-5, 1e-4, 2e-4),
    lora_rates=(2e-4, 5e-4, 1e-3),
    seeds=10,
    methods={SCANS: ALL, CLEAN: ALL, MIXED: OF_SOURCES, HARMFUL: FEW},
)
PRESETS = {
    "smoke": SMOKE,
    "cpu": CPU,
    "cpu-sgd": replace(
        CPU,
        optimizer="SGD with momentum 0.9",
        rates=(1e-3, 3e-3, 1e-2, 3e-2),
        seeds=4,
        methods={SCANS: WHOLE},
    ),
    "gpu": GPU,
    "gpu-smoke": replace(GPU, samples=dict.fromkeys(TASKS, 48), evaluated=16, seeds=1, skills=2),
}


class RateJob(NamedTuple):
    """Methods of one training at one rate, on held-out samples."""

    task: str
    methods: tuple[str, ...]
    rate: float


class RunJob(NamedTuple):
    """Methods by their rates, on one task and seed."""

    task: str
    seed: int
    methods: tuple[tuple[str, float], ...]


Job: TypeAlias = RateJob | RunJob


def main() -> None:
    """Choose the rates on held-out samples, run everything, write."""
    options = parser().parse_args()
    preset, name = _asked(options), f"language-{options.preset}"
    records = Records(options.output / f"{name}{ENDING}", options.done)
    ends = time.time() + 60 * options.minutes
    settings = _settings(preset)
    check_settings(records, settings)
    if not options.page:
        libraries = {"transformers": version("transformers")}
        begin(records, "language", options.device, settings=settings, **libraries)
        place = Place(preset, options.model or str(smollm2()), options.device)
        work = Workers(place, records, ends, options.processes)
        work.do(rate_jobs(preset, records))
        if not list(rate_jobs(preset, records)):
            work.do(run_jobs(preset, records))
    left = [*rate_jobs(preset, records), *run_jobs(preset, records)]
    print(f"{len(left)} jobs are left")
    if options.page or not left:
        publish_page(options.output, name, preset, records, rates_of(preset, records))


class Place(NamedTuple):
    """Where jobs are done."""

    preset: Preset
    model: str
    device: str


@dataclass
class Workers:
    """Processes that do jobs, side by side, until it is time to stop."""

    place: Place
    records: Records
    ends: float
    processes: int

    def do(self, jobs: Iterable[Job]) -> None:
        """Do jobs in order, and keep what they found."""
        asked = list(jobs)
        if not asked:
            return
        threads = max(len(os.sched_getaffinity(0)) // self.processes, 1)
        told = (self.place, self.records.file, self.ends, threads)
        pool = ProcessPoolExecutor(
            min(self.processes, len(asked)), get_context("spawn"), _begin, told
        )
        with pool:
            done = [pool.submit(_do, job) for job in asked]
            for number, future in enumerate(as_completed(done), start=1):
                future.result()
                print(f"{time.strftime('%H:%M:%S')} {number} of {len(asked)} jobs", flush=True)


# What a worker does.

_LAB: Lab
_FILE: Path
_ENDS: float


def _begin(place: Place, file: Path, ends: float, threads: int) -> None:
    global _LAB, _FILE, _ENDS
    torch.set_num_threads(threads)
    _FILE, _ENDS = file, ends
    _LAB = Lab(*place)


def _do(job: Job) -> None:
    """Do a job, as far as there is time, and keep what went wrong."""
    try:
        for record in _tried(job) if isinstance(job, RateJob) else _found(job):
            append(_FILE, record)
            print(_line(record), flush=True)
            if "CUDA error" in record.get("error", ""):
                # Nothing works any more in this process, which is to take no other job.
                time.sleep(max(_ENDS - time.time(), 0))
    except Exception as error:
        traceback.print_exc()
        append(_FILE, {"kind": "error", "job": job, "error": repr(error)})


def _tried(job: RateJob) -> Iterator[Record]:
    if time.time() < _ENDS:
        for method, loss in _LAB.tried(list(job.methods), job.task, CHOOSING_SEED, job.rate):
            yield {
                "kind": "rate",
                "task": job.task,
                "method": method,
                "rate": job.rate,
                "held_out": loss,
            }


def _found(job: RunJob) -> Iterator[Record]:
    results = _LAB.results(dict(job.methods), job.task, job.seed)
    while time.time() < _ENDS and (found := next(results, None)):
        method, values = found
        yield {
            "kind": "error" if "error" in values else "run",
            "task": job.task,
            "seed": job.seed,
            "method": method,
            "rate": dict(job.methods)[method],
            **values,
        }


def _line(record: Record) -> str:
    """A record, shortly."""
    shown = {
        name: round(value, 5) if isinstance(value, float) else value
        for name, value in record.items()
        if name not in ("kind", "curve") and not name.startswith("skill,")
    }
    return f"{time.strftime('%H:%M:%S')} " + " ".join(map(str, shown.values()))


# Which jobs there are.


def rate_jobs(preset: Preset, records: Records) -> Iterator[RateJob]:
    """Those of rates that have to be tried, and were not."""
    known = {(each["task"], each["method"], each["rate"]) for each in records.of("rate")}
    for task, methods in preset.methods.items():
        for family in families(methods):
            grid = preset.grid(family[0])
            for rate in grid if len(grid) > 1 else ():
                if any((task, method, rate) not in known for method in family):
                    yield RateJob(task, family, rate)


def run_jobs(preset: Preset, records: Records) -> Iterator[RunJob]:
    """Those of what has to be measured, and was not; a seed after the other."""
    known = {(each["task"], each["seed"], each["method"]) for each in records.of("run")}
    rates = rates_of(preset, records)
    for seed in range(1, preset.seeds + 1):
        for task, methods in preset.methods.items():
            if task not in rates:
                continue
            left = [
                method for method in (PRE_TRAINED, *methods) if (task, seed, method) not in known
            ]
            for part in parts_of(left):
                yield RunJob(
                    task, seed, tuple((method, rates[task].get(method, 0.0)) for method in part)
                )


def parts_of(methods: Sequence[str]) -> Iterator[list[str]]:
    """Methods that are measured in one go; those of one training follow one another."""
    by_training: dict[str, list[str]] = {}
    for method in methods:
        by_training.setdefault(AVERAGED.get(method, method), []).append(method)
    groups = list(by_training.values())
    for start in range(0, len(groups), TRAININGS_OF_A_JOB):
        yield [method for group in groups[start : start + TRAININGS_OF_A_JOB] for method in group]


def families(methods: Iterable[str]) -> list[tuple[str, ...]]:
    """Methods whose rates are chosen, those together that share their trainings."""
    found: dict[str, list[str]] = {}
    for method in methods:
        if method not in CONTROL_OF:
            found.setdefault(AVERAGED.get(method, method), []).append(method)
    return [tuple(family) for family in found.values()]


def rates_of(preset: Preset, records: Records) -> dict[str, dict[str, float]]:
    """The rate of each method of each task whose rates were all tried."""
    tried: dict[str, dict[str, dict[float, float]]] = {}
    for each in records.of("rate"):
        of_method = tried.setdefault(each["task"], {}).setdefault(each["method"], {})
        of_method[each["rate"]] = each["held_out"]
    found: dict[str, dict[str, float]] = {}
    for task, methods in preset.methods.items():
        chosen = {}
        for family in families(methods):
            grid = preset.grid(family[0])
            for method in family:
                losses = tried.get(task, {}).get(method, {})
                if len(grid) == 1:
                    chosen[method] = grid[0]
                elif all(rate in losses for rate in grid):
                    chosen[method] = min(grid, key=losses.__getitem__)
        for method in methods:
            if CONTROL_OF.get(method) in chosen:
                chosen[method] = chosen[CONTROL_OF[method]]
        if all(method in chosen for method in methods):
            found[task] = {method: chosen[method] for method in methods}
    return found


def _asked(options: argparse.Namespace) -> Preset:
    """The preset, with what the command line changes of it."""
    preset = PRESETS[options.preset]
    tasks = options.tasks or tuple(preset.methods)
    methods = {
        task: tuple(
            method
            for method in preset.methods.get(task, FEW)
            if options.methods is None or method in options.methods
        )
        for task in tasks
    }
    return replace(preset, methods=methods, seeds=options.seeds or preset.seeds)


def _settings(preset: Preset) -> dict[str, Any]:
    """Of a preset, what results depend on; not which there are."""
    by_task = {f"samples of {task}": count for task, count in preset.samples.items()}
    others = ("samples", "methods", "seeds")
    return by_task | {name: each for name, each in vars(preset).items() if name not in others}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    gpu = torch.cuda.is_available()
    made.add_argument("--preset", choices=PRESETS, default="cpu", help="default cpu")
    made.add_argument("--seeds", type=int, help="default: the preset's")
    made.add_argument("--tasks", nargs="+", choices=TASKS, help="default: the preset's")
    every = dict.fromkeys((*ALL, *OF_SOURCES))
    made.add_argument("--methods", nargs="+", choices=every, help="default: the preset's")
    made.add_argument("--model", help="folder or name of another causal model")
    made.add_argument("--device", default="cuda" if gpu else "cpu", help="default: a GPU")
    made.add_argument(
        "--processes", type=int, default=10 if gpu else 2, help="default 2, with a GPU 10"
    )
    made.add_argument(
        "--done", type=Path, nargs="*", default=[], metavar="DIR", help="what was measured before"
    )
    made.add_argument(
        "--minutes", type=float, default=1e6, help="stop then; the same command goes on"
    )
    made.add_argument("--page", action="store_true", help="measure nothing, write of what there is")
    return made


if __name__ == "__main__":
    main()
