import numpy as np
import pytest
from matplotlib.figure import Figure

from flowdata import FlowWeights
from flowdata.report.plots import plot_kept_against_learned, plot_losses
from flowdata.report.summary import text_table


def test_a_table_aligns_its_columns_and_keeps_numbers_as_they_were_written():
    lines = text_table(["a", "number"], [["long name", "1.50"], ["b", "1,000"]]).splitlines()
    assert [line.split()[-1].strip("-") for line in lines] == ["number", "", "1.50", "1,000"]
    assert len({len(line) for line in lines}) == 1


def test_the_histogram_counts_every_loss_and_shows_temperature_and_weight():
    losses = np.random.default_rng(0).gamma(2.0, size=500)
    weights = FlowWeights.from_losses(losses)
    axes = Figure().subplots()
    plot_losses(axes, {"good": losses[:300], "bad": losses[300:]}, weights)
    assert sum(patch.get_height() for patch in axes.containers[0].patches) == 300
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any(f"{weights.temperature:.3g}" in text for text in texts)
    x, y = axes.figure.axes[1].lines[0].get_data()
    assert np.allclose(y, np.exp(-x / weights.temperature))


def test_a_loss_far_out_does_not_squeeze_the_others_and_is_counted_in_a_note():
    losses = np.append(np.random.default_rng(0).gamma(2.0, size=999), [1e6])
    axes = Figure().subplots()
    plot_losses(axes, {"all": losses}, FlowWeights.from_losses(losses))
    heights = [patch.get_height() for patch in axes.containers[0].patches]
    assert max(heights) < 200
    beyond = losses.size - sum(heights)
    assert 1 <= beyond <= 6
    assert f"{beyond:.0f} beyond" in axes.get_xlabel()
    assert "1e+06" in axes.get_xlabel()


def test_weights_without_a_temperature_have_no_curve_to_draw():
    with pytest.raises(ValueError, match="from_losses"):
        plot_losses(Figure().subplots(), {"all": np.ones(2)}, FlowWeights.from_weights([1.0, 2.0]))


def test_kept_against_learned_shows_each_run_each_mean_and_the_start():
    axes = Figure().subplots()
    runs = {"one": [(1.0, 2.0), (3.0, 4.0)], "two": [(5.0, 6.0)]}
    plot_kept_against_learned(axes, runs, start=(0.0, 9.0))
    shown = [points.get_offsets().tolist() for points in axes.collections]
    assert shown == [[[1, 2], [3, 4]], [[2, 3]], [[5, 6]], [[5, 6]], [[0, 9]]]
