"""What a process of the streaming benchmark measures: one method, at one place."""

import argparse
import functools
import gc
import itertools
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mosaic
import numpy as np
import torch
from measure import Figures, anonymous_memory
from photographs import SHARDS, losses_in, losses_of_mean_weight, urls_in, write_shard
from serving import Served
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from flowdata import Access, FlowShards, LossTable, index_shards, resample

BATCH, BUFFER = 64, 1000
MIXED = 1000
"""Samples of a shard where mixing is measured: more than a buffer has of each."""
OURS, STAGE, PLAIN, REJECTION = "FlowShards", "resample", "webdataset", "rejection"
HELD = "in memory"
OURS_CACHED, PLAIN_CACHED, MOSAIC = "FlowShards, cache", "webdataset, cache", "mosaicml-streaming"
RAW, JPEG = "raw", "jpeg"
AHEAD, AHEAD_OF = 32_000_000, 250
"""Bytes read ahead, and window, where memory is measured: by default all shards here are less."""


@dataclass(frozen=True)
class Setting:
    """Where the shards of this process are, and how they are drawn."""

    folder: str
    url: str
    share: float
    seconds: float
    shards: int = SHARDS

    @property
    def server(self) -> Served | None:
        """What serves them, if they are not on the disk."""
        return Served(self.url) if self.url else None

    @property
    def urls(self) -> str:
        """The shards."""
        return urls_in(self.url or self.folder, self.shards)

    @property
    def table(self) -> LossTable:
        """The losses by which the share is drawn."""
        return LossTable.load(losses_in(self.folder, self.share, self.shards))


def flow(setting: Setting, urls: str | None = None, **options: Any) -> FlowShards:
    """Our stream of raw samples."""
    table = setting.table
    weights = table.weights(temperature=1.0)
    options = {"epoch_size": "distinct", "window": BUFFER, "batch_size": BATCH} | options
    return FlowShards(urls or setting.urls, table, weights, **options)


def pipeline(
    method: str, kind: str, setting: Setting, urls: str | None = None, cache: str | None = None
) -> Any:
    """What a user would iterate over: tuples of key, picture and class."""
    import webdataset as wds

    def decoded(stream: Any) -> Any:
        return stream.decode("torchrgb8") if kind == JPEG else stream

    names = ("__key__", "jpg", "cls")
    urls = urls or setting.urls
    if method == HELD:
        stages = [wds.decode("torchrgb8")] if kind == JPEG else []
        return wds.DataPipeline(held(setting), *stages, wds.to_tuple(*names))
    if method == OURS:
        return decoded(flow(setting, urls, access=Access(cache_dir=cache))).to_tuple(*names)
    options: Any = {"shardshuffle": setting.shards, "seed": 0, "empty_check": False}
    stream = wds.WebDataset(urls, cache_dir=cache, **options)
    if method == STAGE:
        weights = setting.table.weights(temperature=1.0)
        stream = stream.compose(resample(setting.table, weights, epoch_size="distinct"))
    stream = decoded(stream.shuffle(BUFFER))
    if method == REJECTION:
        stream = stream.select(accepted(setting))
    return stream.to_tuple(*names)


class Held(IterableDataset[dict[str, Any]]):
    """Samples in memory: what decoding and the DataLoader allow where nothing has to be read."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        yield from self._samples[first::step]


@functools.cache
def held(setting: Setting) -> Held:
    """Those that an epoch draws."""
    return Held(list(flow(setting, urls_in(setting.folder, setting.shards))))


def accepted(setting: Setting) -> Callable[[dict[str, Any]], bool]:
    """Whether a sample is kept: with the probability that is its weight over the largest."""
    table = setting.table
    assert table.index is not None
    weights = table.weights(temperature=1.0).relative
    chances = dict(
        zip(table.index.keys.to_pylist(), (weights / weights.max()).tolist(), strict=True)
    )
    random = np.random.default_rng(0)
    return lambda sample: random.random() < chances[sample["__key__"]]


def loaded(stream: Any, kind: str, workers: int) -> Any:
    """Its DataLoader."""
    torch.set_num_threads(1)
    return DataLoader(
        stream,
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list if kind == RAW else None,
    )


def keys_in(batch: Any, kind: str) -> list[str]:
    """Of its samples."""
    return [sample[0] for sample in batch] if kind == RAW else list(batch[0])


def speed(method: str, kind: str, workers: int, setting: Setting) -> Figures:
    """Whole epochs for some seconds: useful samples a second, first batch, CPU, bytes.

    The shards on the disk are read from first, so that nothing but the place is new to the
    process: what it learns of a server, it learns while it is measured.
    """
    # Which takes 20 ms, and is part of processes that have transformers' Trainer.
    import urllib3  # noqa: F401

    local = urls_in(setting.folder, setting.shards)
    list(itertools.islice(pipeline(method, kind, setting, local), 1))
    server = setting.server
    leave_out_imports()
    if server is not None:
        server.reset()
    busy, started = cpu_seconds(), time.perf_counter()
    stream = pipeline(method, kind, setting)
    loader = loaded(stream, kind, workers)
    seen: list[str] = []
    first = seconds = 0.0
    while seconds < setting.seconds:
        for batch in loader:
            first = first or time.perf_counter() - started
            seen += keys_in(batch, kind)
        seconds = time.perf_counter() - started
    del loader  # Which joins the workers: then their time is known.
    figures = {
        "useful/s": [len(seen) / seconds],
        "first batch, s": [first],
        "CPU s/1,000": [(cpu_seconds() - busy) / len(seen) * 1000],
    }
    if method == OURS and kind == RAW:
        read = stream.bytes_read if server is None else server.stats()["bytes"]
        if read:
            figures["bytes read / owed"] = [read / owed(seen, setting)]
    if server is not None:
        stats = server.stats()
        figures["requests/1,000"] = [stats["requests"] / len(seen) * 1000]
        figures["connections"] = [stats["most_connections"]]
    return figures


def leave_out_imports() -> None:
    """Keep the collector of garbage from what is there now.

    To look through all that torch has imported takes it as long as a first batch, and it would do
    so in one method's or in another's, by chance.
    """
    gc.collect()
    gc.freeze()


def owed(keys: list[str], setting: Setting) -> int:
    """Bytes of these samples in the shards."""
    index = setting.table.index
    assert index is not None
    sizes = dict(zip(index.keys.to_pylist(), index.sizes.tolist(), strict=True))
    return sum(sizes[key] for key in keys)


def two_epochs(method: str, workers: int, setting: Setting) -> Figures:
    """What a cache of whole shards gives to the first epoch, and to the second."""
    server = setting.server
    assert server is not None
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=setting.folder) as cache:
        started = time.perf_counter()
        if method == MOSAIC:
            stream = mosaic.dataset(setting.url, cache, batch_size=BATCH, buffer=BUFFER)
        else:
            plain = {OURS_CACHED: OURS, PLAIN_CACHED: PLAIN}[method]
            stream = pipeline(plain, RAW, setting, cache=cache)
        loader = loaded(stream, RAW, workers)
        for epoch in (1, 2):
            server.reset()
            seen, first = 0, 0.0
            for batch in loader:
                first = first or time.perf_counter() - started
                seen += len(batch)
            seconds = time.perf_counter() - started
            figures[f"useful/s, epoch {epoch}"] = [seen / seconds]
            figures[f"first batch, s, epoch {epoch}"] = [first]
            figures[f"MB read, epoch {epoch}"] = [server.stats()["bytes"] / 1e6]
            started = time.perf_counter()
        del loader
    return figures


def resumed(setting: Setting) -> Figures:
    """Seconds from construction to the first raw sample, of an epoch and of its last tenth."""
    first = flow(setting)
    next(iter(first))
    # Only between two batches can a run be resumed.
    state = first.state_dict(position=len(first) * 9 // 10 // BATCH * BATCH)

    def start() -> None:
        next(iter(flow(setting)))

    def resume() -> None:
        again = flow(setting)
        again.load_state_dict(state)
        next(iter(again))

    leave_out_imports()
    seconds: dict[Callable[[], None], list[float]] = {start: [], resume: []}
    for _ in range(9):
        for action, taken in seconds.items():
            before = time.perf_counter()
            action()
            taken.append(time.perf_counter() - before)
    return {"start, s": seconds[start], "resume, s": seconds[resume]}


def mixing(setting: Setting) -> Figures:
    """How much of the order of the shards is left in the order of samples, in larger shards."""
    import webdataset as wds
    from scipy import stats

    figures = {}
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        for shard in range(SHARDS):
            write_shard(Path(folder), shard, [b""] * MIXED)
        urls = urls_in(folder)
        index = index_shards(urls, progress=False)
        weights = np.exp(-losses_of_mean_weight(len(index), setting.share))
        options: Any = {"epoch_size": "distinct", "window": BUFFER, "batch_size": BATCH}
        flow_samples = FlowShards(urls, index, weights, **options)
        plain = wds.WebDataset(urls, shardshuffle=SHARDS, seed=0).shuffle(BUFFER)
        for method, samples in ((OURS, flow_samples), (PLAIN, plain)):
            shards = [sample["__url__"] for sample in samples]
            appeared = {url: place for place, url in enumerate(dict.fromkeys(shards))}
            order = np.array([appeared[url] for url in shards])
            whole = order[: order.size // BATCH * BATCH].reshape(-1, BATCH)
            in_batch = [len(np.unique(batch)) for batch in whole]
            figures[f"{method}: shards a batch"] = [float(np.mean(in_batch))]
            correlation = stats.spearmanr(order, np.arange(order.size)).statistic
            figures[f"{method}: correlation"] = [float(correlation)]
    return figures


def memory(setting: Setting) -> Figures:
    """A worker's memory above that of the process that made it, its threads and descriptors."""
    stream = flow(setting, window=AHEAD_OF, access=Access(ahead=AHEAD))
    most = {"memory": 0, "threads": 0, "descriptors": 0}
    for _ in range(2):
        # The process that makes the second worker has grown by batches of the first.
        before = anonymous_memory()
        for _ in loaded(stream.to_tuple("__key__", "jpg", "cls"), RAW, 1):
            now = worker_figures()
            now["memory"] -= before
            for name, value in now.items():
                most[name] = max(most[name], value)
    index = setting.table.index
    assert index is not None
    # A window is read with the gaps that are read over; and a batch is being made, while two are on
    # their way to the process that made the worker.
    size = float(np.mean(index.sizes))
    window = AHEAD_OF * size * (2.2 if setting.url else 1.0) + 3 * BATCH * size
    return {
        "memory, MB": [most["memory"] / 1e6],
        "bound, MB": [(AHEAD + window) / 1e6],
        "threads": [float(most["threads"])],
        "descriptors": [float(most["descriptors"])],
    }


def worker_figures() -> dict[str, int]:
    """Of the worker that runs."""
    [worker] = multiprocessing.active_children()
    root = Path(f"/proc/{worker.pid}")
    status = dict(line.split(":", 1) for line in (root / "status").read_text().splitlines())
    return {
        "memory": int(status["RssAnon"].split()[0]) * 1024,
        "threads": int(status["Threads"]),
        "descriptors": len(list((root / "fd").iterdir())),
    }


def cpu_seconds() -> float:
    """Of this process and of those that it has joined."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measured(what: str, method: str, workers: int, setting: Setting) -> Figures:
    """The figures of one process."""
    if what in (RAW, JPEG):
        return speed(method, what, workers, setting)
    if what == "epochs":
        return two_epochs(method, workers, setting)
    return {"resume": resumed, "mixing": mixing, "memory": memory}[what](setting)


def arguments(argv: list[str] | None = None) -> Iterator[Any]:
    """What to measure, the method, its workers, and the setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what")
    parser.add_argument("method")
    parser.add_argument("workers", type=int)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--url", default="")
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--shards", type=int, required=True)
    options = vars(parser.parse_args(argv))
    yield from (options.pop("what"), options.pop("method"), options.pop("workers"))
    yield Setting(**options)


if __name__ == "__main__":
    print(json.dumps(measured(*arguments())))
