"""Figure of tutorial 1: how long the pieces of a vocabulary are."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np


def lengths_of_pieces(ids: Sequence[int], lengths: np.ndarray, means: np.ndarray) -> None:
    """Plot the characters of pieces against their ids, `lengths` [N], and the means of each hundred of them."""
    _, axes = plt.subplots()
    axes.plot(ids, lengths, ".", alpha=0.3, label="a piece")
    axes.plot(np.arange(len(means)) * 100 + ids[0] + 50, means, "o-", color="C5", label="mean of a hundred pieces")
    axes.set(xlabel="id of the piece", ylabel="characters", title="Pieces that were made later are longer, on average")
    axes.legend()
    plt.show()
