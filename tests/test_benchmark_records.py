"""Records of benchmarks: of this version, of the one before, and where a line was cut."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Modules of the folder, for the time of a test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def records():
    import records

    return records


def test_a_name_is_measured_once_also_after_a_line_that_was_cut(records, tmp_path):
    file = tmp_path / "some.records.jsonl"
    file.write_text('["first", 1.5]\n\n["seco')
    known = records.Records(file)
    assert known.recall("first", lambda: pytest.fail("it is known")) == 1.5
    assert known.recall("second", lambda: {"old": 2}) == {"old": 2}
    assert records.Records(file).recall("second", lambda: pytest.fail("kept")) == {"old": 2}
    known.append({"kind": "run", "seed": 3})
    assert [each["kind"] for each in records.Records(file)] == ["named", "named", "run"]
    elsewhere = records.Records(tmp_path / "new.jsonl", [tmp_path])
    assert list(elsewhere.of("run")) == [{"kind": "run", "seed": 3}]


def test_the_published_records_of_language_are_read_whole(records):
    file = BENCHMARKS / "results" / "language-gpu.records.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines() if line]
    assert len(lines) > 100
    assert list(records.Records(file)) == lines
    assert len(list(records.Records(file).of("run"))) > 100


def test_records_of_other_settings_are_refused(records, tmp_path):
    from starts import check_settings

    known = records.Records(tmp_path / "some.records.jsonl")
    check_settings(known, {"epochs": 2})
    known.append({"kind": "machine"})
    known.append({"kind": "machine", "settings": {"epochs": 2, "rates": [0.1]}})
    check_settings(known, {"epochs": 2, "rates": (0.1,)})
    with pytest.raises(ValueError, match=r"some.records.jsonl has .* other settings \(rates\)"):
        check_settings(known, {"epochs": 2, "rates": (0.1, 0.2)})
