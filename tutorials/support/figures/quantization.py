"""Figures of tutorial 16: grids, bits and groups, and the errors of four methods."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

METHODS = ("round", "clip", "gptq", "awq")
SETTINGS = {  # of the experiment: their labels
    "bfloat16": "bfloat16",
    "float8": "float8",
    "int8": "int8",
    "int4, 64": "int4",
    "int4, 64, zero points": "int4, zero points",
}


def grids(weights: np.ndarray, levels: Mapping[str, np.ndarray], errors: Mapping[str, float], title: str) -> None:
    """Plot a row of weights and the levels that it can take on each grid, {name: [16]}, with their mean errors."""
    figure, panels = plt.subplots(1, 2, sharex=True, sharey=True)
    for axes, (name, values) in zip(panels, levels.items(), strict=True):
        axes.hist(weights, bins=60, color="C0")
        for level in values:
            axes.axvline(level, color="C5", linewidth=0.8)
        axes.set(xlabel="weight", title=f"{name}\nroot mean square error {errors[name]:.4f}")
        axes.grid(False)
    panels[0].set_ylabel("number of weights")
    figure.suptitle(title)
    plt.show()


def bits_and_groups(widths: Sequence[int], errors: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    """Plot {matrix: {group: the error of each width}} against the bits per weight, scales of 16 bits included."""
    figure, panels = plt.subplots(1, 2, sharex=True, sharey=True)
    for axes, (title, by_group) in zip(panels, errors.items(), strict=True):
        for (group, values), marker in zip(by_group.items(), "osD^v", strict=True):
            bits = [width + 16 / group for width in widths]
            axes.plot(bits, values, marker=marker, markersize=4, label=f"group of {group}")
        axes.set(yscale="log", xlabel="bits per weight, including the scales", title=title)
    panels[0].set_ylabel("error / size of the matrix")
    panels[0].legend()
    figure.suptitle("Rounding down_proj of layer 0 by bits and group size (384: the whole row)")
    plt.show()


def output_errors(errors: Mapping[str, Mapping[str, float]]) -> None:
    """Plot the error of each matrix's output by method, {matrix: {method: error}}."""
    _, axes = plt.subplots()
    for number, method in enumerate(METHODS):
        places = np.arange(len(errors)) + 0.2 * (number - 1.5)
        axes.bar(places, [by[method] for by in errors.values()], width=0.2, color=f"C{number}", label=method)
    axes.set_xticks(range(len(errors)), [name.split(".")[1] for name in errors])
    axes.set_title("Output error of layer 0's matrices in int4, on evaluation texts")
    axes.set(ylabel="error / size of the output", ylim=(0, 0.13))
    axes.grid(axis="x")
    axes.legend(ncols=4, loc="upper center")
    plt.show()


def cost_of_formats(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Plot the KL of each format and method in a stored experiment, {model: rows}."""
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(7, 3.8))
    for axes, (name, rows) in zip(panels, results.items(), strict=True):
        for number, method in enumerate(METHODS):
            chosen = [row for row in rows if row["method"] == method and row["setting"] in SETTINGS and row["kl"] > 0]
            places = [list(SETTINGS).index(row["setting"]) + 0.15 * (number - 1.5) for row in chosen]
            axes.plot(places, [row["kl"] for row in chosen], "osD^"[number], color=f"C{number}", label=method)
        axes.set_xticks(range(len(SETTINGS)), SETTINGS.values(), rotation=35, ha="right")
        axes.set(title=name, yscale="log", xlim=(-0.5, len(SETTINGS) - 0.5))
    panels[0].set_ylabel("KL from the original\n(nats per token)")
    panels[0].legend(ncols=2, loc="upper left")
    panels[0].set_ylim(7e-5, 3)
    figure.suptitle("The cost of each format (int4: groups of 64, embedding in int8)")
    plt.show()


def rounded_row(figure: Any, weights: np.ndarray, found: np.ndarray, group: int, limit: float) -> Any:
    """Plot the weights of a row [n] and what is found for them, and the borders of the groups; return the axes."""
    axes = figure.subplots()
    axes.plot(weights, "o", color="C0", fillstyle="none", label="weight")
    axes.plot(found, ".", color="C5", label="stored")
    for start in range(group, len(weights), group):
        axes.axvline(start - 0.5, color="C6", linewidth=0.6)
    axes.set(xlabel="channel", ylim=(-limit, limit))
    axes.legend(loc="lower right", ncols=2)
    return axes
