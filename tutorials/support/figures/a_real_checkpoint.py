"""Figures of tutorial 2: what 16 bits lose, and where the numbers of a file are."""

from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np

COLOURS = {"embedding": "C0", "attention": "C1", "feed-forward": "C2", "norms": "C3"}


def rounding_errors(numbers: np.ndarray, errors: Mapping[str, np.ndarray]) -> None:
    """Plot the relative errors [N] of each format against the numbers [N], the largest of each 40 neighbours."""
    _, axes = plt.subplots()
    for name, error in errors.items():
        axes.loglog(numbers[::40], 100 * error.reshape(-1, 40).max(axis=1), label=name)
    axes.axhline(100 * 2.0**-8, color="C6", linestyle=":", label="$2^{-8}$, 0.4 %")
    axes.set(xlabel="number", ylabel="largest error (% of the number)")
    axes.set_title("What is lost when a number is stored in 16 bits")
    axes.legend(loc="upper right")
    plt.show()


def places_in_the_file(header: Mapping[str, dict], part_of: Callable[[str], str]) -> None:
    """Plot where the numbers of each tensor are in its file, in the colour of its part of the model."""
    _, axes = plt.subplots(figsize=(7, 1.9))
    for name, entry in header.items():
        start, end = np.array(entry["data_offsets"]) / 1e6
        axes.barh(0, end - start, left=start, color=COLOURS[part_of(name)], edgecolor="white", linewidth=0.3)
    for part, colour in COLOURS.items():
        axes.barh(0, 0, color=colour, label=part)
    last = max(entry["data_offsets"][1] for entry in header.values()) / 1e6
    axes.set(yticks=[], xlabel="offset (MB)", xlim=(0, last), title="The numbers of model.safetensors, in order")
    axes.set_axisbelow(True)
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.6))
    plt.show()
