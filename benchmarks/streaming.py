#!/usr/bin/env python
"""Streaming: FlowShards and resample against WebDataset, in speed, bytes and mixing."""

import argparse
import gc
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import (
    Figures,
    Machine,
    Reading,
    Results,
    Task,
    anonymous_memory,
    in_fresh_process,
    peak_memory,
    settle_memory,
)
from photographs import ACCEPTED, SHARDS, urls_in, write_shards
from publishing import command_line, publish
from serving import serving
from streaming_page import (
    BATCH,
    BUFFER,
    HTTP,
    KEYS,
    LOCAL,
    METHODS,
    MIXING,
    OURS,
    PLAIN,
    REJECTION,
    RESUME,
    STAGE,
    draw,
    tables,
    targets,
)
from torch.utils.data import DataLoader
from tqdm import tqdm

from flowdata import FlowShards, FlowWeights, LossTable, ShardIndex, resample

HELP = """\
Stream JPEG samples (crops of real photographs) from tar shards on the local disk and from a local
HTTP server, decoded into batches, with 0 and 2 workers, each measurement in a process of its own.
"""

ABOUT = f"""\
{SHARDS} shards of JPEG images of 400 x 300, crops of three photographs; weights of which the mean
is {ACCEPTED} of the largest, so that this share of an epoch is drawn without repeats. Useful
samples are those a training would see. Batches of {BATCH}, decoded to tensors.

- FlowShards: window={BUFFER}, epoch_size="distinct".
- resample: the stage, before .shuffle({BUFFER}) and .decode().
- webdataset: unweighted, .shuffle({BUFFER}) and .decode(): all samples are useful.
- rejection: the same, and after decoding a sample is kept with probability w / max w.
"""


def main() -> None:
    """Measure one thing in this process, or everything in others."""
    options = parser().parse_args()
    if options.measure is not None:
        method, workers, source = options.measure
        print(json.dumps(measured(method, int(workers), source, options)))
        return
    machine = Machine.here()
    with tempfile.TemporaryDirectory(dir=options.data) as folder:
        write_shards(Path(folder), options.samples)
        with serving(Path(folder), ranges="multi") as server:
            results = Results(readings(options, folder, server.url))
    publish(
        options.output,
        "streaming",
        ABOUT,
        tables(results),
        {"medians": results.medians()},
        partial(draw, results),
        machine=machine,
        goals=targets(results),
    )


def readings(options: argparse.Namespace, folder: str, url: str) -> Iterator[Reading]:
    """All measurements, round after round, so that a slow minute meets all methods."""
    tasks = [
        Task(method, workers, source)
        for source in (LOCAL, HTTP)
        for workers in (0, 2)
        for method in METHODS
    ]
    tasks += [Task(RESUME, 0, LOCAL), Task(RESUME, 0, HTTP), Task(MIXING, 0, LOCAL)]
    tasks.append(Task(KEYS, options.keys, LOCAL))
    where = ["--folder", folder, "--url", url, "--useful", str(options.useful)]
    rounds = [(round_, task) for round_ in range(options.repeats) for task in tasks]
    for round_, task in tqdm(rounds, unit="process"):
        figures = in_fresh_process(Path(__file__), [*task.arguments, *where])
        yield Reading(task, round_, figures)


# What a process measures.


def measured(method: str, workers: int, source: str, options: argparse.Namespace) -> Figures:
    """The figures of one method."""
    if method == KEYS:
        return keys(workers)
    place = options.folder if source == LOCAL else options.url
    table = LossTable.load(f"{options.folder}/losses.parquet")
    weights = table.weights(temperature=1.0)
    if method == MIXING:
        return mixing(urls_in(place), table, weights)
    if method == RESUME:
        return resumed(urls_in(place), table, weights, source)
    return speed(method, urls_in(place), table, weights, workers, source, options.useful)


def pipeline(method: str, urls: str, table: LossTable, weights: FlowWeights) -> Any:
    """What a user would iterate over, up to raw samples and, for rejection, beyond."""
    import webdataset as wds

    if method == OURS:
        return FlowShards(
            urls, table, weights, epoch_size="distinct", window=BUFFER, batch_size=BATCH
        ).decode("torchrgb8")
    dataset = wds.WebDataset(urls, shardshuffle=SHARDS, seed=0, empty_check=False)
    if method == STAGE:
        dataset = dataset.compose(resample(table, weights, epoch_size="distinct"))
    dataset = dataset.shuffle(BUFFER).decode("torchrgb8")
    if method == REJECTION:
        index = table.index
        assert index is not None
        chances = dict(zip(index.keys.to_pylist(), weights.relative.tolist(), strict=True))
        random = np.random.default_rng(0)
        dataset = dataset.select(lambda sample: random.random() < chances[sample["__key__"]])
    return dataset


def speed(
    method: str,
    urls: str,
    table: LossTable,
    weights: FlowWeights,
    workers: int,
    source: str,
    useful: int,
) -> Figures:
    """Useful samples per second, and seconds to the first."""
    torch.set_num_threads(1)
    list(itertools.islice(pipeline(method, urls, table, weights), 1))
    started = time.perf_counter()
    stream = pipeline(method, urls, table, weights)
    loader = DataLoader(stream.to_tuple("jpg", "cls"), batch_size=BATCH, num_workers=workers)
    batches = iter(loader)
    seen = len(next(batches)[1])
    first = time.perf_counter() - started
    for _, labels in batches:
        seen += len(labels)
        if seen >= useful:
            break
    seconds = time.perf_counter() - started
    figures = {
        f"{source} useful/s": [seen / seconds],
        f"{source} first batch, s": [first],
    }
    if method == OURS and workers == 0:
        del batches, loader
        figures |= bytes_of_an_epoch(urls, table, weights, source)
    return figures


def bytes_of_an_epoch(urls: str, table: LossTable, weights: FlowWeights, source: str) -> Figures:
    """Bytes read in an epoch of raw samples, against those of the samples drawn."""
    assert table.index is not None
    stream = FlowShards(urls, table, weights, epoch_size="distinct", window=BUFFER)
    counts = stream.plan.counts()
    owed = int(table.index.sizes[counts > 0].sum())
    for _ in stream:
        pass
    return {f"{source} bytes read / owed": [stream.bytes_read / owed]}


def resumed(urls: str, table: LossTable, weights: FlowWeights, source: str) -> Figures:
    """Seconds from construction to the first raw sample, of an epoch and of its last tenth."""

    def stream() -> FlowShards:
        return FlowShards(urls, table, weights, epoch_size="distinct", window=BUFFER)

    first = stream()
    next(iter(first))
    state = first.state_dict(position=len(first) * 9 // 10)

    def start() -> None:
        next(iter(stream()))

    def resume() -> None:
        again = stream()
        again.load_state_dict(state)
        next(iter(again))

    seconds = {start: [], resume: []}  # type: ignore[var-annotated]
    for _ in range(9):
        for action, taken in seconds.items():
            before = time.perf_counter()
            action()
            taken.append(time.perf_counter() - before)
    return {f"{source} start, s": seconds[start], f"{source} resume, s": seconds[resume]}


def mixing(urls: str, table: LossTable, weights: FlowWeights) -> Figures:
    """How much of the order of the shards is left in the order of raw samples."""
    import webdataset as wds

    flow = FlowShards(urls, table, weights, epoch_size="distinct", window=BUFFER)
    plain = wds.WebDataset(urls, shardshuffle=SHARDS, seed=0).shuffle(BUFFER)
    figures = {}
    for method, samples in ((OURS, flow), (PLAIN, plain)):
        shards = [sample["__url__"] for sample in samples]
        appeared = {url: place for place, url in enumerate(dict.fromkeys(shards))}
        order = np.array([appeared[url] for url in shards])
        batches = [len(set(batch)) for batch in batched(order.tolist(), BATCH)]
        figures[f"{method} shards a batch"] = [float(np.mean(batches))]
        figures[f"{method} correlation"] = [spearman(order, np.arange(order.size))]
    return figures


def batched(items: list[int], size: int) -> Iterator[list[int]]:
    """Whole batches."""
    for start in range(0, len(items) - size + 1, size):
        yield items[start : start + size]


def spearman(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Spearman's rank correlation."""
    from scipy import stats

    return float(stats.spearmanr(first, second).statistic)


def keys(rows: int) -> Figures:
    """Microseconds that the resample stage takes for a raw sample, and its memory."""
    import pyarrow as pa

    shards = 100
    names = [f"{row:09d}" for row in range(rows)]
    shard = np.repeat(np.arange(shards, dtype=np.int32), rows // shards)
    places = np.arange(rows, dtype=np.int64) * 1024
    index = ShardIndex(
        tuple(f"{number:03d}.tar" for number in range(shards)),
        shard,
        pa.array(names, type=pa.large_string()),
        places,
        np.full(rows, 1024),
        np.full(shards, -1),
        np.zeros(shards, dtype=np.bool_),
    )
    raw = [
        {"__url__": f"/data/{number:03d}.tar", "__key__": name, "jpg": b""}
        for number, name in zip(shard.tolist(), names, strict=True)
    ]
    losses = np.random.default_rng(0).gamma(2, size=rows)
    with tempfile.TemporaryDirectory() as folder:
        LossTable.from_losses(losses, index=index).save(f"{folder}/table.parquet")
        del index, losses
        # What libraries take once is not a matter of keys.
        LossTable.load(f"{folder}/table.parquet").weights()
        pa.default_memory_pool().release_unused()
        settle_memory(1 << 20)
        resident = anonymous_memory()
        stage = resample(LossTable.load(f"{folder}/table.parquet"), epoch_size=ACCEPTED)
        exhaust(stage(raw[:1]))
        gc.collect()
        pa.default_memory_pool().release_unused()
        before = settle_memory(1 << 20)
        held = anonymous_memory() - resident
        seconds = timed(lambda: exhaust(stage(raw)))
        peak = peak_memory() - before
    nothing = timed(lambda: exhaust(iter(raw)))
    return {
        "us a sample": [(seconds - nothing) / rows * 1e6],
        "bytes a key": [held / rows],
        "peak bytes a key": [peak / rows],
    }


def exhaust(items: Iterable[Any]) -> None:
    """Iterate over everything."""
    for _ in items:
        pass


def timed(action: Callable[[], None]) -> float:
    """Seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--samples", type=int, default=1000, help="samples a shard (default 1000)")
    made.add_argument("--useful", type=int, default=6000, help="samples timed (default 6000)")
    made.add_argument("--keys", type=int, default=1_000_000, help="rows of the stage's table")
    made.add_argument("--repeats", type=int, default=1, help="rounds (default 1)")
    made.add_argument("--data", type=Path, help="where the shards go, 1 GB for a while")
    for hidden in ("--folder", "--url"):
        made.add_argument(hidden, help=argparse.SUPPRESS)
    made.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    main()
