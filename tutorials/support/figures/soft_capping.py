"""Figures of tutorial 8: gradients with and without a cap, and what the caps do to scores and logits."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np


def gradients(largest: np.ndarray, lengths: Mapping[str, np.ndarray]) -> None:
    """Plot the lengths [N] of gradients, by label, against the largest of the scores [N]."""
    _, axes = plt.subplots()
    for label, length in lengths.items():
        axes.loglog(largest, length, label=label)
    axes.set(xlabel="largest score before the cap", ylabel="length of the gradient", ylim=(1e-12, 2))
    axes.set_title("The gradient that reaches five scores through softmax")
    axes.legend()
    plt.show()


def cap_and_clip(x: np.ndarray, values: Mapping[str, np.ndarray], slopes: Mapping[str, np.ndarray]) -> None:
    """Plot functions of x [N] and their slopes, by label."""
    _, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4))
    left.plot(x, x, color="C6", linestyle=":", label="x")
    for label, colour in (("clip", "C1"), ("soft cap", "C0")):
        left.plot(x, values[label], color=colour, label=label)
        right.plot(x, slopes[label], color=colour, label=label)
    left.set(title="Value", xlabel="score x", ylabel="score after the cap", ylim=(-75, 75))
    right.set(title="Slope", xlabel="score x", ylabel="slope")
    left.legend()
    plt.show()


def effect_of_the_caps(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], caps: list[float]) -> None:
    """Plot how many values there are before the caps, and how far the caps move them, by what they are."""
    _, panels = plt.subplots(2, len(caps), figsize=(7, 4.6), sharex="col")
    for (name, values), cap, (above, below) in zip(before.items(), caps, panels.T, strict=True):
        above.hist(values.ravel(), np.linspace(-1.1 * cap, 1.1 * cap, 111), histtype="stepfilled", alpha=0.7)
        above.set(yscale="log", title=name)
        order = np.argsort(values, axis=None)[::20]
        below.plot(values.ravel()[order], (after[name] - values).ravel()[order], color="C1")
        below.set(xlabel="value before the cap", ylim=(-1, 3.5))
        for panel in (above, below):
            panel.axvline(-cap, color="C6", linestyle=":")
            panel.axvline(cap, color="C6", linestyle=":")
    panels[0, 0].set_ylabel("how many")
    panels[1, 0].set_ylabel("moved by the cap")
    plt.show()


def most_likely(without: np.ndarray, with_cap: np.ndarray) -> None:
    """Plot the largest probability at each position, [T], with the cap against without."""
    _, axes = plt.subplots(figsize=(4.6, 4.2))
    axes.plot([0, 1], [0, 1], color="C6", linestyle=":", label="no change")
    axes.plot(without, with_cap, "o", alpha=0.5, markersize=4, label="a position")
    axes.set(xlabel="probability from the logits", ylabel="probability from the capped logits", aspect="equal")
    axes.set_title("The most likely token at each position")
    axes.legend()
    plt.show()
