"""Agreement of a small model's losses with a large one's, on a sample of the rows."""

import numpy as np
import pytest

from flowdata.core.agreement import agreement, stratified_rows


def losses(rows, noise, seed):
    """Losses of a small and of a large model, that differ by so much noise."""
    random = np.random.default_rng(seed)
    small = random.gamma(2.0, size=rows)
    return small, 0.8 * small * np.exp(noise * random.standard_normal(rows))


def truth(small, large):
    """The figures by all rows, as anyone would write them down."""
    ranks = [np.argsort(np.argsort(each)) for each in (small, large)]
    p, q = (np.exp(-each / np.median(each)) for each in (small, large))
    p, q = p / p.mean(), q / q.mean()
    return (
        np.corrcoef(*ranks)[0, 1],
        np.abs(p - q).mean() / 2,
        np.abs(1 - q).mean() / 2,
        np.median(np.abs(p / q - 1)),
    )


def figures(found):
    return found.rank_correlation, found.moved, found.moved_if_uniform, found.weight_error


@pytest.mark.parametrize("rows", [33, 500, 501])
def test_a_sample_of_all_rows_gives_the_figures_of_all_without_any_doubt(rows):
    small, large = losses(rows, 0.4, seed=rows)
    chosen = stratified_rows(small, rows)
    assert np.array_equal(chosen, np.arange(rows))
    found = figures(agreement(small, chosen, large))
    assert [each.value for each in found] == pytest.approx(truth(small, large), rel=1e-12)
    assert all(each.low == pytest.approx(each.value) == each.high for each in found)


def test_known_values():
    small, large = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    found = agreement(small, np.arange(5), large)
    # 1 - 6 * (1 + 1 + 1 + 1) / (5 * 24)
    assert found.rank_correlation.value == pytest.approx(0.8)
    # Of equal losses each has the middle of their ranks: 1.5, 1.5, 3, 4.5, 4.5 against 1 to 5.
    ties = agreement(small, np.arange(5), np.array([1.0, 1, 2, 3, 3]))
    assert ties.rank_correlation.value == pytest.approx(9 / np.sqrt(9 * 10))
    assert agreement(small, np.arange(5), 2 * small).moved.value == pytest.approx(0)
    with pytest.raises(ValueError, match="median loss of the large model is 0"):
        agreement(small, np.arange(5), [0.0, 0, 0, 0, 1])


def test_figures_do_not_depend_on_the_order_of_the_sample():
    small, large = losses(3000, 0.5, seed=1)
    rows = stratified_rows(small, 200)
    shuffled = np.random.default_rng(0).permutation(rows)
    first, second = (agreement(small, each, large[each]) for each in (rows, shuffled))
    for one, other in zip(figures(first), figures(second), strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-9)
        assert one.low == pytest.approx(other.low, rel=0.1)


@pytest.mark.parametrize(("noise", "sample"), [(0.1, 64), (0.5, 256), (1.0, 128)])
def test_intervals_cover_the_truth_as_often_as_they_say(noise, sample, monkeypatch):
    monkeypatch.setattr("flowdata.core.agreement._REPLICATES", 200)
    small, large = losses(5000, noise, seed=7)
    expected, trials = np.array(truth(small, large)), 60
    covered, values = np.zeros(4), []
    for seed in range(trials):
        rows = stratified_rows(small, sample, seed=seed)
        found = figures(agreement(small, rows, large[rows], seed=seed))
        covered += [
            low <= true <= high for (_, low, high), true in zip(found, expected, strict=True)
        ]
        values.append([each.value for each in found])
    # Of 60 intervals that cover in 90 % of all cases, fewer than 41 do once in a million times.
    assert (covered >= 41).all()
    spread = np.std(values, axis=0)
    assert np.mean(values, axis=0) == pytest.approx(expected, abs=0.6 * spread.max())


def test_a_stratified_sample_says_more_than_one_of_any_rows():
    small, large = losses(5000, 0.2, seed=3)
    expected = truth(small, large)[2]
    random, errors = np.random.default_rng(0), []
    for seed in range(60):
        any_rows = np.sort(random.choice(5000, 128, replace=False))
        for rows in (stratified_rows(small, 128, seed=seed), any_rows):
            q = np.exp(-large[rows] / np.median(large[rows]))
            errors.append(np.abs(1 - q / q.mean()).mean() / 2 - expected)
    ours, others = np.array(errors).reshape(-1, 2).std(axis=0)
    assert ours < 0.9 * others


def test_the_sample_has_rows_of_all_losses_and_leaves_out_invalid_ones():
    small = np.random.default_rng(0).gamma(2.0, size=1000)
    small[::10] = np.nan
    rows = stratified_rows(small, 160, seed=4)
    assert rows.size == 160
    assert (np.diff(rows) > 0).all()
    assert not np.isnan(small[rows]).any()
    places = np.searchsorted(np.sort(small[~np.isnan(small)]), small[rows])
    assert (np.bincount(places * 16 // 900, minlength=16) >= 9).all()
    assert np.array_equal(rows, stratified_rows(small, 160, seed=4))
    assert not np.array_equal(rows, stratified_rows(small, 160, seed=5))
    with pytest.raises(ValueError, match="at least 2 rows"):
        stratified_rows([1.0, np.nan], 5)


def test_a_row_that_the_large_model_never_draws_counts():
    small = np.linspace(1, 2, 64)
    large = small.copy()
    large[:8] = np.nan
    found = agreement(small, np.arange(64), large)
    p = np.exp(-small / np.median(small))
    assert found.moved.value > 0.9 * (p[:8] / p.sum()).sum()
    assert found.rank_correlation.value < 0.5


def test_samples_that_do_not_fit_are_refused():
    small, large = losses(100, 0.1, seed=0)
    rows = stratified_rows(small, 40)
    with pytest.raises(ValueError, match="39 losses and 40 rows"):
        agreement(small, rows, large[rows][1:])
    with pytest.raises(ValueError, match="39 of them different"):
        agreement(small, [*rows[:-1], rows[0]], large[rows])
    with pytest.raises(ValueError, match="no row of 8 of 16"):
        agreement(small, np.argsort(small)[:50], large[:50])
    small[5] = np.nan
    with pytest.raises(ValueError, match="row 5 has no valid loss"):
        agreement(small, np.arange(100), large)


def test_what_is_shown():
    small, large = losses(2000, 0.3, seed=0)
    rows = stratified_rows(small, 256)
    text = str(agreement(small, rows, large[rows]))
    assert "256 of 2,000 rows" in text
    assert text.count("% to ") == 3
