"""Pages of benchmarks know the code that they were measured with."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IMPORTS = """\
from helper import twice
from flowdata import FlowSampler
from flowdata.reweight import reweight
"""
SCRIPT = f'''\
"""A benchmark."""
{IMPORTS}
STARTED = ["started.py"]


def main():
    """Measure."""
    print(f"{{twice(2)}} {{FlowSampler}}{{reweight}}")  # both
'''
FILES = {
    "benchmarks/speed.py": SCRIPT,
    "benchmarks/helper.py": "def twice(value):\n    return 2 * value\n",
    "benchmarks/started.py": "import speed_page\n",
    "benchmarks/speed_page.py": "import unused\n",
    "benchmarks/unused.py": "",
    "flowdata/__init__.py": (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from flowdata.draws.sampler import FlowSampler\n"
    ),
    "flowdata/draws/__init__.py": "from flowdata.draws.other import other\n",
    "flowdata/draws/sampler.py": "from flowdata.arrays import even\n",
    "flowdata/draws/other.py": "other = 1\n",
    "flowdata/arrays.py": "even = 2\n",
    "flowdata/reweight/__init__.py": (
        "from flowdata.reweight.losses import losses\n\n\ndef reweight():\n    return losses\n"
    ),
    "flowdata/reweight/losses.py": "losses = 3\n",
}
MEASURED = [
    "benchmarks/helper.py",
    "benchmarks/speed.py",
    "benchmarks/started.py",
    "flowdata/arrays.py",
    "flowdata/draws/sampler.py",
    "flowdata/reweight/__init__.py",
    "flowdata/reweight/losses.py",
]


@pytest.fixture(scope="module")
def sources():
    spec = importlib.util.spec_from_file_location("sources", BENCHMARKS / "sources.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clone(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def numbers(sources, clone):
    """What a page of the clone holds, right after it was measured."""
    hashes = sources.sources_of("speed", clone)
    return {"command": "python benchmarks/speed.py --small", "sources": hashes}


def test_a_script_depends_on_the_modules_that_define_what_it_imports(numbers):
    assert list(numbers["sources"]) == MEASURED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""Measure."""', '"""Measure it\n    twice."""'),
        ("  # both", ""),
        ("def main():", "def main() -> None:"),
        (IMPORTS, f"from helper import (\n    twice,\n)\n{IMPORTS.rpartition('twice')[2]}"),
        (IMPORTS, "".join(sorted(IMPORTS.splitlines(keepends=True)))),
        ('"started.py"', "'started.py',"),
        ("\n\n\ndef", "\n\ndef"),
    ],
    ids=["docstring", "comment", "annotation", "brackets", "order", "quotes", "layout"],
)
def test_what_changes_no_number_is_not_noticed(sources, clone, numbers, before, after):
    assert before in SCRIPT
    (clone / "benchmarks/speed.py").write_text(SCRIPT.replace(before, after))
    assert sources.changed(numbers, clone) == []


@pytest.mark.parametrize("name", MEASURED)
def test_code_that_takes_part_is_noticed(sources, clone, numbers, name):
    file = clone / name
    file.write_text(f"{file.read_text()}\nmore = 1\n")
    assert sources.changed(numbers, clone) == [name]


@pytest.mark.parametrize("name", sorted(set(FILES) - set(MEASURED) - {"flowdata/__init__.py"}))
def test_code_that_takes_no_part_is_not_noticed(sources, clone, numbers, name):
    (clone / name).write_text(f"{FILES[name]}\nmore = 1\n")
    assert sources.changed(numbers, clone) == []


def test_a_module_or_a_script_that_is_gone_is_noticed(sources, clone, numbers):
    (clone / "flowdata/arrays.py").unlink()
    assert sources.changed(numbers, clone) == ["flowdata/arrays.py"]
    (clone / "benchmarks/speed.py").unlink()
    assert sources.changed(numbers, clone) == MEASURED


def test_a_module_that_has_moved_is_the_same_source_unless_it_was_changed_too(
    sources, clone, numbers
):
    sampler = clone / "flowdata/draws/sampler.py"
    sampler.write_text(FILES["flowdata/draws/sampler.py"].replace("arrays", "tables.arrays"))
    (clone / "flowdata/tables").mkdir()
    moved = (clone / "flowdata/arrays.py").rename(clone / "flowdata/tables/arrays.py")
    assert sources.changed(numbers, clone) == []
    moved.write_text("even = 4\n")
    assert sources.changed(numbers, clone) == ["flowdata/arrays.py", "flowdata/tables/arrays.py"]


def test_a_page_is_marked_once_and_no_longer_where_it_is_measured_again(sources, tmp_path):
    page, text = tmp_path / "speed.md", "# Speed\n\n`command`\n\n| table |\n"
    page.write_text(text)
    for _ in range(2):
        sources.mark(page, older=True)
        assert page.read_text() == text.replace("# Speed\n", f"# Speed\n\n{sources.OLDER}\n")
    sources.mark(page, older=False)
    assert page.read_text() == text


def test_every_page_is_as_its_sources_are_or_says_that_it_is_older(sources):
    """Where this fails, `python benchmarks/sources.py --mark` says so in the page."""
    pages = list(sources.pages())
    assert len(pages) > 10
    told = {page.name: sources.OLDER in page.read_text() for page, _ in pages}
    assert told == {page.name: bool(sources.changed(numbers)) for page, numbers in pages}


def test_make_measures_every_page_and_runs_every_script(sources):
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    for page, numbers in sources.pages():
        assert numbers["command"].removeprefix("python ") in makefile, page.name
    scripts = [file.name for file in BENCHMARKS.glob("*.py") if "publish(" in file.read_text()]
    named = [name for name in scripts if not name.endswith("_page.py") and name != "publishing.py"]
    assert len(named) >= 10
    assert [name for name in named if f"benchmarks/{name}" not in makefile] == []
