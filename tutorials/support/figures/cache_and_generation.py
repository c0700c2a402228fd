"""Figures of tutorial 11: mistakes that begin with decoding, and four ways to choose a token."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np


def errors_by_position(errors: Mapping[str, np.ndarray], prompt: int) -> None:
    """Plot the mean error of the logits at each position, {label: [T]}; the first `prompt` ones are read at once."""
    _, axes = plt.subplots()
    for colour, (label, error) in zip(("C5", "C0"), errors.items(), strict=True):
        axes.plot(error, color=colour, label=label)
    axes.axvline(prompt - 0.5, color="C6", linestyle=":")
    axes.set(xlabel="position (the first decode step is at the dotted line)", ylabel="mean |error| of the logits")
    axes.set(ylim=(0, None), title="Right in the prompt, wrong from the first decoded token on")
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, -0.5), fontsize=8)
    plt.show()


def next_token(probs: Mapping[str, np.ndarray], order: Sequence[int], labels: Sequence[str], text: str) -> None:
    """Plot distributions {title: probs [V]} over the tokens of `order`, which have these labels, side by side."""
    figure, all_axes = plt.subplots(1, len(probs), sharey=True, sharex=True)
    for axes, (title, values) in zip(all_axes, probs.items(), strict=True):
        axes.barh(labels, values[order], color="C0")
        axes.set_title(f"{title}\n{np.count_nonzero(values)} tokens left", fontsize=9)
        axes.set_xlabel("probability")
        axes.set_axisbelow(True)
    all_axes[0].invert_yaxis()
    figure.suptitle(f"What may follow “{text}” (the ten most likely tokens)")
    plt.show()
