import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from flowdata import FlowDataWarning, LossTable
from flowdata.commands.cli import main
from flowdata.report.contents import contents_of
from flowdata.report.html import html_report
from flowdata.report.samples import nearest
from flowdata.report.summary import compare, epoch_summaries, weights_of

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


def test_the_nearest_rows_come_in_their_order_and_of_equal_ones_the_first():
    far = np.array([3.0, np.nan, 1.0, 2.0, 5.0, 1.0], dtype=np.float32)
    assert nearest(far, 2).tolist() == [2, 5]
    assert nearest(far, 1).tolist() == [2]
    assert nearest(-far, 2).tolist() == [4, 0]
    assert nearest(far, 9).tolist() == [2, 5, 3, 0, 4]
    many = RANDOM.integers(0, 50, 1000).astype(np.float32)
    for number in (1, 7, 500, 1000):
        assert nearest(many, number).tolist() == np.argsort(many, kind="stable")[:number].tolist()


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


def test_equal_losses_share_a_rank_as_scipys_do():
    from scipy.stats import spearmanr

    one, other = RANDOM.integers(0, 4, size=(2, 300)).astype(np.float32)
    other[:200] = one[:200]
    found = compare(
        LossTable.from_losses(one), LossTable.from_losses(other), temperature="mean"
    ).correlation
    assert found == pytest.approx(spearmanr(one, other).statistic)
    constant = LossTable.from_losses(np.ones(300))
    assert np.isnan(compare(constant, LossTable.from_losses(other), "mean").correlation)


def test_tables_of_other_data_are_compared_with_a_warning():
    one, other, unknown = (
        LossTable.from_losses([1.0, 2.0], dataset=data) for data in ([1, 2], [2, 1], None)
    )
    with pytest.warns(FlowDataWarning, match="made for different data sets"):
        compare(one, other)
    assert compare(one, one).correlation == compare(one, unknown).correlation == 1.0


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


def test_samples_are_shown_in_the_terminal_also_when_a_page_is_written(saved, tmp_path, capsys):
    path, data = saved
    page = tmp_path / "report.html"
    assert main(["inspect", str(path), "--data", str(data), "--html", str(page)]) == 0
    assert f"row {LOSSES.argmax()}, loss" in capsys.readouterr().out
    assert page.exists()


def test_samples_of_any_script_are_shown_and_chats_turn_by_turn(tmp_path, capsys):
    chat = [{"role": "user", "content": "二足す二は？"}, {"role": "assistant", "content": "四"}]
    rows = [{"text": "日本語" * 100}, {"text": chat}, {"text": {"word": "Übung"}}]
    path, data = tmp_path / "losses.parquet", tmp_path / "data.jsonl"
    LossTable.from_losses([1.0, 2.0, 3.0]).save(path)
    for row, expected in zip(
        rows,
        ["日本語" * 53 + "…", "user: 二足す二は？ assistant: 四", '{"word": "Übung"}'],
        strict=True,
    ):
        data.write_text(json.dumps(row) * 1 + "\n" + (json.dumps(row) + "\n") * 2)
        assert main(["inspect", str(path), "--data", str(data)]) == 0
        assert f"row 0 (3 rows), loss 1: {expected}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("temperature", "shown"), [("mean", "0.25"), ("quantile:0.9", "0.7"), ("3.5", "3.5")]
)
def test_a_table_whose_median_is_zero_can_be_looked_at_at_another_temperature(
    tmp_path, capsys, temperature, shown
):
    path = tmp_path / "losses.parquet"
    LossTable.from_losses([0.0, 0.0, 0.0, 1.0]).save(path)
    assert main(["inspect", str(path)]) == 1
    assert "is 0 because 75% of the losses are 0" in capsys.readouterr().err
    command = ["inspect", str(path), "--temperature", temperature, "--compare", str(path)]
    assert main(command) == 0
    found = re.search(r"temperature +([\d.]+)", capsys.readouterr().out)
    assert found is not None
    assert found[1] == shown


@pytest.mark.parametrize("temperature", ["0", "-1", "nan", "middle", "quantile:2"])
def test_a_temperature_that_is_none_is_wrong_usage(tmp_path, capsys, temperature):
    with pytest.raises(SystemExit) as leaving:
        main(["inspect", "losses.parquet", f"--temperature={temperature}"])
    assert leaving.value.code == 2
    assert "temperature must be" in capsys.readouterr().err


def test_a_page_that_cannot_be_made_is_refused_in_one_line(saved, tmp_path, capsys, monkeypatch):
    path, _ = saved
    assert main(["inspect", str(path), "--html", str(tmp_path / "none" / "page.html")]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("flowdata: there is no folder")
    assert shown.out == ""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["inspect", str(path), "--html", str(tmp_path / "page.html")]) == 1
    assert "pip install 'flowdata[plot]'" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


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
    text = html_report(contents_of(table, weights_of(table)))
    assert "Hardest samples" in text
    assert "The first: row 0, 1, 2, 3, 4." in text
    assert "nan" not in text.lower().replace("provenance", "").replace("the loss is nan", "")


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
