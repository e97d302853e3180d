"""publish: what a benchmark found, as a page to read, numbers to use and a figure."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Machine, Table, Target

from flowdata.files import replacing


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
    """
    command = shlex.join(["python", f"benchmarks/{script}.py", *sys.argv[1:]])
    parts = [f"# {script.capitalize()}\n\n`{command}`\n\n{machine}\n", about, *map(str, tables)]
    if goals:
        parts.append(str(table_of(goals)))
    text = "\n".join(parts)
    print(text)
    numbers: dict[str, Any] = {"command": command, "machine": vars(machine), **content}
    if goals:
        numbers["targets"] = [vars(goal) | {"verdict": goal.verdict} for goal in goals]
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name or script}.json") as path:
        path.write_text(json.dumps(numbers) + "\n")
    with replacing(folder / f"{name or script}.md") as path:
        path.write_text(text)
    with replacing(folder / f"{name or script}.png") as path:
        draw(path)


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
