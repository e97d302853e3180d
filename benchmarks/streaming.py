#!/usr/bin/env python
"""Streaming: FlowShards against what one would otherwise take, from the disk and from a server."""

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mosaic
from measure import Machine, Reading, Results, Task, in_fresh_process
from photographs import DRAWN, MANY, SHARDS, SHARES, write_shards
from places import PLACES, STALLS, Place, served
from publishing import command_line, publish
from serving import Served
from streaming_methods import (
    BATCH,
    BUFFER,
    HELD,
    JPEG,
    MOSAIC,
    OURS,
    OURS_CACHED,
    PLAIN,
    PLAIN_CACHED,
    RAW,
    REJECTION,
    STAGE,
)
from streaming_page import draw, swept, tables, targets
from tqdm import tqdm

HELP = """\
Stream samples (JPEG, crops of real photographs) from tar shards on the local disk, and from a
server in a process of its own that has an object store's latency, bandwidth and manners. Each
measurement is made in a process of its own, round after round.
"""

PARTS = ("raw", "jpeg", "caches", "resume", "sweep", "stalls", "memory", "mixing")


def about(options: argparse.Namespace) -> str:
    """How it was measured."""
    epochs = f"whole epochs for at least {options.seconds:g} s"
    return f"""\
{SHARDS} shards of {options.samples} JPEG images of 400 x 300 (22-62 KB), crops of three
photographs. By their weights {DRAWN:.0%} of an epoch is drawn, without repeats. Useful samples are
those that a training would see: {epochs}, in batches of {BATCH}, workers and
first batch included, by a process that has not seen the server before, but has imported urllib3, as
one that trains by transformers has. The server gives its first
byte after the latency, and its bandwidth to each connection; asked for several ranges it
answers as "{options.ranges}" (single: with the whole object, as S3, GCS and MinIO do). It and the
clients share this machine's cores. "Local disk" is the page cache.

- FlowShards: window={BUFFER}, epoch_size="distinct", else as by default.
- resample: the stage, before .shuffle({BUFFER}), in a webdataset pipeline.
- webdataset: unweighted, .shuffle({BUFFER}): all samples are useful.
- rejection: the same, and what was read (and decoded) is kept with probability w / max w.
- in memory: the samples that are drawn, read before: what decoding and the DataLoader allow.
- mosaicml-streaming: unweighted, shuffled in blocks of {BUFFER}; it has no reader of plain HTTP, so
  it reads the same server by its S3 client, and keeps whole shards on the disk.
"""


def main() -> None:
    """Measure everything, each in a process of its own."""
    options = parser().parse_args()
    if options.quick:
        options.seconds = min(options.seconds, 1.0)
        options.repeats, options.places = 1, ["30ms", "disk"]
    machine = Machine.here()
    with tempfile.TemporaryDirectory(dir=options.data) as folder:
        samples = write_shards(Path(folder), options.samples)
        if mosaic.library() is not None:
            shard = sum(len(picture) for picture, _ in samples) // SHARDS
            mosaic.write_shards(Path(folder), samples, shard)
        places = tuple(place for place in PLACES if place.name in options.places)
        with served(Path(folder), (*PLACES, STALLS), options.ranges) as servers:
            results = Results(readings(options, folder, places, servers))
    publish(
        options.output,
        "streaming",
        about(options),
        tables(results, places),
        {"medians": results.medians()},
        partial(draw, results, places),
        machine=machine,
        goals=targets(results, places),
    )


def held_at(place: str) -> list[str]:
    """What is in memory is measured once."""
    return [HELD] if place == "disk" else []


def planned(options: argparse.Namespace, places: tuple[Place, ...]) -> list[tuple[Task, float]]:
    """What is measured, and by which share of samples is drawn; one round."""
    names = [place.name for place in places]
    remote = [place.name for place in places if place.conditions]
    tasks = {
        "raw": [
            Task(method, workers, f"{RAW} {name}")
            for name in names
            for workers in options.workers
            for method in (OURS, STAGE, PLAIN, REJECTION, *held_at(name))
        ],
        "jpeg": [
            Task(method, workers, f"{JPEG} {name}")
            for name in names
            for workers in options.workers
            for method in (OURS, PLAIN, REJECTION, *held_at(name))
        ],
        "caches": [
            Task(method, workers, f"epochs {name}")
            for name in remote
            for workers in options.workers
            for method in (OURS_CACHED, PLAIN_CACHED, MOSAIC)
            if method != MOSAIC or mosaic.library() is not None
        ],
        "resume": [Task(OURS, 0, f"resume {name}") for name in names],
        "stalls": [
            Task(method, workers, f"{RAW} {place} {MANY}")
            for place in ("30ms", STALLS.name)
            for workers in options.workers
            for method in (OURS, PLAIN)
        ],
        "memory": [Task(OURS, 1, f"memory {name}") for name in names],
        "mixing": [Task(OURS, 0, "mixing disk")],
    }
    made = [(task, DRAWN) for part in tasks if part in options.only for task in tasks[part]]
    if "sweep" in options.only:
        made += [
            (Task(method, workers, swept(share).removesuffix(f" {share:g}")), share)
            for share in SHARES
            if share != DRAWN or "raw" not in options.only
            for workers in options.workers
            for method in (OURS, REJECTION)
        ]
    return made


def readings(
    options: argparse.Namespace,
    folder: str,
    places: tuple[Place, ...],
    servers: dict[str, Served],
) -> Iterator[Reading]:
    """All measurements, round after round, so that a slow minute meets all methods."""
    script = Path(__file__).with_name("streaming_methods.py")
    tasks = planned(options, places)
    rounds = [(round_, task, share) for round_ in range(options.repeats) for task, share in tasks]
    for round_, task, share in tqdm(rounds, unit="process"):
        kind, place, *many = task.quantity.split()
        # Long enough for several stalls.
        seconds = options.seconds * (4 if place == STALLS.name else 1)
        command = [kind, task.method, str(task.n), "--folder", folder]
        command += ["--share", str(share), "--seconds", str(seconds)]
        command += ["--shards", *(many or [str(SHARDS)])]
        if place in servers:
            command += ["--url", servers[place].url]
            if place == STALLS.name:  # The same requests stall in each process.
                servers[place].answer(**(STALLS.conditions or {}), ranges=options.ranges)
        figures = in_fresh_process(script, command)
        drawn = "" if share == DRAWN else f" {share:g}"
        where = {f"{task.quantity}{drawn}: {name}": value for name, value in figures.items()}
        yield Reading(task, round_, where)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP, epilog=f"For the rows of mosaicml-streaming: {mosaic.INSTALL}")
    made.add_argument("--samples", type=int, default=500, help="samples a shard (default 500)")
    made.add_argument("--seconds", type=float, default=3.0, help="of each speed (default 3)")
    made.add_argument("--repeats", type=int, default=1, help="rounds (default 1)")
    made.add_argument("--quick", action="store_true", help="one short round of two places")
    made.add_argument("--ranges", default="single", help="single (default), multi or none")
    names = [place.name for place in PLACES]
    made.add_argument("--places", nargs="+", default=names, choices=names, help="default all")
    made.add_argument("--workers", nargs="+", type=int, default=(0, 2), choices=(0, 2), help="both")
    made.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="default all parts")
    made.add_argument("--data", type=Path, help="where the shards go, 2 GB for a while")
    return made


if __name__ == "__main__":
    main()
