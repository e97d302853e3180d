#!/usr/bin/env python
"""Scale: what a stream and its workers take of tables of up to a billion rows."""

import argparse
import contextlib
import gc
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from measure import (
    Figures,
    Machine,
    Reading,
    Results,
    Table,
    Target,
    Task,
    anonymous_memory,
    canvas,
    in_fresh_process,
    log_log,
    number,
    settle_memory,
)
from publishing import command_line, publish
from synthetic_table import write_synthetic_table
from tqdm import tqdm

from flowdata import FlowShards, resample

STREAM, RESAMPLE = "FlowShards", "resample"
ROWS_A_SHARD = 1000
WORKERS = 8
BATCH = 64
MANY, MOST = 10**8, 10**9
GROWTH = 12.0
"""What ten times as many shards may take more of."""
LIMITS = {
    (STREAM, "made, s"): 15.0,
    (STREAM, "begun, s"): 0.2,
    (STREAM, "resumed, s"): 0.2,
    (STREAM, "begun, MB"): 60.0,
    (STREAM, "resumed, MB"): 60.0,
    (RESAMPLE, "MB"): 500.0,
}
"""At 10^8 rows in 10^5 shards."""
TOGETHER = 16_000.0
A_MILLION_KEYS = 5.0

HELP = f"""\
Make a stream of a synthetic loss table, of shards of {ROWS_A_SHARD:,} rows that need not exist, and
begin epochs of it in worker processes, up to where the first bytes of a shard would be asked for.
"""

ABOUT = f"""\
Tables of synthetic losses, shards of {ROWS_A_SHARD:,} rows; each size in a process of its own.

- made: FlowShards is made of the table's file, with default weights: once, before workers begin.
- begun: a worker of {WORKERS}, forked from that process, knows what is in the first window of its
  epoch, and where it lies in its shards. Memory is what it holds after 20 windows more, anonymous,
  above that of the process it was forked from: mapped files are no part of it. Alone, and with all
  {WORKERS} at once (the slowest).
- resumed: the same, of a state at 90 % of the epoch.
- resample: the stage has met samples of 100 shards; above the process that has imported it.
"""


def main() -> None:
    """Measure one thing in this process, or everything in others."""
    options = parser().parse_args()
    if options.measure is not None:
        method, rows, path = options.measure
        print(json.dumps({STREAM: stream, RESAMPLE: stage}[method](int(rows), path)))
        return
    machine = Machine.here()
    with contextlib.ExitStack() as stack:
        folder = options.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = Results(readings(options, folder))
    publish(
        options.output,
        "scale",
        ABOUT,
        tables(results),
        {"medians": results.medians()},
        partial(draw, results),
        machine=machine,
        goals=targets(results),
    )


def readings(options: argparse.Namespace, folder: Path) -> Iterator[Reading]:
    """Of each size, the smallest first."""
    folder.mkdir(parents=True, exist_ok=True)
    for rows in tqdm(sorted(options.sizes), unit="table"):
        path = folder / f"synthetic-{rows}.parquet"
        if not path.exists():
            write_synthetic_table(path, max(rows // ROWS_A_SHARD, 1), min(rows, ROWS_A_SHARD))
        for round_ in range(options.repeats):
            for method in (STREAM, RESAMPLE):
                task = Task(method, rows, str(path))
                yield Reading(task, round_, in_fresh_process(Path(__file__), task.arguments))
        if options.data is None:
            path.unlink()


def warm_up() -> None:
    """What libraries take once is not a matter of rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/table.parquet"
        write_synthetic_table(path, 1, 10)
        made = FlowShards(shards_of(10), path, batch_size=1, num_replicas=1, rank=0)
        made.load_state_dict(made.state_dict(position=5))
        list(resample(path)([{"__url__": "shard-0000000.tar", "__key__": "0000000000"}]))


def shards_of(rows: int) -> str:
    """The shards of a synthetic table."""
    return f"shard-{{{0:07d}..{max(rows // ROWS_A_SHARD, 1) - 1:07d}}}.tar"


def stream(rows: int, path: str) -> Figures:
    """Seconds and memory to make a stream, and in workers to begin and to resume an epoch."""
    warm_up()
    before = settled_memory()
    started, busy = time.perf_counter(), time.process_time()
    made = FlowShards(shards_of(rows), path, batch_size=BATCH, num_replicas=1, rank=0)
    figures = {
        "made, s": [time.perf_counter() - started],
        "made, CPU s": [time.process_time() - busy],
        "made, MB": [(anonymous_memory() - before) / 1e6],
    }
    figures |= named("begun", in_workers(made, [0]))
    figures |= named("begun together", in_workers(made, range(WORKERS)))
    made.load_state_dict(made.state_dict(position=len(made) * 9 // 10 // BATCH * BATCH))
    figures |= named("resumed", in_workers(made, [0]))
    together = sum(figures["begun together, MB"]) + anonymous_memory() / 1e6
    return {**worst(figures), "all together, MB": [together]}


def named(what: str, taken: list[tuple[float, int]]) -> Figures:
    """Of several workers."""
    return {
        f"{what}, s": [seconds for seconds, _ in taken],
        f"{what}, MB": [held / 1e6 for _, held in taken],
    }


def worst(figures: Figures) -> Figures:
    """Of several workers, the slowest and the largest."""
    return {name: [max(values)] for name, values in figures.items()}


def in_workers(made: FlowShards, workers: Any) -> list[tuple[float, int]]:
    """Seconds and bytes until the first window of each worker is known, all side by side."""
    context = multiprocessing.get_context("fork")
    barrier, running = context.Barrier(len(workers)), []
    for worker in workers:
        here, there = context.Pipe()
        process = context.Process(target=_begin, args=(made, worker, barrier, there))
        process.start()
        there.close()
        running.append((process, here))
    taken = [here.recv() for _, here in running]
    for process, _ in running:
        process.join()
    return taken


def _begin(made: FlowShards, worker: int, barrier: Any, answer: Connection) -> None:
    barrier.wait()
    before, started = anonymous_memory(), time.perf_counter()
    # What an iteration does first, in a DataLoader's worker.
    run = made._progress.begin(worker, WORKERS, items=BATCH)  # noqa: SLF001
    windows, index = run.windows(), made._reader._index  # noqa: SLF001
    opened = [index.of_shard(int(shard)) for shard in next(windows)[0].shards]
    seconds = time.perf_counter() - started
    for window, _ in itertools.islice(windows, 20):
        opened = [index.of_shard(int(shard)) for shard in window.shards]
    assert opened
    answer.send((seconds, anonymous_memory() - before))


def stage(rows: int, path: str) -> Figures:
    """Memory of the resample stage, and microseconds of a sample."""
    shards = max(rows // ROWS_A_SHARD, 1)
    met = range(0, shards, max(shards // 100, 1))
    raw = [
        {"__url__": f"/data/shard-{shard:07d}.tar", "__key__": f"{row:010d}", "jpg": b""}
        for shard in met
        for row in range(shard * ROWS_A_SHARD, min((shard + 1) * ROWS_A_SHARD, rows))
    ]
    warm_up()
    before, started = settled_memory(), time.perf_counter()
    resampled = resample(path)
    list(resampled(raw[:1]))
    first, started = time.perf_counter() - started, time.perf_counter()
    for _ in resampled(raw):
        pass
    seconds = time.perf_counter() - started
    return {
        "MB": [(settled_memory() - before) / 1e6],
        "first, s": [first],
        "us a sample": [seconds / len(raw) * 1e6],
    }


def settled_memory() -> int:
    """Anonymous memory without what allocators keep for later."""
    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    settle_memory(1 << 20)
    return anonymous_memory()


def targets(results: Results) -> list[Target]:
    """What a stream and a stage have to keep."""
    goals = []
    for rows, growth in ((MANY, 1.0), (MOST, GROWTH)):
        if rows == MOST and rows not in results.sizes("made, s"):
            continue
        for (method, figure), limit in LIMITS.items():
            measured = results.median(method, rows, figure)
            goals.append(Target(f"{method} {figure}, {rows:,} rows", limit * growth, measured))
        together = results.median(STREAM, rows, "all together, MB")
        goals.append(Target(f"{WORKERS} workers, MB, {rows:,} rows", TOGETHER, together))
    for rows in results.sizes("us a sample"):
        if rows < 10**6:
            continue
        held = results.median(RESAMPLE, rows, "MB")
        measured = None if held is None else held / rows * 1e6
        goals.append(Target(f"resample, MB a million of {rows:,} keys", A_MILLION_KEYS, measured))
    return goals


def tables(results: Results) -> list[Table]:
    """The results as tables."""
    made = []
    for method, title, figures in (
        (
            STREAM,
            "Seconds",
            ("made, s", "made, CPU s", "begun, s", "begun together, s", "resumed, s"),
        ),
        (
            STREAM,
            "Anonymous memory",
            ("made, MB", "begun, MB", "begun together, MB", "resumed, MB", "all together, MB"),
        ),
        (RESAMPLE, "The resample stage", ("first, s", "us a sample", "MB")),
    ):
        rows = [
            [f"{n:,}", *(number(results.median(method, n, figure)) for figure in figures)]
            for n in results.sizes(figures[0])
        ]
        made.append(Table(title, ["rows", *figures], rows))
    return made


def draw(results: Results, path: Path) -> None:
    """Seconds and memory by rows, with the limits."""
    panels = (
        ("Seconds", [(STREAM, f"{what}, s") for what in ("made", "begun", "resumed")]),
        ("Anonymous MB", [(STREAM, "begun, MB"), (STREAM, "resumed, MB"), (RESAMPLE, "MB")]),
    )
    with canvas(path, rows=1, columns=2) as (_, axes):
        for part, (title, lines) in zip(axes, panels, strict=True):
            log_log(part, title, "rows", title)
            for place, (method, figure) in enumerate(lines):
                sizes = results.sizes(figure)
                values = [results.median(method, n, figure) or 0.0 for n in sizes]
                color = f"C{place}"
                part.plot(sizes, values, "o-", label=f"{method}: {figure}", color=color)
                limit = LIMITS[method, figure]
                part.plot([MANY, MOST], [limit, GROWTH * limit], "v--", color=color, alpha=0.4)
            part.legend(title="dashed: limits", fontsize=8)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP, epilog="A billion rows: --sizes 1e6 1e7 1e8 1e9 (16 GB, an hour)")
    made.add_argument(
        "--sizes",
        type=lambda text: int(float(text)),
        nargs="+",
        default=[10**6, 10**7, MANY],
        help="rows (default 1e6 1e7 1e8)",
    )
    made.add_argument("--repeats", type=int, default=1, help="rounds of each size (default 1)")
    made.add_argument("--data", type=Path, help="keep the tables here, and use those that are")
    made.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    main()
