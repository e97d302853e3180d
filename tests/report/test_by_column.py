"""What each group of rows gets: the summary, the command line, the page, the figure."""

import json
import re
import sys

import datasets
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from flowdata import FlowWeights, LossTable, mix
from flowdata.commands.cli import main
from flowdata.report.contents import contents_of
from flowdata.report.html import html_report

mpl.use("Agg")
RANDOM = np.random.default_rng(1)
ROWS = 600
MEDIANS = {"code": 0.4, "chat": 0.9, "web": 2.8}
SOURCE = np.array(list(MEDIANS))[RANDOM.integers(0, 3, ROWS)]
LOSSES = (np.array([MEDIANS[name] for name in SOURCE]) * RANDOM.gamma(4.0, 1 / 3.67, ROWS)).astype(
    np.float32
)
LENGTHS = RANDOM.integers(1, 50, ROWS) + 100 * (SOURCE == "web")
TABLE = LossTable.from_losses(LOSSES, lengths=LENGTHS)


@pytest.fixture
def saved(tmp_path):
    """A table in a file, with the JSON lines it was made for."""
    rows = [
        {"text": f"sample {row}", "source": str(name), "odd": row % 2, "tags": ["a"]}
        for row, name in enumerate(SOURCE)
    ]
    rows[0]["source"] = None
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "losses.parquet"
    table = LossTable.from_losses(LOSSES, dataset=datasets.Dataset.from_list(rows), lengths=LENGTHS)
    table.save(path)
    return path, data


def test_the_summary_has_the_figures_numpy_computes_of_each_group():
    losses = LOSSES.copy()
    losses[:20] = np.nan
    weights = LossTable.from_losses(losses, lengths=LENGTHS).weights(on_invalid="drop")
    summary = weights.summary(groups=SOURCE)
    assert [group.name for group in summary.groups] == ["chat", "code", "web"]
    draws = weights.relative / weights.total
    for group in summary.groups:
        rows = group.name == SOURCE
        assert group.rows == rows.sum()
        assert group.median_loss == pytest.approx(np.nanmedian(losses[rows]))
        assert group.share_of_rows == pytest.approx(rows.mean())
        assert group.share_of_draws == pytest.approx(draws[rows].sum())
        tokens = draws * LENGTHS
        assert group.share_of_tokens == pytest.approx(tokens[rows].sum() / tokens.sum())
        assert group.ess == pytest.approx(draws[rows].sum() ** 2 / (draws[rows] ** 2).sum())


def test_a_group_that_gets_less_than_half_of_its_rows_is_noted_unless_that_was_asked_for():
    (note,) = TABLE.weights().summary(groups=SOURCE).notes
    share = np.mean(SOURCE == "web")
    assert note.startswith(f"web ({share:.1%} of the rows, ")
    assert "shares" not in note.partition(":")[0]
    starving = {"web": 0.1, "code": 1, "chat": 1}
    asked = TABLE.weights(groups=SOURCE, shares=starving)
    assert not asked.summary().notes
    assert not asked.summary(groups=SOURCE).notes
    assert not mix({"a": TABLE, "b": TABLE}, shares={"a": 1, "b": 0}).summary().notes
    # Nobody asked for it where other groups have shares, or these have what their weights give.
    odd = np.arange(ROWS) % 2
    (note,) = TABLE.weights(groups=odd, shares="equal").summary(groups=SOURCE).notes
    assert note.startswith("web (")
    cold = TABLE.weights(1.0, groups=SOURCE, shares="flow")
    assert [note[:4] for note in cold.summary().notes] == ["web "]
    assert not TABLE.weights(groups=SOURCE).summary().notes


def test_the_text_has_a_line_for_each_group_and_leaves_out_what_is_not_known():
    lines = str(TABLE.weights(groups=SOURCE, shares="equal").summary()).splitlines()
    assert lines[-4].split("  ")[0] == "group"
    assert [line.split()[0] for line in lines[-3:]] == ["chat", "code", "web"]
    assert all("33.3%" in line for line in lines[-3:])
    assert len({len(line) for line in lines[-4:]}) == 1
    text = str(FlowWeights.from_weights(RANDOM.random(ROWS)).summary(groups=SOURCE))
    assert "median loss" not in text
    assert "of tokens" not in text
    many = str(TABLE.weights().summary(groups=np.arange(ROWS) // 5))
    assert many.count("\n") < 70
    assert "\n70 more groups\n" in many


def test_inspect_shows_what_rows_of_each_value_of_a_column_get(saved, capsys):
    path, data = saved
    command = ["inspect", str(path), "--data", str(data), "--samples", "1"]
    assert main([*command, "--by", "source"]) == 0
    text = capsys.readouterr().out
    for name in ("chat", "code", "web", r"\(none\)"):
        assert re.search(rf"^{name} +\d", text, re.M), name
    assert re.search(r"^note: .*web \(", text, re.M)
    assert "easiest samples" in text
    assert main([*command, "--by", "odd"]) == 0
    assert re.search(r"^1 +300 ", capsys.readouterr().out, re.M)


def test_inspect_prints_json_for_programs(saved, capsys, tmp_path):
    path, data = saved
    command = ["inspect", str(path), "--json", "--samples", "2"]
    page = tmp_path / "page.html"
    more = ["--data", str(data), "--by", "source", "--compare", str(path), "--html", str(page)]
    assert main([*command, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = TABLE.weights().summary(groups=np.where(np.arange(ROWS) == 0, "(none)", SOURCE))
    for group, expected in zip(found["weights"]["groups"], summary.groups, strict=True):
        assert group == pytest.approx(vars(expected))
    assert found["weights"]["temperature"] == summary.temperature
    assert found["weights"]["notes"] == list(summary.notes)
    assert found["compared"]["shared_draws"] == pytest.approx(1.0)
    assert [each["row"] for each in found["hardest"]] == np.argsort(-LOSSES)[:2].tolist()
    assert found["quantiles"]["0.5"] == pytest.approx(np.median(LOSSES))
    assert found["epochs"][0]["draws"] == found["table"]["rows"] == ROWS
    assert page.exists()
    assert main(command) == 0
    alone = json.loads(capsys.readouterr().out)
    assert (alone["compared"], alone["weights"]["groups"]) == (None, [])


def test_json_has_no_numbers_that_are_none(tmp_path, capsys):
    path = tmp_path / "losses.parquet"
    LossTable.from_losses([1.0, 1.0, np.nan]).save(path)
    assert main(["inspect", str(path), "--json", "--compare", str(path)]) == 0

    def refuse(name):
        raise AssertionError(name)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["compared"]["correlation"] is None


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("topic", "no column 'topic'; it has text, source, odd, tags"),
        ("tags", r"column 'tags': .*a whole number or a boolean: 600 of 600 rows have none"),
    ],
)
def test_a_column_that_makes_no_groups_is_refused(saved, capsys, column, message):
    path, data = saved
    assert main(["inspect", str(path), "--data", str(data), "--by", column]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_column_needs_data_and_json_losses(saved, tmp_path, capsys):
    path, _ = saved
    assert main(["inspect", str(path), "--by", "source"]) == 1
    assert "--by source is a column of the data: give --data too" in capsys.readouterr().err


def test_the_page_has_groups_and_shows_weights_of_any_kind(saved, tmp_path, capsys):
    path, data = saved
    page = tmp_path / "page.html"
    command = ["inspect", str(path), "--data", str(data), "--by", "source", "--html", str(page)]
    assert main(command) == 0
    text = page.read_text(encoding="utf-8")
    assert ">Groups</h2>" in text
    assert f"web ({np.sum(SOURCE[1:] == 'web'):,})" in text
    for weights, how in (
        (TABLE.weights(groups=SOURCE, shares="equal"), "one for each of 3 groups"),
        (TABLE.weights(function=lambda losses, tau: losses < tau), "a function of the losses"),
        (TABLE.weights().times(LOSSES < 1), "a product of weights"),
        (FlowWeights.from_weights(RANDOM.random(ROWS)), "given weights"),
    ):
        text = html_report(contents_of(TABLE, weights))
        assert f"<b>{how}</b>" in text
        assert text.count("<svg") == 3 + (weights.groups is not None)
        assert (">Groups</h2>" in text) == (weights.groups is not None)


# Figures.


def drawn(weights, axes=None):
    axes = Figure().subplots() if axes is None else axes
    assert weights.plot(axes) is axes
    return axes


def test_a_plot_is_drawn_into_the_axes_that_are_given_or_into_new_ones():
    figure = Figure()
    drawn(TABLE.weights(), figure.subplots())
    new = TABLE.weights().plot()
    assert new.figure is not figure
    assert len(new.figure.axes) == 2


def test_the_plot_of_a_function_shows_the_weight_of_each_loss():
    axes = drawn(TABLE.weights(function=lambda losses, tau: 1 / (1 + losses)))
    assert sum(patch.get_height() for patch in axes.containers[0].patches) == ROWS
    x, y = axes.figure.axes[1].lines[0].get_data()
    assert np.allclose(y, (1 + LOSSES.min()) / (1 + x))
    assert len(x) > 400


def test_the_plot_of_groups_shows_each_by_its_name_and_of_many_the_largest():
    weights = TABLE.weights(groups=SOURCE, shares="equal")
    axes = drawn(weights)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[:3] == [f"{name} ({np.sum(name == SOURCE)})" for name in ("chat", "code", "web")]
    assert len(axes.figure.axes[1].lines) == 3
    many = drawn(TABLE.weights(groups=np.arange(ROWS) % 40))
    # The last ones are stacked on all others.
    tops = [patch.get_y() + patch.get_height() for patch in many.containers[-1].patches]
    assert sum(tops) == ROWS
    assert any("others" in text.get_text() for text in many.get_legend().get_texts())
    dollars = drawn(TABLE.weights(groups=np.where(SOURCE == "web", "$a_$", "b$")))
    dollars.figure.savefig("/dev/null", format="png")


def test_weights_whose_losses_are_not_known_are_drawn_by_falling_weight():
    weights = FlowWeights.from_weights(RANDOM.random(ROWS))
    axes = drawn(weights)
    x, y = axes.lines[0].get_data()
    assert np.allclose(
        y, np.sort(weights.expected_counts())[::-1][np.round(x / 100 * ROWS - 0.5).astype(int)]
    )


def test_without_matplotlib_a_plot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flowdata\[plot\]'"):
        TABLE.weights().plot()
