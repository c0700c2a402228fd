"""Figures of tutorial 13: the step of a finite difference, and gradients of logits and weights."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from support.plots import matrix


def steps(sizes: np.ndarray, errors: Mapping[str, np.ndarray]) -> None:
    """Plot the relative errors of measured slopes, {label: [steps]}, against the sizes of the steps."""
    _, axes = plt.subplots()
    for colour, (label, error) in zip(("C0", "C1", "C5"), errors.items(), strict=True):
        axes.loglog(sizes, error, color=colour, label=label)
    axes.set(xlabel="step size h", ylabel="relative error of the measured slope", ylim=(1e-13, 1e2))
    axes.set_title("Small steps suffer from rounding, large steps from curvature")
    axes.legend(loc="lower left", fontsize=9)
    plt.show()


def logit_gradients(gradients: np.ndarray, tokens: Sequence[str], right: np.ndarray, read: str) -> None:
    """Plot the gradients of some logits, [tokens]; `right` is True for the token that came next."""
    _, axes = plt.subplots()
    axes.bar(tokens, gradients, color=np.where(right, "C5", "C0"))
    axes.axhline(0, color="C6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set(xlabel="token (the ten largest)", ylabel="gradient of its logit [nats/unit]")
    axes.set_title(f"After “…{read}”: one logit is too low, all others are too high")
    plt.show()


def gradient_sizes(sizes: Mapping[str, Sequence[float]]) -> None:
    """Plot the size of the gradient of each weight, {weight: one number a layer}."""
    _, axes = plt.subplots(figsize=(7, 4))
    values = np.array(list(sizes.values()))
    matrix(axes, 1000 * values, list(sizes), label="root mean square of the gradient, times 1000")
    axes.set(xticks=range(values.shape[1]), xlabel="layer", title="The size of each weight's gradient")
    plt.show()
