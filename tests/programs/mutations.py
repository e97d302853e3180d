"""Mutants: a module with one small change, made by the operators of mutmut and some of ours."""

import ast
import difflib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    module: Path
    before: str
    after: str

    def diff(self) -> str:
        """The lines that differ, with where they are."""
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), lineterm="", n=1
        )
        return "\n".join([str(self.module), *list(lines)[2:]])

    def change(self) -> tuple[str, str, str]:
        """The module, and its changed lines before and after, however they are indented."""
        lines = [line for line in self.diff().splitlines()[1:] if line[0] in "-+"]
        before, after = (
            " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"
        )
        return str(self.module), before, after


class Sites(libcst.CSTVisitor):
    """The nodes of a module that may be changed."""

    def __init__(self) -> None:
        self.nodes: list[libcst.CSTNode] = []

    def on_visit(self, node: libcst.CSTNode) -> bool:
        """Collect a node. What says nothing at run time, and texts of errors, are passed over."""
        if isinstance(
            node,
            libcst.Annotation
            | libcst.Decorator
            | libcst.Import
            | libcst.ImportFrom
            | libcst.ConcatenatedString,
        ):
            return False
        if isinstance(node, libcst.If) and "TYPE_CHECKING" in source(node.test):
            return False
        if isinstance(node, libcst.AnnAssign) and "TypeAlias" in source(node.annotation.annotation):
            return False
        if isinstance(node, libcst.Expr) and isinstance(node.value, libcst.SimpleString):
            return False
        self.nodes.append(node)
        return True


def source(node: libcst.CSTNode) -> str:
    """The text of a node."""
    return libcst.Module([]).code_for_node(node)


def left_out(node: libcst.Expr) -> Iterator[libcst.CSTNode]:
    """Instead of a statement that is a call, nothing."""
    if isinstance(node.value, libcst.Call):
        yield libcst.Pass()


def nothing_returned(node: libcst.Return) -> Iterator[libcst.CSTNode]:
    """Instead of a value, None."""
    if node.value is not None and source(node.value) != "None":
        yield node.with_changes(value=libcst.Name("None"))


def negated(node: libcst.If) -> Iterator[libcst.CSTNode]:
    """The condition the other way round."""
    test = node.test.with_changes(lpar=[libcst.LeftParen()], rpar=[libcst.RightParen()])
    yield node.with_changes(
        test=libcst.UnaryOperation(libcst.Not(), test),
        whitespace_before_test=libcst.SimpleWhitespace(" "),
    )


OPERATORS: list[tuple[type, Callable[..., Iterable[libcst.CSTNode]]]] = [
    *mutation_operators,
    (libcst.Expr, left_out),
    (libcst.Return, nothing_returned),
    (libcst.If, negated),
]


@dataclass(frozen=True)
class Change:
    """A node of a module's tree, and what stands in its place."""

    module: Path
    tree: libcst.Module
    node: libcst.CSTNode
    changed: libcst.CSTNode

    def mutant(self) -> Mutant:
        """The module with this change."""
        return Mutant(
            self.module, self.tree.code, self.tree.deep_replace(self.node, self.changed).code
        )


def changes_of(module: Path) -> Iterator[Change]:
    """Every change of a module; some come to the same."""
    tree = libcst.parse_module((ROOT / module).read_text())
    sites = Sites()
    tree.visit(sites)
    for node in sites.nodes:
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                for changed in operator(node):
                    yield Change(module, tree, node, changed)


def sample(changes: list[Change], count: int, seed: int) -> list[Mutant]:
    """So many different mutants, or all of them, in random order."""
    random.Random(seed).shuffle(changes)
    chosen: dict[str, Mutant] = {}
    for change in changes:
        mutant = change.mutant()
        if mutant.after != mutant.before and is_python(mutant.after):
            chosen.setdefault(mutant.after, mutant)
        if len(chosen) == count:
            break
    return list(chosen.values())


def is_python(code: str) -> bool:
    """Whether it can be compiled at all."""
    try:
        compile(code, "mutant", "exec", ast.PyCF_ONLY_AST)
    except SyntaxError:
        return False
    return True
