#!/usr/bin/env python
"""Change the code at random places, one at a time, and see whether the tests notice.

The changes are those of mutmut: another operator, a number plus one, an argument that is left out,
a value that is None, ... Its command line is not used: it puts a function that chooses between
mutants in front of every one, which guards that read the call stack would see and pickles would
not find, passes over what is decorated or outside of functions, and has no samples. Here a mutant
is a file, in a copy of the repository, tested in a process of its own: first by the tests that
mirror its module, then by those beside them, then by all that `make test-quick` runs (--all).
"""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from mutations import ROOT, Mutant, changes_of, sample
from tabulate import tabulate

MODULES = (
    "core",
    "map_style",
    "streaming/order.py",
    "streaming/progress.py",
    "streaming/shared_epochs.py",
    "scoring/parts/folder.py",
    "scoring/layouts/tokens.py",
    "reweight/losses.py",
)
COPIED = ("flowdata", "tests", "benchmarks", "pyproject.toml", "README.md", "LICENSE", "Makefile")
EXPLAINED = ROOT / "tests" / "mutants.txt"
"""Mutants that no test can kill, each with the reason."""

KILLED, SURVIVED, SLOW, SAME = "killed", "survived", "took too long", "explained"
PRELOADED = (
    "datasets",
    "hypothesis.extra.numpy",
    "pyarrow.parquet",
    "scipy.stats",
    "torch.utils.data",
    "transformers",
    "webdataset",
)
LOG = "log.txt"
PATIENCE = 900.0
"""Seconds for the tests of a mutant: one that never ends is noticed, too."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    outcome: str
    by: str


def main() -> int:
    """Try a sample of mutants, and show those that live."""
    options = parser().parse_args()
    modules = list(modules_of(options.modules or MODULES))
    changes = [change for module in modules for change in changes_of(module)]
    chosen = sample(changes, options.count or len(changes), options.seed)
    print(f"{len(chosen)} of {len(changes)} mutants of {len(modules)} modules, seed {options.seed}")
    if options.list:
        print("\n\n".join(mutant.diff() for mutant in chosen))
        return 0
    explained = explained_changes()
    verdicts = [Verdict(mutant, SAME, "") for mutant in chosen if mutant.change() in explained]
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), options.jobs, options.all)
        prove_unchanged(trials, modules)
        tried = (mutant for mutant in chosen if mutant.change() not in explained)
        for verdict in trials.verdicts(tried):
            verdicts.append(verdict)
            print(f"{len(verdicts)}: {verdict.outcome} {verdict.by}", flush=True)
            if verdict.outcome == SURVIVED:
                print(textwrap.indent(verdict.mutant.diff(), "    "), flush=True)
    report = report_of(verdicts)
    print(report)
    options.output.mkdir(exist_ok=True)
    (options.output / f"seed-{options.seed}.txt").write_text(report)
    noticed = [verdict for verdict in verdicts if verdict.outcome != SURVIVED]
    return int(len(noticed) < options.least * len(verdicts))


def modules_of(names: Iterable[str]) -> Iterator[Path]:
    """The files of modules and packages, relative to the repository."""
    for name in names:
        path = ROOT / name if name.startswith("flowdata") else ROOT / "flowdata" / name
        if not path.exists():
            raise SystemExit(f"there is no module or package {path}")
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.name != "__init__.py":
                yield file.relative_to(ROOT)


def prove_unchanged(trials: "Trials", modules: Iterable[Path]) -> None:
    """Exit if tests fail without any change, which would make all mutants look killed."""
    one_of_each = {module.parent: module for module in modules}.values()
    for module in one_of_each:
        code = (ROOT / module).read_text()
        for verdict in trials.verdicts([Mutant(module, code, code)]):
            if verdict.outcome != SURVIVED:
                raise SystemExit(f"the tests of {module} fail without a mutant: {verdict.by}")


# The trials.


class Trials:
    """Mutants that are being tried, each by a child of this process, in a copy of the repository.

    The child has what tests import already, but none of ours: most tests take less time than
    importing torch does.
    """

    def __init__(self, folder: Path, jobs: int, everything: bool) -> None:
        self._folder = folder
        self._everything = everything
        self._free = [copied(folder / str(number)) for number in range(jobs)]
        self._running: dict[int, tuple[Mutant, Path, float]] = {}
        for name in PRELOADED:
            import_module(name)

    def verdicts(self, mutants: Iterable[Mutant]) -> Iterator[Verdict]:
        """What becomes of each, as they end."""
        for mutant in mutants:
            while not self._free:
                yield self._next()
            self._start(mutant)
        while self._running:
            yield self._next()

    def _start(self, mutant: Mutant) -> None:
        copy = self._free.pop()
        (copy / mutant.module).write_text(mutant.after)
        tests = tests_of(mutant.module, self._everything)
        child = os.fork()
        if child == 0:
            os._exit(tested(copy, tests))
        self._running[child] = mutant, copy, time.monotonic() + PATIENCE

    def _next(self) -> Verdict:
        """Wait for one to end. One that does not is killed, with all that it started."""
        while True:
            for child, (mutant, copy, deadline) in self._running.items():
                late = time.monotonic() > deadline
                if late:
                    os.killpg(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0 if late else os.WNOHANG)
                if ended:
                    del self._running[child]
                    (copy / mutant.module).write_text(mutant.before)
                    self._free.append(copy)
                    if late:
                        return Verdict(mutant, SLOW, f"{PATIENCE:.0f} s")
                    return verdict_of(mutant, status, (copy / LOG).read_text())
            time.sleep(0.1)


def copied(copy: Path) -> Path:
    """A copy of what tests need."""
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def tested(copy: Path, tests: list[str]) -> int:
    """Run tests in this process, a child, and return what pytest does. It never comes back."""
    os.setsid()
    os.chdir(copy)
    # A file may be changed twice in a second, which compiled files do not notice.
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(copy))
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


def tests_of(module: Path, everything: bool) -> list[str]:
    """What may notice, most likely first: the files named for a module, all of its package's."""
    package = module.parent.relative_to("flowdata")
    folder = Path("tests") / package
    named = sorted(path.relative_to(ROOT) for path in (ROOT / folder).glob(f"test_*{module.stem}*"))
    more = [Path("tests"), Path("flowdata")] if everything else []
    return [str(path) for path in (*named, folder, module.parent, *more)]


def verdict_of(mutant: Mutant, status: int, log: str) -> Verdict:
    """Whether the tests noticed, and which did."""
    if os.waitstatus_to_exitcode(status) == 0:
        return Verdict(mutant, SURVIVED, "")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log, re.MULTILINE)
    return Verdict(mutant, KILLED, f"by {failed[1] if failed else log[-300:]}")


# The report.


def explained_changes() -> set[tuple[str, str, str]]:
    """Module, line before and line after of mutants that change nothing one could test."""
    parts = EXPLAINED.read_text().split("\n\n") if EXPLAINED.exists() else []
    found = set()
    for part in parts:
        lines = [line for line in part.splitlines() if not line.startswith("#")]
        if lines:
            module, before, after = lines
            found.add((module, before.removeprefix("- "), after.removeprefix("+ ")))
    return found


def report_of(verdicts: list[Verdict]) -> str:
    """Counts by module, and the survivors."""
    outcomes = (KILLED, SLOW, SAME, SURVIVED)
    by_module: dict[str, list[str]] = {}
    for verdict in verdicts:
        by_module.setdefault(str(verdict.mutant.module), []).append(verdict.outcome)
    by_module["all"] = [verdict.outcome for verdict in verdicts]
    rows = [
        [module, *(found.count(outcome) for outcome in outcomes), share(found)]
        for module, found in sorted(by_module.items(), key=lambda pair: (pair[0] == "all", pair[0]))
    ]
    table = tabulate(rows, ["", *outcomes, "noticed or explained"])
    lives = [verdict.mutant.diff() for verdict in verdicts if verdict.outcome == SURVIVED]
    return "\n\n".join([table, *lives]) + "\n"


def share(outcomes: list[str]) -> str:
    """Of the mutants that did not survive."""
    return f"{1 - outcomes.count(SURVIVED) / len(outcomes):.1%}" if outcomes else "-"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("modules", nargs="*", help="such as core or flowdata/core/plan.py")
    made.add_argument("--count", type=int, default=100, help="mutants tried, 0 for all (100)")
    made.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    made.add_argument("--jobs", type=int, default=2, help="mutants at a time (2)")
    made.add_argument("--all", action="store_true", help="survivors meet all quick tests")
    made.add_argument("--list", action="store_true", help="show the sample, try nothing")
    made.add_argument("--least", type=float, default=0.95, help="share to be noticed (0.95)")
    made.add_argument("--output", type=Path, default=ROOT / "mutants", help="folder of reports")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
