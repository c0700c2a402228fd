"""Figures of tutorial 3: the rows of the embedding, their sizes, and their share of the parameters."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from support.plots import matrix


def cosines_of_pieces(cosines: np.ndarray, names: Sequence[str]) -> None:
    """Plot the cosines [N, N] between the rows of N pieces."""
    _, axes = plt.subplots(figsize=(6, 4.6))
    matrix(axes, cosines, names, names, label="cosine", limit=1)
    axes.set(title="Cosine between the rows of twelve pieces", xlabel="piece", ylabel="piece")
    plt.show()


def sizes_of_vectors(sizes: Mapping[str, np.ndarray]) -> None:
    """Plot the root mean squares [T] of each kind of vector, a column of dots each."""
    _, axes = plt.subplots()
    for place, size in enumerate(sizes.values()):
        axes.scatter(place + np.linspace(-0.2, 0.2, len(size)), size, color=f"C{place}", s=22)
    axes.set(xticks=range(len(sizes)), xticklabels=sizes, xlim=(-0.5, len(sizes) - 0.5))
    axes.set(yscale="log", ylim=(0.02, 2), yticks=(0.1, 1), yticklabels=("0.1", "1"))
    axes.set(ylabel="root mean square (log scale)")
    axes.set_title("The embedding beside what layer 0 adds to it (one dot per token)")
    plt.show()


def shares_of_parameters(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Plot the share of each part in the parameters of each model. counts: those of the parts, by model."""
    _, axes = plt.subplots(figsize=(7, 2.6))
    left = np.zeros(len(counts))
    for colour, part in enumerate(("embedding", "attention", "feed-forward")):
        shares = np.array([100 * count[part] / sum(count.values()) for count in counts.values()])
        axes.barh(list(counts), shares, left=left, color=f"C{colour}", label=part)
        left += shares
    axes.invert_yaxis()
    axes.set(xlabel="share of the parameters (%)", title="Where the parameters of Gemma 2 are", xlim=(0, 100))
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.3))
    plt.show()
