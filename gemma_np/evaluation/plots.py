"""Plots of evaluations (pip install "gemma-np[plot]")."""

from pathlib import Path

import numpy as np

from gemma_np.evaluation.bootstrap import Difference
from gemma_np.plotting import new_figure, save_figure


def plot_calibration(bins: np.ndarray, error: float, path: Path) -> None:
    """Plot accuracy over confidence; bins [10, 3] are those of `expected_calibration_error`.

    The area of a dot grows with the number of answers.
    """
    figure = new_figure(5.5, 4.2)
    axes = figure.subplots()
    used = bins[bins[:, 0] > 0]
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect calibration")
    axes.scatter(used[:, 1], used[:, 2], s=20 + 400 * used[:, 0] / used[:, 0].sum(), color="C0", alpha=0.8)
    for count, confidence, accuracy in used:
        axes.annotate(
            f"{count:.0f}", (confidence, accuracy), (0, 12), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set(xlim=(0, 1.02), ylim=(-0.05, 1.1), xlabel="confidence", ylabel="accuracy")
    axes.set_title(f"Calibration (expected error {error:.3f}), with numbers of answers")
    axes.legend(frameon=False, loc="upper left")
    save_figure(figure, path)


def plot_differences(differences: dict[str, Difference], names: tuple[str, str], path: Path) -> None:
    """Plot the bootstrap distribution of each measure, with its 95 % confidence interval and a line at zero."""
    figure = new_figure(5.5 * len(differences), 4.2)
    columns = figure.subplots(1, len(differences), squeeze=False)[0]
    for axes, (label, difference) in zip(columns, differences.items(), strict=True):
        axes.hist(difference.resampled, bins=min(40, len(np.unique(difference.resampled))), color="C0", alpha=0.5)
        axes.axvline(0, color="0.3", linewidth=1, linestyle="--")
        for edge in (difference.low, difference.high):
            axes.axvline(edge, color="C1", linewidth=1)
        axes.set(xlabel=f"{label}: {names[1]} minus {names[0]}", yticks=[])
        axes.set_title(
            f"{difference.mean:+.4f} (95 %: {difference.low:+.4f} to {difference.high:+.4f}), p = {difference.p:.3f}",
            fontsize=10,
        )
    save_figure(figure, path)
