"""The language benchmark, on made-up texts and a model of two layers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from long_run import LONG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TEXTS = Path(__file__).parent / "programs" / "small_texts.py"
METHODS = ["standard", "standard, lr x mean(w)", "FLOW", "WiSE-FT 0.5", "FLOW + WiSE-FT 0.5"]


def test_language_goes_on_after_a_cut_and_its_page_has_all_methods(tmp_path):
    assets, output = tmp_path / "assets", tmp_path / "output"
    environment = os.environ | {"FLOWDATA_ASSETS": str(assets), "OMP_NUM_THREADS": "1"}
    command = [
        *(sys.executable, str(BENCHMARKS / "language.py"), "--preset", "smoke", "--device", "cpu"),
        *("--tasks", "scans, harmful samples", "--methods", *METHODS, "--processes", "1"),
        *("--output", str(output)),
    ]

    def run(*more):
        done = subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def page():
        numbers = json.loads((output / "language-smoke.json").read_text())
        assert "benchmarks/lab.py" in numbers["sources"]
        return numbers, (output / "language-smoke.md").read_text()

    subprocess.run([sys.executable, str(TEXTS), str(BENCHMARKS), str(assets)], check=True)
    run()
    numbers, text = page()
    assert set(numbers["runs"]["scans, harmful samples"]) == {"pre-trained", *METHODS}
    assert all(f"\n| {method} " in text for method in METHODS)
    assert "**Not finished.**" not in text

    # As if it had been cut in its last training: that method lacks, and so does the seed.
    records = output / "language-smoke.records.jsonl"
    lines = records.read_text().splitlines()
    (place,) = [place for place, line in enumerate(lines) if '"FLOW"' in line]
    records.write_text("\n".join([*lines[:place], *lines[place + 1 :], lines[place][:-9]]) + "\n")
    run("--page")
    numbers, text = page()
    assert numbers["runs"] == {}
    assert "**Not finished.**" in text
    if LONG:
        run()
        known = [json.loads(line) for line in records.read_text().splitlines() if line[-1] == "}"]
        done = [each["method"] for each in known if each["kind"] == "run"]
        assert sorted(done) == sorted(["pre-trained", *METHODS])
