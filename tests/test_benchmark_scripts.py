"""Each benchmark runs in a small size and leaves its table, figures and numbers."""

import json
import os
import re
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


@pytest.fixture(scope="module")
def small_assets(tmp_path_factory):
    """The environment of a benchmark that finds small stand-ins for its real models and data."""
    folder = tmp_path_factory.mktemp("assets")
    program = Path(__file__).parent / "programs" / "small_assets.py"
    subprocess.run([sys.executable, str(program), str(BENCHMARKS), str(folder)], check=True)
    return os.environ | {"FLOWDATA_ASSETS": str(folder), "OMP_NUM_THREADS": "1"}


QUICK_VISION = {
    "vision": ["--tasks", "clothes, wrong labels"],
    "vision-backbone": [
        *("--preset", "backbone"),
        *("--tasks", "ImageNet to clothes, wrong labels"),
    ],
}


@pytest.mark.parametrize("name", some(QUICK_VISION, "vision-backbone"))
def test_vision_goes_on_after_a_cut_and_its_tables_have_all_methods(tmp_path, small_assets, name):
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "output"
    command = [
        *(sys.executable, str(BENCHMARKS / "vision.py"), *QUICK_VISION[name], "--quick"),
        *("--seeds", "1", "--choosing", "1", "--epochs", "1", "--processes", "1"),
        *("--ledger", str(ledger), "--output", str(output)),
    ]

    def run(*more):
        done = subprocess.run(
            [*command, *more], env=small_assets, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    run("--no-page")
    assert not output.exists()
    lines = ledger.read_text().splitlines()
    known = {json.loads(line).get("name") for line in lines if line} - {None}
    # As if the process had been killed while it wrote the last line.
    ledger.write_text("\n".join(lines)[:-5])
    run()
    read = [json.loads(line) for line in ledger.read_text().splitlines() if line[-1:] == "}"]
    again = [record["name"] for record in read if record["kind"] == "named"]
    assert len(again) == len(known) == len(set(again))

    assert {path.name for path in output.iterdir()} == {
        f"{name}.{kind}" for kind in ("json", "md", "png")
    }
    ((run_of_seed,),) = json.loads((output / f"{name}.json").read_text())["results"].values()
    means = [run_of_seed[method]["mean"] for method in run_of_seed]
    assert len(means) == 22
    page = (output / f"{name}.md").read_text()
    (table,) = re.findall(r"## .*\(1 seed\)\n\n((?:\|.*\n)+)", page)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert {row[0] for row in rows} == set(run_of_seed)
    assert [float(row[1]) for row in rows] == pytest.approx(sorted(means, reverse=True), abs=0.06)
    assert "probe scored" in page

    # The page once more, which measures nothing.
    before = ledger.read_text()
    run("--page")
    assert ledger.read_text() == before
    assert (output / f"{name}.md").read_text() == page
    ledger.write_text(before.replace('"name": "', '"name": "other ', 1))
    done = subprocess.run([*command, "--page"], env=small_assets, capture_output=True, check=False)
    assert b"not everything is measured yet" in done.stderr
    assert done.returncode == 1


ALL = ["vision", "modes", "noise", "language", "language_speed", "scoring", "sampler", *SMALL]
HELP = """
import contextlib, io, json, runpy, sys

folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
found = {}
for name in names:
    sys.argv = [f"{folder}/{name}.py", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            found[name] = end.code, shown.getvalue()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def explained():
    """How each ends that is asked for help, and what it prints: in one process, torch is slow."""
    command = [sys.executable, "-c", HELP, str(BENCHMARKS), *ALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ALL)
def test_every_benchmark_explains_itself(name, explained):
    code, shown = explained[name]
    assert code == 0
    assert f"{name}.py" in shown
    assert "--output" in shown
