import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc"),
]

SAMPLER = Path(__file__).parents[1] / "benchmarks" / "sampler.py"
OURS = {"systematic", "multinomial"}
ALL = OURS | {"random", "weighted"}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SAMPLER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "results"
    done = run("--quick", "--output", folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "sampler.md").read_text() in done.stdout
    return folder


@pytest.fixture(scope="module")
def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "sampler.json").read_text())


@pytest.fixture(scope="module")
def medians(results: dict[str, Any]) -> dict[tuple[str, str, int], float]:
    return {(row["method"], row["figure"], row["n"]): row["median"] for row in results["medians"]}


def test_a_quick_run_leaves_readings_tables_and_a_picture_and_nothing_else(output: Path) -> None:
    assert {path.name for path in output.iterdir()} == {"sampler.json", "sampler.md", "sampler.png"}
    assert (output / "sampler.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    text = (output / "sampler.md").read_text()
    for label in ("FlowSampler", "FlowSampler multinomial", "RandomSampler", "WeightedRandom"):
        assert label in text


def test_every_method_is_measured_in_every_quantity_it_has(
    medians: dict[tuple[str, str, int], float],
) -> None:
    measured = {
        figure: {method for method, name, _ in medians if name == figure}
        for _, figure, _ in medians
    }
    drawing = OURS | {"weighted"}
    assert measured == {
        **dict.fromkeys(("first_s", "epoch_s", "peak_bytes"), ALL),
        **dict.fromkeys(("resume_s", "hash_s"), OURS),
        **dict.fromkeys(("count_variance", "theory_variance", "distinct"), drawing),
        **dict.fromkeys(("loader_s", "shuffle_s", "loader_ratio"), drawing),
    }
    assert all(value > 0 for value in medians.values())


def test_the_results_say_where_and_how_they_were_measured(results: dict[str, Any]) -> None:
    assert results["command"].startswith("python benchmarks/sampler.py --quick")
    assert all(results["machine"][key] for key in ("cpu", "cores", "memory_gb", "torch", "numpy"))
    assert {target["verdict"] for target in results["targets"]} <= {"PASS", "FAIL"}


def test_a_systematic_epoch_varies_less_and_shows_more_rows(
    medians: dict[tuple[str, str, int], float],
) -> None:
    rows = next(n for _, figure, n in medians if figure == "distinct")

    def figure(method: str, name: str) -> float:
        return medians[method, name, rows]

    for other in ("multinomial", "weighted"):
        assert figure("systematic", "count_variance") < 0.5 * figure(other, "count_variance")
        assert figure("systematic", "distinct") > 1.1 * figure(other, "distinct")
    # Means over 10,000 rows and 50 epochs: their standard deviation is below 0.5 %.
    for method in ("systematic", "multinomial", "weighted"):
        theory = figure(method, "theory_variance")
        assert figure(method, "count_variance") == pytest.approx(theory, rel=0.03)


def test_a_size_that_is_no_number_of_rows_is_refused_with_the_value() -> None:
    done = run("--sizes", "1e5", "0.5")
    assert done.returncode == 2
    assert "needs a whole number >= 1 such as 1e6, got '0.5'" in done.stderr
