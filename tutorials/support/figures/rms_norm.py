"""Figures of tutorial 4: how the residual stream grows, and the factors 1 + w."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np


def growth(rms: np.ndarray) -> None:
    """Plot the root mean square of the residual stream, [layers + 1, T]."""
    _, axes = plt.subplots()
    axes.plot(rms, color="C0", alpha=0.35)
    axes.plot(rms.mean(axis=1), color="C5", linewidth=2.5, label="mean of the tokens")
    axes.set(xlabel="number of layers passed", ylabel="root mean square", xticks=range(len(rms)), ylim=(0, None))
    axes.set_title("The residual stream grows from layer to layer (one line per token)")
    axes.legend()
    plt.show()


def factors(values: np.ndarray, names: Sequence[str]) -> None:
    """Plot the factors 1 + w of norms, [norms, D]: a mark for each channel, in a row for each norm."""
    _, axes = plt.subplots(figsize=(7, 4.4))
    for row, factor in enumerate(values):
        axes.plot(factor, np.full(len(factor), row), "|", color=f"C{row % 4}", alpha=0.6)
    axes.axvline(1, color="black", linestyle=":", linewidth=1)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="1 + w")
    axes.set_title("The factors of each norm (one mark per channel)")
    axes.invert_yaxis()
    plt.show()
