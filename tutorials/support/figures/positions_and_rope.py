"""Figures of tutorial 5: rotated pairs, scores by distance, and the base."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from support.plots import matrix


def rotated_pairs(rotated: np.ndarray, shown: Sequence[int]) -> None:
    """Plot some pairs of channels of a vector that is rotated to positions 0, 1, ...: [positions, h]."""
    positions, h = rotated.shape
    points = [rotated[:, [pair, pair + h // 2]].T for pair in shown]
    reach = 1.3 * max(np.hypot(*point).max() for point in points)
    figure, axes = plt.subplots(1, len(shown), figsize=(7, 2.9))
    for panel, pair, point in zip(axes, shown, points, strict=True):
        dots = panel.scatter(*point, c=range(positions), s=25)
        panel.plot(*point[:, 0], "o", color="C5", markersize=10, fillstyle="none")
        panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=f"pair {pair}")
        panel.set(xlabel=f"channel {pair}", ylabel=f"channel {pair + h // 2}")
    figure.colorbar(dots, ax=axes, label="position", shrink=0.8, ticks=range(0, positions, 5))
    figure.suptitle(f"One query, rotated to positions 0 to {positions - 1}")
    plt.show()


def cosines_of_angles(cos: np.ndarray) -> None:
    """Plot the cosine of each angle, [T, h/2]."""
    _, axes = plt.subplots(figsize=(7, 3))
    matrix(axes, cos.T, label="cosine of the angle", limit=1)
    axes.set(xlabel="position", ylabel="pair of channels")
    axes.set_title("The rotation of each pair: fast at the top, slow at the bottom")
    plt.show()


def scores_by_distance(scores: Mapping[str, np.ndarray]) -> None:
    """Plot the mean scores [H, distances] of the heads of some layers, by the layers' titles."""
    _, axes = plt.subplots(1, len(scores), figsize=(7, 3.4), sharey=True)
    for panel, (title, heads) in zip(axes, scores.items(), strict=True):
        for head, line in enumerate(heads):
            panel.plot(line, color=f"C{head}", label=f"head {head}", linewidth=1.2)
        panel.set(xlabel="distance (tokens)", title=title)
    axes[0].set_ylabel("mean score")
    axes[0].legend(ncols=2, fontsize="small")
    plt.show()


def tokens_for_a_turn(wavelengths: Mapping[str, np.ndarray]) -> None:
    """Plot the tokens for one full turn of each pair, [h/2], for each base."""
    _, axes = plt.subplots(figsize=(7, 4))
    for label, wavelength in wavelengths.items():
        axes.plot(wavelength, label=label)
    for length, name in ((8192, "Gemma 2 reads 8,192"), (131_072, "Gemma 3 4B reads 131,072")):
        axes.axhline(length, color="black", linestyle="--", linewidth=1)
        axes.text(0, 1.2 * length, name)
    axes.set(yscale="log", xlabel="pair of channels (h = 256)", ylabel="tokens for one full turn", ylim=(3, 2e9))
    axes.set_title("Tokens per full turn of each pair, for each base")
    axes.legend(loc="upper left")
    plt.show()
