"""FlowSampler beside torch's RandomSampler and WeightedRandomSampler: time, memory, variance."""

import argparse
import collections
import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from measure import (
    Figures,
    Machine,
    Reading,
    Results,
    Table,
    Target,
    Task,
    in_fresh_process,
    peak_memory,
    quotient,
    settle_memory,
)
from publishing import command_line
from sampler_page import (
    COUNTED_EPOCHS,
    DRAWING,
    LABELS,
    OURS,
    RANDOM,
    SYSTEMATIC,
    THEIRS,
    WEIGHTED,
    draw,
    tables,
)
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)
from tqdm import tqdm

from flowdata import FlowSampler, FlowWeights
from flowdata.core.plan import Scheme
from flowdata.files import replacing

EPOCH, RESUME, COUNTS, LOADER = "epoch", "resume", "counts", "loader"
# torch.multinomial takes no more categories.
WEIGHTED_LIMIT = 1 << 24
WARM_UP_ROWS = 1000
FEATURES = 16
BATCH = 256
LOADER_PAIRS = 5

ABOUT = f"""\
Every number is the median over fresh, single-threaded processes (lowest and highest are in the
JSON). The processes of the methods alternate, so that a machine that slows down slows all alike.
Losses are gamma(2) distributed with a fixed seed, weights are FLOW's at the median temperature,
and one epoch is n draws. Weights are ready before the clock starts, and each process has drawn an
epoch of {WARM_UP_ROWS:,} rows by then, so imports and first calls are not in the numbers, and has
touched and freed memory, so they do not depend on what ran before.

- First index: construct the sampler, `iter()`, one `next()`.
- Whole epoch: the same and all other indices, through `collections.deque(iterator, maxlen=0)`.
  RandomSampler makes a second permutation at the end and uses nothing of it; so it does under a
  DataLoader.
- Peak memory: highest resident memory during that epoch, less what was resident before it.
- Resume: construct, `load_state_dict` with the position n / 2, `iter()`, one `next()`. It hashes
  weights that were not hashed before, in order to check that they are those of the state.
- Counts: how often each row is drawn, over {COUNTED_EPOCHS} epochs.
- DataLoader: a whole epoch over a TensorDataset of {FEATURES} floats a row, batches of {BATCH},
  no workers, the sampler and `shuffle=True` by turns in the same process.
"""

HELP = """\
Compare flowdata.FlowSampler with what a user would otherwise give to a DataLoader.

Prints tables and writes sampler.json (every single measurement), sampler.md and sampler.png.
Linux only: peak memory is read from /proc. Leave the machine alone meanwhile.
"""

EXAMPLES = """\
examples:
  python benchmarks/sampler.py                    the published numbers, about 10 minutes
  python benchmarks/sampler.py --quick            does it run? small sizes, half a minute
  python benchmarks/sampler.py --sizes 1e6 --ours-only --repeats 9
                                                  one size, more processes, nothing larger
"""


@dataclass(frozen=True)
class Plan:
    """Sizes and numbers of processes of a whole run."""

    sizes: tuple[int, ...]
    ours_only: tuple[int, ...]
    repeats: int
    counted_rows: int
    loader_rows: int

    def rounds(self) -> list[tuple[int, Task]]:
        """All processes in the order they run: methods alternate within a size."""
        timed = [
            Task(method, n, EPOCH)
            for n in self.sizes
            for method in LABELS
            if method != WEIGHTED or n <= WEIGHTED_LIMIT
        ]
        timed += [Task(method, n, RESUME) for n in self.sizes for method in OURS]
        timed += [Task(method, n, EPOCH) for n in self.ours_only for method in OURS]
        timed.sort(key=lambda task: task.n)
        timed += [Task(m, self.loader_rows, LOADER) for m in DRAWING]
        once = [Task(m, self.counted_rows, COUNTS) for m in DRAWING]
        return [(0, task) for task in once] + [
            (number, task) for number in range(self.repeats) for task in timed
        ]


def main() -> None:
    """Measure one thing in this process, or everything in others."""
    options = parser().parse_args()
    if options.measure is not None:
        method, n, quantity = options.measure
        torch.set_num_threads(1)
        torch.manual_seed(0)
        measures = {EPOCH: epoch, RESUME: resume, COUNTS: counts, LOADER: loader}
        print(json.dumps(measures[quantity](method, int(n))))
        return
    plan = (
        Plan((10_000, 100_000), (1_000_000,), 1, counted_rows=10_000, loader_rows=10_000)
        if options.quick
        else Plan(
            tuple(options.sizes),
            tuple(options.ours_only),
            options.repeats,
            counted_rows=100_000,
            loader_rows=200_000,
        )
    )
    options.output.mkdir(parents=True, exist_ok=True)
    machine = Machine.here()
    print(machine)
    results = Results(measured(plan))
    goals = targets(results, plan)
    command = shlex.join(["python", "benchmarks/sampler.py", *sys.argv[1:]])
    text = report(tables(results, goals), machine, command)
    print(text)
    with replacing(options.output / "sampler.json") as path:
        path.write_text(
            json.dumps(as_json(results, goals, plan, machine, command), indent=1) + "\n"
        )
    with replacing(options.output / "sampler.md") as path:
        path.write_text(text)
    with replacing(options.output / "sampler.png") as path:
        draw(results, path)
    print(f"written: sampler.json, sampler.md, sampler.png in {options.output}")


def measured(plan: Plan) -> Iterable[Reading]:
    """Run every process of the plan, one after the other."""
    with tqdm(plan.rounds(), unit="process") as progress:
        for number, task in progress:
            progress.set_description(f"{LABELS[task.method]}, {task.quantity}, n = {task.n:,}")
            yield Reading(task, number, in_fresh_process(Path(__file__), task.arguments))


# What a process measures. Each function takes (method, n).


def epoch(method: str, n: int) -> Figures:
    """Time to the first index and through a whole epoch, and its peak memory."""
    make = ready(method, n)
    warm_up(method)
    resident = settle_memory(touched(n))
    start = time.perf_counter()
    indices = iter(make())
    next(indices)
    first = time.perf_counter() - start
    collections.deque(indices, maxlen=0)
    whole = time.perf_counter() - start
    return {
        "first_s": [first],
        "epoch_s": [whole],
        "peak_bytes": [float(peak_memory() - resident)],
    }


def resume(method: str, n: int) -> Figures:
    """Time to the first index after the middle of an epoch, and to hash the weights alone."""
    scheme = cast(Scheme, method)
    losses = flow_losses(n)
    hashed, weights = FlowWeights.from_losses(losses), FlowWeights.from_losses(losses)
    warm_up(method)
    start = time.perf_counter()
    _ = hashed.fingerprint
    hashing = time.perf_counter() - start
    state = FlowSampler(hashed, scheme=scheme).state_dict(position=n // 2)
    del hashed
    settle_memory(touched(n))
    start = time.perf_counter()
    sampler = FlowSampler(weights, scheme=scheme)
    sampler.load_state_dict(state)
    next(iter(sampler))
    return {"resume_s": [time.perf_counter() - start], "hash_s": [hashing]}


def counts(method: str, n: int) -> Figures:
    """Variance of the number of draws of a row, in practice and theory; rows seen per epoch."""
    sampler = ready(method, n)()
    drawn = np.stack(
        [
            np.bincount(np.fromiter(sampler, dtype=np.int64, count=n), minlength=n)
            for _ in range(COUNTED_EPOCHS)
        ]
    )
    expected = FlowWeights.from_losses(flow_losses(n)).expected_counts()
    fraction = expected % 1.0
    theory = fraction * (1 - fraction) if method == SYSTEMATIC else expected * (1 - expected / n)
    return {
        "count_variance": [float(drawn.var(axis=0, ddof=1).mean())],
        "theory_variance": [float(theory.mean())],
        "distinct": [float(np.count_nonzero(drawn, axis=1).mean())],
    }


def loader(method: str, n: int) -> Figures:
    """An epoch of a DataLoader with this sampler and with shuffle=True, by turns."""
    rows = TensorDataset(torch.randn(n, FEATURES))
    loaders = {
        "loader_s": DataLoader(rows, batch_size=BATCH, sampler=ready(method, n)()),
        "shuffle_s": DataLoader(rows, batch_size=BATCH, shuffle=True),
    }
    times: Figures = {name: [] for name in loaders}
    for pair in range(LOADER_PAIRS + 1):
        for name in list(loaders)[:: 1 if pair % 2 else -1]:
            start = time.perf_counter()
            collections.deque(loaders[name], maxlen=0)
            times[name].append(time.perf_counter() - start)
    # The first pair is the warm-up.
    times = {name: values[1:] for name, values in times.items()}
    own, shuffled = times.values()
    return times | {"loader_ratio": [a / b for a, b in zip(own, shuffled, strict=True)]}


def ready(method: str, n: int) -> Callable[[], Sampler[int]]:
    """What constructs the sampler of a method, from weights that exist by then."""
    if method == RANDOM:
        return lambda: RandomSampler(range(n))
    weights = FlowWeights.from_losses(flow_losses(n))
    if method == WEIGHTED:
        values = torch.tensor(weights.values)
        return lambda: WeightedRandomSampler(cast(Sequence[float], values), n, replacement=True)
    return lambda: FlowSampler(weights, scheme=cast(Scheme, method))


def touched(n: int) -> int:
    """Bytes to touch beforehand: more than any sampler is going to need."""
    return min(64 * n, 2 * 10**9)


def flow_losses(n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Losses of a pre-trained model, made up: positive, a few of them large."""
    return np.random.default_rng(0).gamma(2.0, size=n)


def warm_up(method: str) -> None:
    """Pay for everything that a process pays once."""
    collections.deque(ready(method, WARM_UP_ROWS)(), maxlen=0)


# What the readings amount to.


def targets(results: Results, plan: Plan) -> list[Target]:
    """The limits for FlowSampler, at the largest sizes that were measured."""
    n, largest = max(plan.sizes), max(plan.ours_only, default=0)
    start, resumed = (results.median(SYSTEMATIC, n, name) for name in ("first_s", "resume_s"))
    peak = results.median(SYSTEMATIC, largest, "peak_bytes")
    return [
        *(
            Target(
                f"{what} / {LABELS[theirs]}'s, n = {n:,}",
                limit,
                quotient(results.median(SYSTEMATIC, n, name), results.median(theirs, n, name)),
            )
            for what, name, limits in (
                ("first index", "first_s", (0.8, 0.15)),
                ("whole epoch", "epoch_s", (0.75, 0.3)),
                ("peak memory", "peak_bytes", (0.35, 0.35)),
            )
            for theirs, limit in zip(THEIRS, limits, strict=True)
        ),
        Target(f"resume at n / 2 / start, n = {n:,}", 1.1, quotient(resumed, start)),
        Target(f"peak memory in GB, n = {largest or 10**8:,}", 2.0, quotient(peak, 1e9)),
        Target(
            f"DataLoader epoch / with shuffle=True, n = {plan.loader_rows:,}",
            1.0,
            results.median(SYSTEMATIC, plan.loader_rows, "loader_ratio"),
        ),
    ]


def report(shown: Sequence[Table], machine: Machine, command: str) -> str:
    """The Markdown file."""
    verdicts, *others = map(str, shown)
    head = f"# FlowSampler and torch's samplers\n\n{machine}.\n\n    {command}\n"
    return "\n".join([head, verdicts, f"## How it is measured\n\n{ABOUT}", *others])


def as_json(
    results: Results, goals: Sequence[Target], plan: Plan, machine: Machine, command: str
) -> dict[str, Any]:
    """The JSON file: what was measured where, every reading, and what it amounts to."""
    return {
        "command": command,
        "machine": dataclasses.asdict(machine),
        "plan": dataclasses.asdict(plan),
        "targets": [dataclasses.asdict(goal) | {"verdict": goal.verdict} for goal in goals],
        "medians": results.medians(),
        "readings": [dataclasses.asdict(reading) for reading in results.readings],
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = command_line(HELP, epilog=EXAMPLES)
    command.add_argument(
        "--sizes",
        nargs="+",
        type=rows_number,
        default=[10**5, 10**6, 10**7],
        metavar="N",
        help="numbers of rows for all samplers (default 1e5 1e6 1e7); above 2^24, "
        "WeightedRandomSampler refuses and is left out",
    )
    command.add_argument(
        "--ours-only",
        nargs="*",
        type=rows_number,
        default=[10**8],
        metavar="N",
        help="numbers of rows for FlowSampler alone (default 1e8, which needs 4 GB); "
        "without a number: none",
    )
    command.add_argument(
        "--repeats",
        type=rows_number,
        default=5,
        metavar="R",
        help="processes for each measurement (default 5); their median counts",
    )
    command.add_argument(
        "--quick",
        action="store_true",
        help="a smoke run: small sizes and 1 process each, whatever the options above say",
    )
    command.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    return command


def rows_number(text: str) -> int:
    """A whole number >= 1, also written as 1e6."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 1 or not value.is_integer():
        raise argparse.ArgumentTypeError(f"needs a whole number >= 1 such as 1e6, got {text!r}")
    return int(value)


if __name__ == "__main__":
    main()
