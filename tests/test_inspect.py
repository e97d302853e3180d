import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from flowdata import LossTable
from flowdata.cli import main
from flowdata.report.html import html_report
from flowdata.report.summary import compare, epoch_summaries, extremes, weights_of

RANDOM = np.random.default_rng(0)
LOSSES = RANDOM.gamma(2.0, size=400).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    """A table in a file, with the JSON lines it was made for."""
    rows = [{"text": f"<b>sample {row} & more</b>"} for row in range(len(LOSSES))]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "losses.parquet"
    LossTable.from_losses(LOSSES, dataset=datasets.Dataset.from_list(rows)).save(path)
    return path, data


def test_an_epoch_shows_as_many_distinct_rows_as_its_plans_do():
    table = LossTable.from_losses(LOSSES)
    weights = weights_of(table)
    from flowdata import EpochPlan

    for summary in epoch_summaries(weights):
        seen = [
            np.count_nonzero(EpochPlan(weights, epoch=e, epoch_size=summary.name).counts())
            for e in range(200)
        ]
        assert summary.draws == len(EpochPlan(weights, epoch_size=summary.name))
        assert np.mean(seen) == pytest.approx(summary.distinct, rel=0.01)


def test_extremes_are_the_lowest_and_highest_finite_losses():
    losses = np.array([3.0, np.nan, 1.0, 2.0, 5.0], dtype=np.float32)
    assert extremes(losses, 2) == ([2, 3], [4, 0])
    assert extremes(losses, 9) == ([2, 3, 0, 4], [4, 0, 3, 2])


def test_a_table_compared_with_itself_is_the_same_and_with_its_reverse_the_opposite():
    table = LossTable.from_losses(LOSSES)
    same = compare(table, table)
    assert (same.rows, same.hardest_shared) == (400, 1.0)
    assert same.correlation == pytest.approx(1.0)
    assert same.shared_draws == pytest.approx(1.0)
    opposite = compare(table, LossTable.from_losses(LOSSES.max() - LOSSES))
    assert opposite.correlation == pytest.approx(-1.0)
    assert opposite.hardest_shared == 0.0
    assert opposite.shared_draws < 0.8


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    other = LOSSES + RANDOM.gamma(2.0, size=400).astype(np.float32)
    found = compare(LossTable.from_losses(LOSSES), LossTable.from_losses(other)).correlation
    assert found == pytest.approx(spearmanr(LOSSES, other).statistic)


def test_tables_of_different_lengths_cannot_be_compared():
    with pytest.raises(ValueError, match="400 and 399"):
        compare(LossTable.from_losses(LOSSES), LossTable.from_losses(LOSSES[1:]))


def test_inspect_prints_the_summary_and_the_texts_of_extreme_samples(saved, capsys):
    path, data = saved
    assert main(["inspect", str(path), "--data", str(data), "--samples", "2"]) == 0
    text = capsys.readouterr().out
    assert f"{np.median(LOSSES):.6g}" in text
    assert "effective sample size" in text
    for row in (LOSSES.argmin(), LOSSES.argmax()):
        assert f"row {row}, loss {LOSSES[row]:.4g}: <b>sample {row}" in text


def test_the_report_is_one_page_that_loads_nothing_and_escapes_texts(saved, tmp_path, capsys):
    path, data = saved
    page = tmp_path / "report.html"
    arguments = ["inspect", str(path), "--data", str(data), "--html", str(page)]
    assert main([*arguments, "--compare", str(path)]) == 0
    text = page.read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"', text) == []
    assert "url(http" not in text
    assert "<b>sample" not in text
    assert f"&lt;b&gt;sample {LOSSES.argmax()} &amp; more" in text
    assert text.count("<svg") == 3
    assert "rank correlation" in text


def test_a_table_with_dropped_rows_and_without_data_is_reported_too():
    losses = LOSSES.copy()
    losses[:5] = np.nan
    table = LossTable.from_losses(losses)
    text = html_report(table, weights_of(table))
    assert "Hardest samples" in text
    assert "nan" not in text.lower().replace("provenance", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path, data: path.unlink(), "no loss table at"),
        (lambda path, data: data.write_text('{"text": "other"}\n'), "1 rows"),
        (lambda path, data: path.write_bytes(path.read_bytes()[:-20]), "not a readable Parquet"),
    ],
)
def test_what_does_not_fit_ends_with_status_1_and_a_message(saved, capsys, change, message):
    path, data = saved
    change(path, data)
    assert main(["inspect", str(path), "--data", str(data)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_score_on_the_command_line_writes_a_table_and_goes_on_with_a_finished_one(
    smollm2, tmp_path
):
    rows = [{"question": f"What is {a} plus {a}?", "answer": f" {a + a}."} for a in range(1, 7)] + [
        {"question": "Name a colour.", "answer": " Seventeen trombones."}
    ]
    data = tmp_path / "sums.csv"
    datasets.Dataset.from_list(rows).to_csv(str(data))
    command = [sys.executable, "-m", "flowdata", "score", "--model", str(smollm2)]
    command += ["--data", str(data), "--prompt", "question", "--response", "answer"]
    command += ["--output", str(tmp_path / "losses.parquet")]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, timeout=300) for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    table = LossTable.load(tmp_path / "losses.parquet")
    assert table.losses.argmax() == 6
    assert table.n_tokens is not None
    assert table.provenance.model == str(smollm2)
    assert "effective sample size" in second.stdout
    assert {path.name for path in Path(tmp_path).iterdir()} == {"sums.csv", "losses.parquet"}

    wrong = subprocess.run(
        [*command, "--text", "question"], capture_output=True, text=True, timeout=300
    )
    assert wrong.returncode == 1
    assert "one layout" in wrong.stderr
    assert "Traceback" not in wrong.stderr
