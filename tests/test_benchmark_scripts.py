"""Each benchmark runs in a small size and leaves its table, figures and numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from long_run import some

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "theory": ["--samples", "100000"],
    "reweight": ["--small", "--steps", "3"],
    "streaming": [
        *("--samples", "12", "--seconds", "0.1", "--places", "30ms", "--workers", "0"),
        *("--only", "raw", "resume", "mixing"),
    ],
    "scale": ["--sizes", "2e3"],
    "packing": [
        *("--sources", "code", "--texts", "100", "--longest", "64", "--max-lengths", "64"),
        *("--tokens", "128", "--rounds", "1", "--layers", "1"),
        *("--draws", "10000", "--repeats", "1"),
    ],
    "frameworks": ["--steps", "5", "--rounds", "1", "--repeats", "1", "--only", "torch"],
}


# What reads TRL and a language model in processes of their own is left to the long run.
QUICK = [name for name in SMALL if name != "packing"]


@pytest.mark.parametrize("name", some(SMALL, *QUICK))
def test_a_small_run_leaves_a_table_numbers_and_a_picture(tmp_path, name):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *SMALL[name]]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for kind in ("json", "md", "png")
    }
    text = (tmp_path / f"{name}.md").read_text()
    assert text in done.stdout
    results = json.loads((tmp_path / f"{name}.json").read_text())
    assert results["command"].startswith(f"python benchmarks/{name}.py")
    assert {target["verdict"] for target in results["targets"]} <= {"PASS", "FAIL", "not run"}
    if name == "theory":
        exact = [target for target in results["targets"] if target["limit"] == 1e-10]
        assert len(exact) == 2
        assert all(target["verdict"] == "PASS" for target in exact)


@pytest.mark.parametrize(
    "name", ["vision", "modes", "noise", "language", "scoring", "sampler", *SMALL]
)
def test_every_benchmark_explains_itself(name):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout
