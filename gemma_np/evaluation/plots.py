"""Plots of evaluations (pip install "gemma-np[plot]")."""

from pathlib import Path

import numpy as np

from gemma_np.evaluation.bootstrap import Difference
from gemma_np.plotting import new_figure, save_figure

_MOST_BINS = 50


def plot_calibration(bins: np.ndarray, error: float, path: Path) -> None:
    """Plot accuracy over confidence; bins [10, 3] are those of `expected_calibration_error`.

    The area of a dot grows with the number of answers, which stands on the side of it that is away from the diagonal.
    """
    figure = new_figure(5.5, 4.6)
    axes = figure.subplots()
    used = bins[bins[:, 0] > 0]
    areas = 20 + 400 * used[:, 0] / used[:, 0].sum()  # square points
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect calibration")
    axes.scatter(used[:, 1], used[:, 2], s=areas, color="C0", alpha=0.8)
    for (count, confidence, accuracy), area in zip(used, areas, strict=True):
        side, distance = (1 if accuracy >= confidence else -1), np.sqrt(area / np.pi) + 2
        axes.annotate(
            f"{count:.0f}",
            (confidence, accuracy),
            (-side * 0.6 * distance, side * 0.8 * distance),
            textcoords="offset points",
            ha="right" if side > 0 else "left",
            va="bottom" if side > 0 else "top",
            fontsize=8,
        )
    axes.set(xlim=(-0.05, 1.08), ylim=(-0.12, 1.12), xlabel="confidence", ylabel="accuracy")
    axes.set_title(f"Calibration (expected error {error:.3f}), with numbers of answers", fontsize=10)
    axes.legend(frameon=False, loc="upper left")
    save_figure(figure, path)


def plot_differences(differences: dict[str, Difference], names: tuple[str, str], path: Path) -> None:
    """Plot the bootstrap distribution of each measure, with its 95 % confidence interval and a line at zero."""
    figure = new_figure(5.5 * len(differences), 4.6)
    columns = figure.subplots(1, len(differences), squeeze=False)[0]
    for axes, (label, difference) in zip(columns, differences.items(), strict=True):
        axes.axvspan(difference.low, difference.high, color="C1", alpha=0.2, label="95 % confidence interval")
        resamples = len(difference.resampled)
        axes.hist(difference.resampled, bins=_bins(difference.resampled), color="C0", label="of resampled questions")
        axes.axvline(difference.mean, color="C1", label="measured difference")
        axes.axvline(0, color="0.3", linewidth=1, linestyle="--", label="no difference")
        axes.set(xlabel=f"{label}:\n{names[1]} minus {names[0]}", ylabel=f"resamples, of {resamples:,}")
        axes.set_title(f"{difference.mean:+.4f}, {difference.verdict}", fontsize=10)
    figure.legend(*columns[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    save_figure(figure, path)


def _bins(values: np.ndarray) -> int | np.ndarray:
    """Return bins for a histogram of values [n]: one around each, if they are few, such as multiples of 1 / N."""
    distinct = np.unique(values.round(9))
    if not 1 < len(distinct) <= _MOST_BINS:
        return min(_MOST_BINS, len(distinct))
    step = np.diff(distinct).min()
    return np.arange(distinct[0] - step / 2, distinct[-1] + step, step)
