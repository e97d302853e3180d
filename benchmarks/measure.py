"""What the benchmarks share: fresh processes, peak memory, results, tables, axes."""

import collections
import contextlib
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

import flowdata

Figures: TypeAlias = dict[str, list[float]]
"""What one process measured: the values by name, in seconds, bytes or as plain numbers."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Task:
    """What one process measures."""

    method: str
    n: int
    quantity: str

    @property
    def arguments(self) -> list[str]:
        """The command line that measures it."""
        return ["--measure", self.method, str(self.n), self.quantity]


@dataclass(frozen=True)
class Reading:
    """What one process measured."""

    task: Task
    round: int
    figures: Figures


class Results:
    """All readings of a run, with medians by (method, n, figure)."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self.readings = tuple(readings)
        self._values: dict[tuple[str, int, str], list[float]] = collections.defaultdict(list)
        for reading in self.readings:
            for figure, values in reading.figures.items():
                self._values[reading.task.method, reading.task.n, figure] += values

    def median(self, method: str, n: int, figure: str) -> float | None:
        """The median, or None for what was not measured."""
        values = self._values.get((method, n, figure))
        return statistics.median(values) if values else None

    def sizes(self, figure: str) -> list[int]:
        """The n for which a figure was measured, ascending."""
        return sorted({n for _, n, name in self._values if name == figure})

    def medians(self) -> list[dict[str, Any]]:
        """Every median with its spread, for the JSON file."""
        return [
            {"method": method, "n": n, "figure": figure, **summarized(values)}
            for (method, n, figure), values in self._values.items()
        ]


@dataclass(frozen=True)
class Target:
    """A limit that has to be kept, a least one if so said; ``measured`` is None if it was not."""

    name: str
    limit: float
    measured: float | None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """PASS, FAIL or "not run"."""
        if self.measured is None:
            return "not run"
        kept = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "PASS" if kept else "FAIL"


@dataclass(frozen=True)
class Machine:
    """Where the numbers were measured, and with what."""

    cpu: str
    cores: int
    memory_gb: float
    load_before: float
    python: str
    torch: str
    numpy: str
    flowdata: str

    @classmethod
    def here(cls) -> "Machine":
        """The machine this process runs on."""
        return cls(
            cpu=_field("/proc/cpuinfo", "model name") or platform.processor(),
            cores=len(os.sched_getaffinity(0)),
            memory_gb=round(_kilobytes("/proc/meminfo", "MemTotal") / 1e9, 1),
            load_before=round(os.getloadavg()[0], 2),
            python=platform.python_version(),
            torch=str(torch.__version__),
            numpy=np.__version__,
            flowdata=flowdata.__version__,
        )

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gb:g} GB; "
            f"Python {self.python}, torch {self.torch}, numpy {self.numpy}; "
            f"load average before: {self.load_before:g}"
        )


@dataclass(frozen=True)
class Table:
    """A titled table; as a text it is Markdown that can be read on a terminal as it stands."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        aligned = [
            [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines
        ]
        body = "\n".join(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])
        return f"## {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")


def in_fresh_process(script: Path, arguments: Sequence[str]) -> Figures:
    """Run ``script`` in a new interpreter with one thread and read the JSON that it prints.

    Raises:
        RuntimeError: with the end of its error output, when the process fails.
    """
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | _ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"measuring {' '.join(arguments)} ended with status {done.returncode}:\n"
            + done.stderr[-2000:]
        )
    figures: Figures = json.loads(done.stdout)
    return figures


def settle_memory(ahead: int) -> int:
    """Make all processes start from the same memory; return the resident bytes.

    Touches ``ahead`` bytes and frees them: a virtual machine gives free pages back to its host
    and gets them anew slowly, so whoever runs after a pause or a small process would pay for it.
    Then gives all freed memory back to the system, as it could be used again unseen, and
    restarts the peak.
    """
    np.ones(ahead, dtype=np.uint8)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _kilobytes("/proc/self/status", "VmRSS")


def peak_memory() -> int:
    """Most bytes this process had resident since `settle_memory`."""
    return _kilobytes("/proc/self/status", "VmHWM")


def anonymous_memory() -> int:
    """Resident bytes that are no mapped file."""
    return _kilobytes("/proc/self/status", "RssAnon")


def summarized(values: Iterable[float]) -> dict[str, Any]:
    """Median, extremes and number of the values."""
    known = list(values)
    return {
        "median": statistics.median(known),
        "low": min(known),
        "high": max(known),
        "values": len(known),
    }


def quotient(above: float | None, below: float | None) -> float | None:
    """``above / below``, or None where one of them was not measured."""
    return None if above is None or not below else above / below


def number(value: float | None, *_: object) -> str:
    """Three digits that count, or "-" for what was not measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@contextlib.contextmanager
def canvas(path: Path, *, rows: int, columns: int) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes; write them to ``path`` as PNG on leaving."""
    # Not at the top: the processes that are measured are to stay free of it.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {
        "axes.axisbelow": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "grid.color": "0.9",
    }
    with pyplot.rc_context(style):
        size = 4.6 * columns, 3.7 * rows
        figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
        yield figure, axes
        figure.savefig(path, dpi=150, format="png")
        pyplot.close(figure)


def log_log(axes: Any, title: str, along: str, what: str) -> None:
    """Dress axes for curves that span orders of magnitude."""
    axes.set(title=title, xlabel=along, ylabel=what, xscale="log", yscale="log")
    axes.grid(True, which="major")


def horizontal_bars(
    axes: Any, title: str, what: str, labels: Sequence[str], values: Sequence[float]
) -> None:
    """Bars with their values written beside them, the first at the top."""
    drawn = axes.barh(range(len(values)), values, height=0.6)
    axes.bar_label(drawn, [number(value) for value in values], padding=4)
    axes.set_yticks(range(len(values)), labels)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=what, xlim=(0, 1.15 * (max(values) or 1.0)))
    axes.grid(True, axis="x")


def _kilobytes(path: str, name: str) -> int:
    """A kB field of a file under /proc, in bytes."""
    return int(_field(path, name).split()[0]) * 1024


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def mean_and_deviation(values: Any, form: str) -> str:
    """Mean and standard deviation."""
    found = np.asarray(values, dtype=np.float64)
    mean = format(found.mean(), form)
    return f"{mean} ± {found.std(ddof=1):{form.lstrip('+')}}" if found.size > 1 else mean
