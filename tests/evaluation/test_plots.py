"""The plots of evaluations: numbers beside the diagonal, a legend, axes, a verdict, one bar for each possible value."""

import numpy as np
import pytest

from gemma_np.evaluation import plots
from gemma_np.evaluation.bootstrap import Difference, paired_bootstrap

pytestmark = pytest.mark.plot


@pytest.fixture
def figure(monkeypatch):
    """A function that returns the figure that a plot would save."""
    saved = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: saved.append(figure))
    return lambda plot, *arguments: plot(*arguments, None) or saved[-1]


def test_numbers_stand_away_from_the_diagonal(figure):
    bins = np.array([[9, 0.3, 0.1], [30, 0.5, 0.5], [7, 0.7, 0.95], [0, 0, 0]])
    [axes] = figure(plots.plot_calibration, bins, 0.1).axes
    texts = {text.get_text(): text.xyann for text in axes.texts}
    assert texts.keys() == {"9", "30", "7"}
    for text, is_above in (("9", False), ("30", True), ("7", True)):
        right, up = texts[text]
        assert (up > 0, right < 0) == (is_above, is_above)


def test_differences_have_a_legend_a_y_axis_and_a_verdict(figure):
    right = np.arange(108) % 2 == 0
    differences = {"right answers": paired_bootstrap(right, right ^ (np.arange(108) < 9))}
    shown = figure(plots.plot_differences, differences, ("a", "b"))
    [axes] = shown.axes
    assert axes.get_ylabel() == "resamples, of 10,000"
    assert axes.get_xlabel() == "right answers:\nb minus a"
    assert "not shown to differ (p = " in axes.get_title()
    assert len(shown.legends[0].get_texts()) == 4
    counts = np.unique(differences["right answers"].resampled.round(9), return_counts=True)[1]
    bars = [patch.get_height() for patch in axes.patches if patch.get_height() > 1]
    assert sorted(bars) == sorted(counts[counts > 1])


@pytest.mark.parametrize("values", [np.zeros(10), np.linspace(0, 1, 10_000)], ids=["one value", "many"])
def test_one_or_very_many_values(figure, values):
    difference = Difference(0.0, 0.0, 0.0, 1.0, values)
    assert figure(plots.plot_differences, {"right answers": difference}, ("a", "b")).axes


def test_the_verdict_says_what_the_test_shows():
    assert Difference(0.1, 0, 0, 0.08, np.zeros(1)).verdict == "not shown to differ (p = 0.08)"
    assert Difference(0.1, 0, 0, 0.0123, np.zeros(1)).verdict == "shown to differ (p = 0.012)"
