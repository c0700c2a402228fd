"""Figures of tutorial 19: the errors of a port's records, in the order of execution."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from gemma_np.oracle.comparison import Row


def by_layer(comparisons: Mapping[str, Sequence[Row]]) -> None:
    """Plot two comparisons of one pass, {title: rows}; the first record that differs in the upper one is named."""
    _, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5.4), sharex=True)
    for axes, (title, rows) in zip((top, bottom), comparisons.items(), strict=True):
        _errors(axes, rows, title)
        starts = {n: row.key for n, row in enumerate(rows) if row.key.endswith(".input_layernorm")}
        axes.set_xticks(list(starts), [f"layer {key.split('.')[1]}" for key in starts.values()])
    place, first = next((n, row) for n, row in enumerate(next(iter(comparisons.values()))) if row.status == "DIFF")
    top.annotate(first.key, (place, first.error), (2, 2), fontsize=9, arrowprops={"arrowstyle": "->"})
    bottom.set_xlabel("records, in the order of execution")
    top.legend(loc="lower right", ncols=3)
    plt.show()


def by_pass(comparisons: Mapping[str, Sequence[Row]]) -> None:
    """Plot two comparisons of several passes, {title: rows}."""
    _, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5.4), sharex=True)
    for axes, (title, rows) in zip((top, bottom), comparisons.items(), strict=True):
        _errors(axes, rows, title)
        starts = [n for n, row in enumerate(rows) if row.key.endswith("embedding")]
        axes.set_xticks(starts, ["the prompt", "pass 1", "pass 2"])
        for start in starts[1:]:
            axes.axvline(start, color="0.7", linestyle=":")
    bottom.set_xlabel("records, in the order of execution")
    bottom.legend(loc="upper right", ncols=3)
    plt.show()


def _errors(axes: Any, rows: Sequence[Row], title: str) -> None:
    """Plot the errors of the rows, and their thresholds."""
    place = np.arange(len(rows))
    differs = np.array([row.status == "DIFF" for row in rows])
    errors = np.maximum([row.error for row in rows], 1e-9)  # a zero has no place on a logarithmic axis
    axes.semilogy(place, [row.threshold for row in rows], color="0.5", linewidth=1, label="threshold")
    axes.semilogy(place[~differs], errors[~differs], ".", color="C0", label="right")
    axes.semilogy(place[differs], errors[differs], "x", color="C5", markersize=5, label="differs")
    axes.set(ylabel="error", ylim=(5e-10, 10), title=title)
