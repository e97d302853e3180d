"""What the streaming benchmark shows: its targets, its tables and its figure."""

from pathlib import Path

from measure import Results, Table, Target, canvas, horizontal_bars, number, quotient

OURS, STAGE, PLAIN, REJECTION = "FlowShards", "resample", "webdataset", "rejection"
RESUME, MIXING, KEYS = "resume", "mixing", "keys"
LOCAL, HTTP = "local", "http"
METHODS = (OURS, STAGE, PLAIN, REJECTION)
BATCH, BUFFER = 64, 1000


def targets(results: Results) -> list[Target]:
    """What FlowShards and resample have to keep."""

    def ratio(above: str, below: str, workers: int, source: str) -> float | None:
        name = f"{source} useful/s"
        return quotient(results.median(above, workers, name), results.median(below, workers, name))

    goals = []
    for source in (LOCAL, HTTP):
        for workers in (0, 2):
            where = f"{source}, {workers} workers"
            goals += [
                Target(f"webdataset / ours, {where}", 1.0, ratio(PLAIN, OURS, workers, source)),
                Target(
                    f"rejection / ours, {where}", 1 / 1.8, ratio(REJECTION, OURS, workers, source)
                ),
            ]
        read = results.median(OURS, 0, f"{source} bytes read / owed")
        goals.append(Target(f"bytes read / owed, {source}", 1.15, read))
        start = results.median(RESUME, 0, f"{source} start, s")
        resume = results.median(RESUME, 0, f"{source} resume, s")
        goals.append(Target(f"resume at 90 % / start, {source}", 2.0, quotient(resume, start)))
    mixed = {
        (method, figure): results.median(MIXING, 0, f"{method} {figure}")
        for method in (OURS, PLAIN)
        for figure in ("shards a batch", "correlation")
    }
    shards = quotient(mixed[PLAIN, "shards a batch"], mixed[OURS, "shards a batch"])
    order = quotient(mixed[OURS, "correlation"], mixed[PLAIN, "correlation"])
    goals.append(Target("shards a batch, webdataset / ours", 1.0, shards))
    goals.append(Target("correlation, ours / webdataset", 1.0, order))
    for rows in results.sizes("bytes a key"):
        held = results.median(KEYS, rows, "bytes a key")
        goals.append(Target(f"resample, bytes a key of {rows:,}", 40.0, held))
    return goals


def tables(results: Results) -> list[Table]:
    """The results as tables."""
    made = []
    for source in (LOCAL, HTTP):
        rows = [
            [
                method,
                *(
                    number(results.median(method, workers, f"{source} {figure}"))
                    for workers in (0, 2)
                    for figure in ("useful/s", "first batch, s")
                ),
            ]
            for method in METHODS
        ]
        header = ["", "useful/s", "first batch, s", "useful/s, 2 workers", "first batch, s"]
        made.append(Table(f"Shards from {source}", header, rows))
    rows = [
        [source, *(number(results.median(RESUME, 0, f"{source} {what}, s")) for what in both)]
        for source in (LOCAL, HTTP)
        for both in [("start", "resume")]
    ]
    made.append(Table("Seconds to the first raw sample", ["", "start", "resume at 90 %"], rows))
    rows = [
        [
            method,
            number(results.median(MIXING, 0, f"{method} shards a batch")),
            number(results.median(MIXING, 0, f"{method} correlation")),
        ]
        for method in (OURS, PLAIN)
    ]
    header = ["", f"shards in a batch of {BATCH}", "rank correlation with shard order"]
    made.append(Table(f"Mixing with {BUFFER} samples in memory", header, rows))
    rows = [
        [
            f"{size:,}",
            *(
                number(results.median(KEYS, size, figure))
                for figure in ("us a sample", "bytes a key", "peak bytes a key")
            ),
        ]
        for size in results.sizes("us a sample")
    ]
    header = ["keys", "us a raw sample", "bytes a key", "peak bytes a key"]
    note = "Bytes a key above the table, which is mapped from its file; peak in a pass above that."
    made.append(Table("The resample stage", header, rows, note))
    return made


def draw(results: Results, path: Path) -> None:
    """Speed with two workers."""
    with canvas(path, rows=1, columns=2) as (_, axes):
        for part, source in zip(axes, (LOCAL, HTTP), strict=True):
            title = f"{source}, 2 workers: useful samples/s"
            speeds = [results.median(method, 2, f"{source} useful/s") or 0.0 for method in METHODS]
            horizontal_bars(part, title, "samples/s", METHODS, speeds)
