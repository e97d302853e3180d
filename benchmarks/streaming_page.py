"""What the streaming benchmark shows: its targets, its tables and its figure."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mosaic
import numpy as np
from measure import Results, Table, Target, canvas, horizontal_bars, number, quotient
from photographs import DRAWN, MANY, SHARDS, SHARES, losses_of_mean_weight
from places import FAR, SLOW, STALLS, Place
from streaming_methods import (
    AHEAD,
    AHEAD_OF,
    BATCH,
    BUFFER,
    HELD,
    JPEG,
    MIXED,
    MOSAIC,
    OURS,
    OURS_CACHED,
    PLAIN,
    PLAIN_CACHED,
    RAW,
    REJECTION,
    STAGE,
)

from flowdata.transport.access import Access
from flowdata.transport.planner import plan_requests
from flowdata.transport.speeds import Speed

SWEEP = {0.05: 8.0, 0.2: 4.0, DRAWN: 2.6, 1.0: 1.0}
"""By the share that is drawn, what FlowShards has to reach of rejection at 30 ms."""
HIDDEN, STALLED = 0.9, 0.2


def ratio(results: Results, name: str, workers: int, above: str, below: str) -> float | None:
    """Of a figure of two methods."""
    return quotient(results.median(above, workers, name), results.median(below, workers, name))


def targets(results: Results, places: Sequence[Place]) -> list[Target]:
    """What FlowShards has to keep."""
    goals = [goal for place in places for goal in targets_at(results, place)]
    local = results.median(OURS, 2, f"{JPEG} disk: useful/s")
    slow = results.median(OURS, 2, f"{JPEG} 30ms: useful/s")
    goals.append(
        Target("JPEG, 2 workers, 30 ms / local disk", HIDDEN, quotient(slow, local), at_least=True)
    )
    for share, least in SWEEP.items():
        for workers in (0, 2):
            measured = ratio(results, f"{swept(share)}: useful/s", workers, OURS, REJECTION)
            name = f"{share:.0%} drawn, 30 ms, {workers} workers, ours / rejection"
            goals.append(Target(name, least, measured, at_least=True))
    goals += [
        Target(f"{STALLS.title}, {workers} workers, share lost", STALLED, lost(results, workers))
        for workers in (0, 2)
    ]
    mixed = {
        (method, figure): results.median(OURS, 0, f"mixing disk: {method}: {figure}")
        for method in (OURS, PLAIN)
        for figure in ("shards a batch", "correlation")
    }
    shards = quotient(mixed[OURS, "shards a batch"], mixed[PLAIN, "shards a batch"])
    order = quotient(mixed[OURS, "correlation"], mixed[PLAIN, "correlation"])
    goals.append(Target("shards a batch, ours / webdataset", 1.0, shards, at_least=True))
    goals.append(Target("correlation, ours / webdataset", 1.0, order))
    return goals


def targets_at(results: Results, place: Place) -> Iterator[Target]:
    """What it has to keep in one column."""
    for workers in (0, 2):
        where = f"{place.title}, {workers} workers"
        for kind, other, least in (
            (RAW, PLAIN, place.plain[workers]),
            (RAW, REJECTION, place.rejection),
            (JPEG, REJECTION, place.rejection),
        ):
            speed = ratio(results, f"{kind} {place.name}: useful/s", workers, OURS, other)
            yield Target(f"{where}, {kind}, ours / {other}", least, speed, at_least=True)
        first = ratio(results, f"{RAW} {place.name}: first batch, s", workers, OURS, PLAIN)
        yield Target(f"{where}, first batch, ours / webdataset", 1.5, first)
        read = results.median(OURS, workers, f"{RAW} {place.name}: bytes read / owed")
        if read is not None or workers == 0:  # Workers do not tell what they read from a disk.
            yield Target(f"{where}, bytes read / owed", place.overread, read)
    start = results.median(OURS, 0, f"resume {place.name}: start, s")
    resume = results.median(OURS, 0, f"resume {place.name}: resume, s")
    yield Target(f"{place.title}, resume at 90 % / start", place.resume, quotient(resume, start))
    held = results.median(OURS, 1, f"memory {place.name}: memory, MB")
    bound = results.median(OURS, 1, f"memory {place.name}: bound, MB")
    yield Target(
        f"{place.title}, worker's memory / (ahead + a window + 3 batches)",
        1.0,
        quotient(held, bound),
    )
    for figure, most in (("threads", 32), ("descriptors", 64)):
        used = results.median(OURS, 1, f"memory {place.name}: {figure}")
        yield Target(f"{place.title}, worker's {figure}", most, used)


def swept(share: float) -> str:
    """The figures of a share that is drawn."""
    return f"{RAW} 30ms" + ("" if share == DRAWN else f" {shards_of(share)} {share:g}")


def shards_of(share: float) -> int:
    """In how many shards it is drawn: a small share in many, so that an epoch takes a while."""
    return MANY if share < DRAWN else SHARDS


def lost(results: Results, workers: int, method: str = OURS) -> float | None:
    """The share of speed that stalls cost."""
    stalled = results.median(method, workers, f"{RAW} {STALLS.name} {MANY}: useful/s")
    left = quotient(stalled, results.median(method, workers, f"{RAW} 30ms {MANY}: useful/s"))
    return None if left is None else 1 - left


def tables(results: Results, places: Sequence[Place]) -> list[Table]:
    """The results as tables; what was not measured at all is left out."""
    made = []
    for kind, title in ((RAW, "raw bytes"), (JPEG, "decoded JPEG")):
        stage = [STAGE] if kind == RAW else []
        methods = [OURS, *stage, PLAIN, REJECTION, HELD]
        for figure, what in (
            ("useful/s", "Useful samples a second"),
            ("first batch, s", "Seconds to the first batch"),
            ("CPU s/1,000", "Seconds of the client's processors for 1,000 useful samples"),
        ):
            made.append(by_place(results, places, methods, f"{what}, {title}", kind, figure))
    read = ("bytes read / owed", "requests/1,000", "connections")
    made.append(
        Table(
            "What FlowShards asks for",
            ["", *(f"{place.title}, {workers} w." for place in places for workers in (0, 2))],
            [
                [
                    figure,
                    *(
                        number(results.median(OURS, workers, f"{RAW} {place.name}: {figure}"))
                        for place in places
                        for workers in (0, 2)
                    ),
                ]
                for figure in read
            ],
            "Bytes of whole epochs, counted by the server, over those of the samples drawn.",
        )
    )
    made += [caches(results, places), sweep(results), stalls(results), memory(results, places)]
    made += [resume(results, places), mixing(results)]
    return [table for table in made if any(any(c != "-" for c in row[1:]) for row in table.rows)]


def by_place(
    results: Results,
    places: Sequence[Place],
    methods: Sequence[str],
    title: str,
    kind: str,
    figure: str,
) -> Table:
    """A figure of each method, a column for each place and number of workers."""
    columns = [(place, workers) for place in places for workers in (0, 2)]
    rows = [
        [
            method,
            *(
                number(results.median(method, workers, f"{kind} {place.name}: {figure}"))
                for place, workers in columns
            ),
        ]
        for method in methods
    ]
    header = ["", *(f"{place.title}, {workers} w." for place, workers in columns)]
    return Table(title, header, rows)


def caches(results: Results, places: Sequence[Place]) -> Table:
    """Whole shards kept on the disk: first and second epoch."""
    figures = ("useful/s", "first batch, s", "MB read")
    rows = [
        [
            f"{place.title}, {method}, {workers} workers",
            *(
                number(results.median(method, workers, f"epochs {place.name}: {figure}, epoch {e}"))
                for e in (1, 2)
                for figure in figures
            ),
        ]
        for place in places
        if place.conditions
        for workers in (0, 2)
        for method in (OURS_CACHED, PLAIN_CACHED, MOSAIC)
    ]
    header = ["", *(f"{figure}, epoch {epoch}" for epoch in (1, 2) for figure in figures)]
    note = "webdataset and mosaicml-streaming unweighted: all samples are useful."
    if mosaic.library() is None:
        note += f" mosaicml-streaming is not installed: {mosaic.INSTALL}"
        rows = [row for row in rows if MOSAIC not in row[0]]
    return Table("Whole shards kept on the disk (raw bytes)", header, rows, note)


def sweep(results: Results) -> Table:
    """By the share that is drawn."""
    rows = [
        [
            f"{share:.0%} of {shards_of(share)} shards",
            *(
                number(results.median(method, workers, f"{swept(share)}: useful/s"))
                for workers in (0, 2)
                for method in (OURS, REJECTION)
            ),
            number(results.median(OURS, 0, f"{swept(share)}: bytes read / owed")),
        ]
        for share in SHARES
    ]
    both = [f"{method}, {workers} workers" for workers in (0, 2) for method in (OURS, REJECTION)]
    title = "Useful samples a second by the share that is drawn, raw bytes, 30 ms"
    return Table(title, ["drawn", *both, "bytes read / owed"], rows)


def stalls(results: Results) -> Table:
    """What requests that stand still cost."""
    rows = [
        [
            method,
            *(
                cell
                for workers in (0, 2)
                for cell in (
                    number(
                        results.median(method, workers, f"{RAW} {STALLS.name} {MANY}: useful/s")
                    ),
                    number(lost(results, workers, method)),
                )
            ),
        ]
        for method in (OURS, PLAIN)
    ]
    columns = [f"{what}, {w} workers" for w in (0, 2) for what in ("useful/s", "share lost")]
    return Table(f"{STALLS.title}, raw bytes, {MANY} shards", ["", *columns], rows)


def memory(results: Results, places: Sequence[Place]) -> Table:
    """Of one worker."""
    figures = ("memory, MB", "bound, MB", "threads", "descriptors")
    rows = [
        [
            place.title,
            *(number(results.median(OURS, 1, f"memory {place.name}: {what}")) for what in figures),
        ]
        for place in places
    ]
    header = ["", "most memory, MB", "ahead, a window, 3 batches, MB", "threads", "descriptors"]
    note = (
        "Anonymous memory of a worker above that of the process that made it, with "
        f'Access(ahead="{AHEAD // 10**6}MB"), window={AHEAD_OF}. A window is counted with its '
        "gaps; one batch is being made, and two wait for the process that made the worker."
    )
    return Table("What a worker of FlowShards holds", header, rows, note)


def resume(results: Results, places: Sequence[Place]) -> Table:
    """From construction to the first raw sample."""
    rows = [
        [
            place.title,
            *(
                number(results.median(OURS, 0, f"resume {place.name}: {what}, s"))
                for what in ("start", "resume")
            ),
        ]
        for place in places
    ]
    return Table("Seconds to the first raw sample", ["", "start", "resume at 90 %"], rows)


def mixing(results: Results) -> Table:
    """How well the order of shards is dissolved."""
    rows = [
        [
            method,
            *(
                number(results.median(OURS, 0, f"mixing disk: {method}: {figure}"))
                for figure in ("shards a batch", "correlation")
            ),
        ]
        for method in (OURS, PLAIN)
    ]
    header = ["", f"shards in a batch of {BATCH}", "rank correlation with shard order"]
    title = f"Mixing with {BUFFER} samples in memory, shards of {MIXED}"
    return Table(title, header, rows)


def draw(results: Results, places: Sequence[Place], path: Path) -> None:
    """Speed with no and two workers, and the requests that are chosen for one shard."""
    methods = (OURS, STAGE, PLAIN, REJECTION)
    with canvas(path, rows=3, columns=max(len(places), 3)) as (figure, axes):
        for row, workers in zip(axes[:2], (0, 2), strict=True):
            for part, place in zip(row, places, strict=False):
                name = f"{RAW} {place.name}: useful/s"
                speeds = [results.median(method, workers, name) or 0.0 for method in methods]
                title = f"{place.title}, {workers} workers"
                horizontal_bars(part, title, "useful samples/s", methods, speeds)
            for part in row[len(places) :]:
                part.set_axis_off()
        grid = axes[2, 0].get_gridspec()
        for part in axes[2]:
            part.remove()
        draw_requests(figure.add_subplot(grid[2, :]))


def draw_requests(axes: Any) -> None:
    """One shard: the samples that are drawn, and the requests for them at three latencies."""
    random = np.random.default_rng(0)
    sizes = random.integers(25_000, 60_000, 250) // 512 * 512
    offsets = np.cumsum(sizes) - sizes
    losses = losses_of_mean_weight(sizes.size, 0.2)
    drawn = np.flatnonzero(random.random(sizes.size) < np.exp(-losses))
    axes.broken_barh(spans(offsets[drawn], sizes[drawn]), (3.6, 0.6), color="C1")
    ways = ((0.0, 1e9), (SLOW["latency"], SLOW["bandwidth"]), (FAR["latency"], FAR["bandwidth"]))
    labels = []
    for height, (latency, bandwidth) in enumerate(reversed(ways)):
        begins = plan_requests(
            offsets[drawn],
            sizes[drawn],
            Speed(latency, bandwidth),
            connections=4,
            most_overread=getattr(Access(), "most_overread", 2.2),
        )
        lasts = drawn[np.append(begins[1:], drawn.size) - 1]
        firsts = offsets[drawn[begins]]
        requests = spans(firsts, offsets[lasts] + sizes[lasts] - firsts)
        for number_, span in enumerate(requests):
            axes.broken_barh([span], (height, 0.6), color=("C0", "C2")[number_ % 2])
        labels.append(f"{latency * 1000:.0f} ms: {len(requests)} requests")
    heights = [height + 0.3 for height in (0, 1, 2)]
    axes.set_yticks([*heights, 3.9], [*labels, f"{drawn.size} samples drawn"])
    title = "Requests for the drawn samples of one shard, 4 connections to it"
    axes.set(title=title, xlabel="MB of the shard")


def spans(firsts: Any, lengths: Any) -> list[tuple[float, float]]:
    """In megabytes."""
    return list(zip((firsts / 1e6).tolist(), (lengths / 1e6).tolist(), strict=True))
