"""publish: what a benchmark found, as a page to read, numbers to use and a figure."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Machine, Table, Target
from sources import OLDER, ROOT, Hashes, changed, joined, sources_of

from flowdata.files import replacing

BEGAN = time.time()


def command_line(about: str, *, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser of the options of a benchmark, with that of where its results go."""
    made = argparse.ArgumentParser(
        description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results",
        metavar="DIR",
        help="folder of the page, its numbers and the figure (default benchmarks/results)",
    )
    return made


def publish(
    folder: Path,
    script: str,
    about: str,
    tables: Iterable[Table | str],
    content: Mapping[str, Any],
    draw: Callable[[Path], None],
    *,
    machine: Machine,
    goals: Sequence[Target] = (),
    name: str | None = None,
    sources: Hashes | None = None,
) -> None:
    """Print the page, and write it, the numbers (JSON) and the figure (PNG).

    Args:
        folder: where they go.
        script: the benchmark, by the name of its file.
        about: how it was measured, in Markdown.
        tables: the page, between that and its goals.
        content: what the JSON file has beside command, machine and goals.
        draw: writes the figure to a path.
        machine: what it was measured on, before it was busy.
        goals: limits that were to be kept.
        name: of the files, if not that of the script.
        sources: what it was measured with, if that was not done now.
    """
    command = shlex.join(["python", f"benchmarks/{script}.py", *measuring(sys.argv[1:])])
    measured: dict[str, Any] = {"sources": sources or sources_until_now(script)}
    if sources is None:
        measured["took"] = round(time.time() - BEGAN, 1)
    numbers: dict[str, Any] = {"command": command, "machine": vars(machine), **measured, **content}
    older = f"{OLDER}\n\n" if changed(numbers) else ""
    title = f"# {script.capitalize()}\n\n{older}`{command}`\n\n{machine}\n"
    parts = [title, about, *map(str, tables)]
    if goals:
        parts.append(str(table_of(goals)))
    parts.append(foot(**measured))
    text = "\n".join(parts)
    print(text)
    if goals:
        numbers["targets"] = [vars(goal) | {"verdict": goal.verdict} for goal in goals]
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name or script}.json") as path:
        path.write_text(json.dumps(numbers) + "\n")
    with replacing(folder / f"{name or script}.md") as path:
        path.write_text(text)
    with replacing(folder / f"{name or script}.png") as path:
        draw(path)


def measuring(arguments: Iterable[str]) -> Iterator[str]:
    """Options without those that write the page again, or say where anything is kept."""
    left = iter(arguments)
    for argument in left:
        if argument in ("--ledger", "--output"):
            next(left, None)
        elif argument != "--page":
            yield argument


def sources_until_now(script: str) -> Hashes:
    """Hashes of a script and what it imports; one that was changed while it ran has none."""
    return {
        file: known if (ROOT / file).stat().st_mtime < BEGAN else "changed meanwhile"
        for file, known in sources_of(script).items()
    }


def foot(sources: Hashes, took: float | None = None) -> str:
    """The last line of a page."""
    known = f"Sources {joined(sources)} ({len(sources)} files, `benchmarks/sources.py`)"
    return f"{known}.\n" if took is None else f"{known}; it took {took / 60:.1f} minutes.\n"


def table_of(goals: Sequence[Target]) -> Table:
    """What was to be kept, and whether it was."""
    rows = [
        [
            goal.name,
            f"{'>=' if goal.at_least else '<='} {goal.limit:.4g}",
            "-" if goal.measured is None else f"{goal.measured:.4g}",
            goal.verdict,
        ]
        for goal in goals
    ]
    return Table("Targets", ["", "limit", "measured", ""], rows)
