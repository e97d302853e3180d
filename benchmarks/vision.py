#!/usr/bin/env python
"""Vision: what each way to fine-tune keeps of the old task and learns of the new one."""

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import backbone
import digits
import torch
from methods import (
    CLIPPED,
    CONTROLS,
    DISTINCT,
    FLOW,
    FLOW_WISE,
    HALF,
    L2,
    METHODS,
    MULTINOMIAL,
    NORMALIZED,
    REWEIGHTED,
    STANDARD,
    WISE,
    WISE_CONTROLS,
    Tuned,
    by_task,
    fine_tuned,
    seeds_of,
    sharing,
)
from publishing import command_line
from records import ENDING, Records
from starts import begin, machine_of, sources_known, told_of
from tasks import OWN_ROWS, QUICK, Sizes, Task, best_rates
from tqdm import tqdm
from vision_page import SAME_RATE, STARTS, TEMPERATURE, Found, Run, publish_comparison

TRIED = (
    (STANDARD, WISE, L2),
    (FLOW, FLOW_WISE, MULTINOMIAL, DISTINCT),
    (REWEIGHTED, NORMALIZED, HALF, CLIPPED),
)
"""Methods that have a rate of their own, in parts that a process takes; all others have theirs."""
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SWEEP = {f"{FLOW}, {factor:g} {TEMPERATURE}": factor for factor in FACTORS}
CHOOSING_SEEDS = (1001, 1002, 1003)

HELP = """\
Fine-tune a network that was trained on MNIST (preset digits) or ImageNet (preset backbone), once
for each task, method and seed. Learning rates are chosen by the accuracy on held-out samples of the
fine-tuning data, for each task and method. What was measured is kept in a file as it goes: the same
command goes on after an interruption.
"""

PROTOCOL = """\
"Hardest" is the new accuracy on the tenth that the starting point finds hardest. Percent, mean and
standard deviation over the seeds.

New heads: linear probe, scores out of fold (`score_probe`), fine-tuning of the whole network, and
the head fitted once more with the plain loss, by every method; "own head" is the new accuracy
without that last step. For the old task the old head and the old batch norms are put back.

SGD with momentum 0.9, batches of 50, {epochs} epochs. Learning rates from {grid}, by
{held_out} held-out samples of the fine-tuning data, wrong labels included, on average of the seeds
{choosing}, which are not measured: such an average has a standard deviation
of up to {chance:.1f} points, and rates that are nearer are chosen by chance. Controls have the rate
of what they control, standard fine-tuning or WiSE-FT (times the mean weight for lr x mean(w)). FLOW
at several temperatures ("{factor:g} {unit}") and FLOW by a probe that was scored on its own
rows have the rate of standard fine-tuning, so that "{same}" is FLOW at that rate (the
same training, where FLOW has it, too). "Clipped": at the 10 % and 90 % quantiles of the losses. A
picture has one loss: its weight as a token is that as a sample.

All of this was fixed before the measured seeds were run.
"""


@dataclass(frozen=True)
class Preset:
    """A network and its tasks."""

    about: str
    tasks: tuple[str, ...]
    fetch: Callable[[], None]
    make: Callable[[str, int, str, Sizes], Task]
    sizes: Sizes
    grid: tuple[float, ...]
    choosing: tuple[int, ...]
    seeds: int
    epochs: int


PRESETS = {
    "digits": Preset(
        *(digits.ABOUT, digits.TASKS, digits.fetch, digits.make_task, digits.SIZES),
        *((0.001, 0.003, 0.01, 0.03), CHOOSING_SEEDS, 10, 5),
    ),
    "backbone": Preset(
        *(backbone.ABOUT, backbone.TASKS, backbone.fetch, backbone.make_task, backbone.SIZES),
        *((0.0003, 0.001, 0.003, 0.01), CHOOSING_SEEDS[:2], 5, 5),
    ),
}


# The trainings of one task and seed.


@dataclass(frozen=True)
class Trial:
    """One task and seed, in a process of its own."""

    preset: str
    task: str
    seed: int
    epochs: int
    device: str
    quick: bool
    measuring: bool
    ledger: Path

    def tried(self, methods: Sequence[str]) -> dict[str, list[float]]:
        """Held-out accuracy of each method at each rate of the grid."""
        lab = Lab(self)
        grid = PRESETS[self.preset].grid[: 1 if self.quick else None]
        return {method: [lab.held_out(method, rate) for rate in grid] for method in methods}

    def run(self, rates: Mapping[str, float]) -> tuple[Run, dict[str, dict[str, float]]]:
        """Methods at their rates; and what the weights are like."""
        lab = Lab(self)
        results = {lab.recall("start", lambda: lab.first): lab.scores("start", 0.0)}
        for method, rate in rates.items():
            if method != OWN_ROWS or STARTS[1] in results:
                # They are the same training, if they have the same rate.
                results[method] = lab.scores(FLOW if method == SAME_RATE else method, rate)
        return results, lab.recall("drawn", lambda: lab.task.drawn())


class Lab:
    """What a trial measures, as far as it is not in the ledger."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self._ledger = Records(trial.ledger)

    @functools.cached_property
    def task(self) -> Task:
        """Data, starting point and weights."""
        trial = self.trial
        make = PRESETS[trial.preset].make
        return make(trial.task, trial.seed, trial.device, self.sizes)

    @property
    def sizes(self) -> Sizes:
        """Numbers of samples."""
        return QUICK if self.trial.quick else PRESETS[self.trial.preset].sizes

    @property
    def first(self) -> str:
        """What the starting point is called."""
        return STARTS[0 if self.task.before is None else 1]

    def scores(self, method: str, rate: float) -> dict[str, float]:
        """Accuracies after training by a method."""
        found: dict[str, float] = self.recall(
            f"{method} at {rate:g}", lambda: self.task.scored(self._tuned(method, rate))
        )
        return found

    def held_out(self, method: str, rate: float) -> float:
        """Held-out accuracy after training by a method."""
        found: float = self.recall(
            f"held out, {method} at {rate:g}",
            lambda: self.task.held_out(self._tuned(method, rate)),
        )
        return found

    def recall(self, what: str, measure: Callable[[], Any]) -> Any:
        """What is known of it, or else measured."""
        trial = self.trial
        samples = self.sizes.data
        where = f"{trial.task}, {samples} samples, seed {trial.seed}, {trial.epochs} epochs"
        return self._ledger.recall(f"{where}: {what}", measure if trial.measuring else _unknown)

    @functools.cached_property
    def _tuned(self) -> Callable[[str, float], Tuned]:
        """(method, learning rate) -> model."""
        task, seed = self.task, self.trial.seed
        middle = float(task.weights.temperature or 1.0)
        sweep = {name: task.table.weights(factor * middle) for name, factor in SWEEP.items()}
        tuning = task.tuning(self.trial.epochs, sweep)

        def train(method: str, rate: float) -> Tuned:
            if method == "start":
                return Tuned(task.start, 0, 0.0)
            return fine_tuned(method, task.start, tuning, rate, seed)

        return sharing(train, task.start)


def _unknown() -> Any:
    raise SystemExit("not everything is measured yet: leave out --page, and the run goes on")


# The whole of it.


def main() -> None:
    """Choose the rates, run everything, write."""
    options = parser().parse_args()
    preset = PRESETS[options.preset]
    name = {"digits": "vision"}.get(options.preset, f"vision-{options.preset}")
    ledger = options.ledger or options.output / f"{name}{ENDING}"
    known = Records(ledger)
    if not options.page:
        begin(known, "vision", options.device)
        preset.fetch()
    tasks = options.tasks or preset.tasks
    epochs = options.epochs or preset.epochs

    def trials(seeds: Sequence[int]) -> list[Trial]:
        return [
            Trial(
                *(options.preset, task, seed, epochs, options.device, options.quick),
                measuring=not options.page,
                ledger=ledger,
            )
            for seed in seeds
            for task in tasks
        ]

    choosing = trials(preset.choosing[: options.choosing])
    measured = trials(list(seeds_of(options.seeds or preset.seeds)))
    parts = [(trial, part) for trial in choosing for part in TRIED]
    fill(options, Trial.tried, parts, "rates")
    # Processes fill the ledger; what comes out is read from it.
    found = [trial.tried([method for part in TRIED for method in part]) for trial in choosing]
    tried = by_task(tasks, pairs(choosing), found)
    rates = {task: rates_of(best_rates(tried[task], preset.grid)) for task in tasks}
    runs = [(trial, part) for trial in measured for part in halves(rates[trial.task])]
    fill(options, Trial.run, runs, "runs")
    if options.no_page:
        return
    done = [trial.run(rates[trial.task]) for trial in measured]
    results = by_task(tasks, pairs(measured), [run for run, _ in done])
    drawn = by_task(tasks, pairs(measured), [weights for _, weights in done])
    publish_comparison(
        options,
        f"{told_of(known)}\n{about(preset, epochs)}",
        Found(results, drawn, tried, rates, list(SWEEP)),
        machine=machine_of(known),
        name=name,
        sources=sources_known(known),
    )
    if options.ledger is None and not options.page:
        # Nothing of it shall be taken for a measurement of a later version.
        ledger.unlink()


def fill(
    options: argparse.Namespace,
    measure: Callable[..., Any],
    parts: Sequence[tuple[Trial, Any]],
    what: str,
) -> None:
    """Measure the parts of trials, side by side."""
    if not options.page:
        spawning = get_context("spawn")
        with ProcessPoolExecutor(options.processes, spawning, torch.set_num_threads, (1,)) as pool:
            done = pool.map(measure, *zip(*parts, strict=True))
            list(tqdm(done, desc=what, total=len(parts)))


def halves(rates: Mapping[str, float]) -> list[dict[str, float]]:
    """Every second method, and the others."""
    return [dict(list(rates.items())[begin::2]) for begin in (0, 1)]


def pairs(trials: Sequence[Trial]) -> list[tuple[str, int]]:
    """The task and seed of each trial."""
    return [(trial.task, trial.seed) for trial in trials]


def rates_of(chosen: Mapping[str, float]) -> dict[str, float]:
    """The rate of everything that is run, in the order of the methods."""
    at_standard = dict.fromkeys((*CONTROLS, *SWEEP, OWN_ROWS), chosen[STANDARD])
    known = {**chosen, **at_standard, **dict.fromkeys(WISE_CONTROLS, chosen[WISE])}
    return {method: known[method] for method in (*METHODS, *SWEEP, OWN_ROWS)}


def about(preset: Preset, epochs: int) -> str:
    """How it was measured."""
    grid, choosing = (
        ", ".join(map("{:g}".format, part)) for part in (preset.grid, preset.choosing)
    )
    told = PROTOCOL.format(
        epochs=epochs,
        grid=grid,
        choosing=choosing,
        factor=FACTORS[0],
        unit=TEMPERATURE,
        same=SAME_RATE,
        held_out=preset.sizes.held_out,
        chance=50 / (preset.sizes.held_out * len(preset.choosing)) ** 0.5,
    )
    return f"{preset.about}\n{told}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--preset", choices=PRESETS, default="digits", help="default digits")
    made.add_argument("--seeds", type=int, help="default: the preset's")
    made.add_argument("--epochs", type=int, help="default: the preset's")
    made.add_argument("--choosing", type=int, help="seeds that rates are chosen by; default all")
    every = [task for preset in PRESETS.values() for task in preset.tasks]
    made.add_argument("--tasks", nargs="+", choices=every, help="default: the preset's")
    made.add_argument("--processes", type=int, default=2, help="default 2")
    made.add_argument("--device", default="cpu", help="default cpu")
    made.add_argument(
        "--quick", action="store_true", help="few samples: to see that it runs, not what comes out"
    )
    made.add_argument("--no-page", action="store_true", help="fill the ledger, write no page")
    made.add_argument("--page", action="store_true", help="measure nothing, write of what there is")
    made.add_argument(
        "--ledger",
        type=Path,
        help="file of what was measured so far (default: one in DIR, while it runs)",
    )
    return made


if __name__ == "__main__":
    main()
