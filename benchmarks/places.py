"""Where the streaming benchmark's shards lie: on the disk, and behind several kinds of latency."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving import Served, serving


@dataclass(frozen=True)
class Place:
    """A column of the tables.

    Attributes:
        name: short, for command lines.
        title: for readers.
        conditions: of the server, see `answering.Conditions`; None for the local disk.
        plain: what FlowShards has to reach of plain webdataset, by number of workers.
        rejection: and of rejection.
        overread: bytes read over bytes owed that are allowed.
        resume: seconds to resume over seconds to start that are allowed.
    """

    name: str
    title: str
    conditions: Mapping[str, Any] | None = None
    plain: Mapping[int, float] = field(default_factory=dict)
    rejection: float = 0.0
    overread: float = 0.0
    resume: float = 0.0


SLOW = {"latency": 0.03, "bandwidth": 80e6}
FAR = {"latency": 0.1, "bandwidth": 40e6}
PLACES = (
    Place("30ms", "30 ms, 80 MB/s", SLOW, {0: 2.0, 2: 1.3}, 2.6, 2.2, 1.5),
    Place("100ms", "100 ms, 40 MB/s", FAR, {0: 2.5, 2: 1.4}, 2.8, 2.2, 1.5),
    Place("0ms", "no latency", {}, {0: 1.0, 2: 1.0}, 1.8, 1.15, 2.0),
    Place("disk", "local disk", None, {0: 1.05, 2: 1.05}, 1.8, 1.15, 2.0),
)
STALLS = Place("stalls", "30 ms, 1 in 20 stalls 5 s", {**SLOW, "stall": 0.05, "stall_seconds": 5.0})


@contextlib.contextmanager
def served(folder: Path, places: tuple[Place, ...], ranges: str) -> Iterator[dict[str, Served]]:
    """Yield a server for each place that has one, by name."""
    with contextlib.ExitStack() as stack:
        yield {
            place.name: stack.enter_context(
                serving(folder, **{**place.conditions, "ranges": ranges})
            )
            for place in places
            if place.conditions is not None
        }
