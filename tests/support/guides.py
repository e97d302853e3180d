"""The README and the guides beside the code, taken apart: examples, links, headings, tables."""

import ast
import re
import string
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = sorted(ROOT.glob("flowdata/**/README.md"))
FURTHER = sorted(set(ROOT.glob("flowdata/**/*.md")) - set(GUIDES))
"""Pages beside a guide, about one of its subjects."""
PAGES = [README, *GUIDES, *FURTHER, ROOT / "tests" / "README.md", ROOT / "benchmarks" / "README.md"]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)
_CODE = re.compile(r"`[^`\n]*`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the line at which that begins."""

    language: str
    text: str
    line: int


def name_of(page: Path) -> str:
    """A page's path inside the repository."""
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    """The text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = read(page)
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1)
        for match in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def links(page: Path) -> list[tuple[str, str]]:
    """(path, anchor) of each link of a page into this repository; "" for the page itself."""
    targets = _LINK.findall(_CODE.sub("", prose(page)))
    inside = [target for target in targets if not target.startswith(("http:", "https:"))]
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in inside)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    kept = set(string.ascii_lowercase + string.digits + "-_ ")
    found = set()
    for heading in _HEADING.findall(prose(page)):
        text = "".join(letter for letter in heading.lower() if letter in kept)
        found.add(text.strip().replace(" ", "-"))
    return found


def section(page: Path, title: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    text = read(page)
    begin = re.search(rf"^(#+) {re.escape(title)}$", text, re.M)
    if begin is None:
        raise LookupError(f"{name_of(page)} has no section {title!r}")
    rest = text[begin.end() :]
    # Comments of a shell look like headings: those of fenced blocks do not count.
    outside = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), rest)
    end = re.search(rf"^#{{1,{len(begin[1])}}} ", outside, re.M)
    if end is None:
        return rest
    return "".join(rest.splitlines(keepends=True)[: outside.count("\n", 0, end.start())])


def table_rows(text: str) -> list[list[str]]:
    """The cells of all rows of tables, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    rules = [place for place, line in enumerate(lines) if "-" in line and set(line) <= set("|-: ")]
    heads = {place - 1 for place in rules}
    return [row for place, row in enumerate(rows) if place not in heads and place not in rules]


def messages(folder: Path) -> list[str]:
    """The texts that a package warns of and raises, with … in place of values."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        found += [
            _text(node)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
        ]
    return [text for text in found if " " in text]


def warned_and_raised(folder: Path) -> list[str]:
    """Those of them that are passed to a warning or an exception directly."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            raised = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
            call = node.exc if raised else node
            if not isinstance(call, ast.Call) or not call.args:
                continue
            if raised or "warn" in ast.unparse(call.func) or "advise" in ast.unparse(call.func):
                found.append(_text(call.args[0]))
    return [text for text in found if " " in text]


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…" if isinstance(node, ast.FormattedValue) else ""
