#!/usr/bin/env python
"""Sources: the code that a page was measured with, and whether it is still the same."""

import argparse
import ast
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Hashes: TypeAlias = dict[str, str]
"""Of each module that takes part in a measurement, by its path in the repository."""

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
OLDER = "Measured with older sources: `make stale` tells what has changed since."
UNKNOWN = ["not known: the page is from before pages kept hashes"]
# What makes pages of numbers changes none of them.
_WRITES_PAGES = ("_page", "_figures", "publishing", "sources")
_PACKAGE = "flowdata"
# No part of what a program does; `kind`, `type_params` are not those of all versions of Python.
_NOT_HASHED = {"annotation", "returns", "ctx", "kind", "type_comment", "type_params"}

HELP = """\
List the pages whose sources have changed since they were measured: the script, the modules of
benchmarks/ and of flowdata that it imports, without comments, docstrings, annotations and layout.
"""


def sources_of(script: str, root: Path = ROOT) -> Hashes:
    """Hashes of a script of benchmarks/, and of all of ours that it imports.

    Of a package, only the modules of the names that are imported are taken.
    """
    found: dict[Path, str] = {}
    left = [root / "benchmarks" / f"{script}.py"]
    while left:
        file = left.pop()
        if file not in found and not file.stem.endswith(_WRITES_PAGES):
            tree = _parsed(file)
            found[file] = _hash(tree)
            left += _imported(tree, root)
    return {file.relative_to(root).as_posix(): found[file] for file in sorted(found)}


def changed(numbers: Mapping[str, Any], root: Path = ROOT) -> list[str]:
    """The files that are not as they were when numbers (the JSON of a page) were measured.

    One that has another path now, and the same contents, is as it was.
    """
    if "sources" not in numbers:
        return UNKNOWN
    before: Hashes = numbers["sources"]
    script = Path(numbers["command"].split()[1])
    now = sources_of(script.stem, root) if (root / script).exists() else {}
    gone = {file: found for file, found in before.items() if file not in now}
    new = {file: found for file, found in now.items() if file not in before}
    moved = Counter(gone.values()) & Counter(new.values())
    other = [file for file in before.keys() & now if before[file] != now[file]]
    return sorted([*other, *_without(gone, moved), *_without(new, moved)])


def _without(hashes: Hashes, moved: Counter[str]) -> list[str]:
    """The files but as many of each hash as were moved."""
    left = moved.copy()
    found = []
    for file, known in hashes.items():
        if left[known]:
            left[known] -= 1
        else:
            found.append(file)
    return found


def joined(hashes: Hashes) -> str:
    """One hash of all."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:12]


def _parsed(file: Path) -> ast.Module:
    """A module without what only type checkers read."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = [ast.Pass()]
    return tree


def _hash(tree: ast.Module) -> str:
    return hashlib.sha256(repr(_form(tree)).encode()).hexdigest()[:12]


def _form(part: Any) -> Any:
    """A syntax tree as tuples. Imports are left out: what is imported is hashed itself."""
    if isinstance(part, list):
        return [_form(each) for each in part if not _is_silent(each)]
    if isinstance(part, ast.JoinedStr):
        # Python 3.12 has empty texts in some.
        part = ast.JoinedStr([each for each in part.values if _text(each) != ""])
    if not isinstance(part, ast.AST):
        return part
    fields = [
        (name, _form(value))
        for name, value in ast.iter_fields(part)
        if name not in _NOT_HASHED and value is not None and value != []
    ]
    return type(part).__name__, fields


def _is_silent(node: Any) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(_text(node.value), str)
    return isinstance(node, ast.Import | ast.ImportFrom)


def _text(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def _imported(tree: ast.Module, root: Path) -> Iterator[Path]:
    """The modules of ours whose names a module imports, or that it starts by their name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(alias.name, root)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield from _defining(str(node.module), alias.name, root)
        elif isinstance(node, ast.Constant) and str(node.value).endswith(".py"):
            yield from _existing(root / "benchmarks" / Path(str(node.value)).name)


def _module(name: str, root: Path) -> Iterator[Path]:
    """The file of a module of ours, if it is one."""
    if name.partition(".")[0] != _PACKAGE:
        yield from _existing(root / "benchmarks" / f"{name}.py")
    elif name != _PACKAGE:
        place = root / Path(*name.split("."))
        yield from _existing(place.with_suffix(".py"), place / "__init__.py")


def _defining(module: str, name: str, root: Path) -> Iterator[Path]:
    """The module that has a name, where a package has it from another one."""
    init = root / Path(*module.split(".")) / "__init__.py"
    if module.partition(".")[0] != _PACKAGE or not init.exists():
        yield from _module(module, root)
    elif place := list(_module(f"{module}.{name}", root)):
        yield from place
    else:
        origin = _exported(init).get(name)
        yield from _defining(*origin, root) if origin else [init]


@functools.cache
def _exported(init: Path) -> dict[str, tuple[str, str]]:
    """By name, (module, name there) of what a package has from others, lazily or not."""
    found = {}
    # Also what only type checkers read: there the package itself names what it imports lazily.
    for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {
                alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names
            }
    return found


def _existing(*files: Path) -> Iterator[Path]:
    yield from (file for file in files if file.is_file())


# Pages.


def pages(folder: Path = RESULTS) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each page with its numbers."""
    for file in sorted(folder.rglob("*.json")):
        yield file.with_suffix(".md"), json.loads(file.read_text())


def mark(page: Path, *, older: bool) -> None:
    """Say in a page, below its title, that it is older, or no longer say so."""
    title, *lines = [line for line in page.read_text().split("\n\n") if line != OLDER]
    page.write_text("\n\n".join([title, *([OLDER] if older else []), *lines]))


def main() -> None:
    """List what has changed since each page."""
    options = parser().parse_args()
    seconds, timed = 0.0, 0
    for page, numbers in pages():
        files = changed(numbers)
        seconds, timed = seconds + numbers.get("took", 0.0), timed + ("took" in numbers)
        print(f"{page.name}: {'sources have changed' if files else 'as its sources are'}")
        print("".join(f"    {file}\n" for file in files), end="")
        if options.mark:
            mark(page, older=bool(files))
    print(f"{timed} pages say how long their measurement took: {seconds / 60:.0f} minutes in all")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--mark", action="store_true", help="say so in the pages")
    return made


if __name__ == "__main__":
    main()
