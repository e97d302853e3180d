"""What the README and the guides say agrees with the code, the files and the results."""

import itertools
import re
import tomllib

import pytest
import yaml
from guides import (
    GUIDES,
    PAGES,
    README,
    ROOT,
    anchors,
    links,
    messages,
    name_of,
    read,
    section,
    table_rows,
    warned_and_raised,
)

import flowdata

GUARDS = ROOT / "flowdata" / "guards" / "README.md"
NUMBER = re.compile(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\w-])")
SCALES = {"million": 1_000_000}


def test_the_readme_is_read_to_its_end():
    text = read(README)
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1300


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_and_section_that_is_linked_exists(page):
    missing = []
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            missing.append(f"{path}#{anchor}")
    assert missing == []


def test_every_guide_is_linked_from_another_page():
    linked = {(page.parent / path).resolve() for page in PAGES for path, _ in links(page) if path}
    assert [name_of(page) for page in PAGES if page != README and page not in linked] == []


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_a_guide_names_each_file_of_its_folder_and_no_other(page):
    cells = [cell for row in table_rows(read(page)) for cell in row]
    named = set(re.findall(r"`(\w+\.py)`", " ".join(cells)))
    assert named == {path.name for path in page.parent.glob("*.py")} - {"__init__.py"}


def test_every_package_has_a_guide_and_a_place_on_the_map():
    package = ROOT / "flowdata"
    folders = {path.parent for path in package.rglob("__init__.py")} - {package}
    assert {page.parent for page in GUIDES} == folders
    on_the_map = set(re.findall(r"^- \[(\w+)/\]", section(README, "Map of the code"), re.M))
    assert on_the_map == {folder.name for folder in folders if folder.parent == package}


def test_the_versions_are_those_that_are_promised_and_tested():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = itertools.chain(*project["optional-dependencies"].values())
    needed = [*project["dependencies"], *extras]
    lowest = dict(name.split(">=") for name in needed if ">=" in name)
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in pinned if "==" in line)
    text = section(README, "Install")
    packages = [cell.strip() for cell in re.search(r"^\|.+$", text, re.M)[0].strip("|").split("|")]
    shown = {row[0]: dict(zip(packages[1:], row[1:], strict=True)) for row in table_rows(text)}
    for package in packages[1:]:
        assert shown["lowest"][package] == lowest[package], package
        assert shown["tested"][package] == tested[package], package
    assert f"Python {project['requires-python']}".replace(">=", ">= ") in text


def numbers(text):
    """Each number of a text, with the digits behind its point."""
    for match in NUMBER.finditer(text):
        digits = match[0].replace(",", "")
        scale = next(
            (SCALES[word] for word in text[match.end() :].split()[:1] if word in SCALES), 1
        )
        yield float(digits) * scale, len(digits.partition(".")[2])


def test_the_costs_are_those_that_were_measured():
    rows = table_rows(section(README, "What it costs"))
    assert len(rows) == 3
    for row in rows:
        (link,) = re.findall(r"\((benchmarks/results/[\w.-]+)\)", row[0])
        script = re.search(r"`(benchmarks/\w+\.py)", row[0])[1]
        assert (ROOT / script).is_file()
        measured = [value for value, _ in numbers((ROOT / link).read_text(encoding="utf-8"))]
        for shown, places in numbers(re.sub(r"\[.*?\]\(.*?\)", "", " ".join(row))):
            assert any(round(value, places) == shown for value in measured), (shown, link)


def pieces(text):
    return [piece for piece in re.split(r"\s*…\s*", text) if piece]


def says(text, message):
    """Whether a message has all pieces of a shortened text, in their order."""
    place = 0
    for piece in pieces(text):
        place = message.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return True


def explained():
    """The texts that the guide to warnings explains, as it shortens them."""
    cells = [row[0] for row in table_rows(read(GUARDS))]
    return [text for cell in cells for text in re.findall(r'^"(.+?)"(?: \(error\))?$', cell)]


def test_every_text_that_the_guide_explains_is_one_of_ours():
    ours = messages(ROOT / "flowdata")
    texts = explained()
    assert len(texts) > 30
    assert [text for text in texts if not any(says(text, message) for message in ours)] == []


def test_every_text_of_a_guard_and_every_warning_is_explained():
    texts = explained()
    warnings = [
        text
        for text in warned_and_raised(ROOT / "flowdata" / "guards")
        if not any(says(shown, text) for shown in texts)
    ]
    assert warnings == []


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == flowdata.__version__
    paper = citation["preferred-citation"]
    assert f"{paper['start']}--{paper['end']}" in read(README)
    assert paper["title"] in read(README)
    assert all(author["family-names"] in read(README) for author in paper["authors"])
