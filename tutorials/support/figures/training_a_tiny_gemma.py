"""Figures of tutorial 14: the losses of a run, and the gradient norm and learning rate of each step."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np


def losses(training: np.ndarray, held_out: Mapping[int, float], baselines: Mapping[str, float]) -> None:
    """Plot the training loss of each step and the held-out losses, {step: loss}, with baselines, the lowest last."""
    _, axes = plt.subplots(figsize=(7, 4.2))
    steps = training.size
    axes.plot(np.arange(1, steps + 1), training, color="C4", linewidth=0.7, alpha=0.6, label="training, each batch")
    smooth = np.convolve(training, np.ones(25) / 25, "valid")  # means of 25 steps, from step 25 on
    axes.plot(np.arange(25, steps + 1), smooth, color="C0", label="training, mean of 25 batches")
    axes.plot(list(held_out), list(held_out.values()), "o-", color="C5", label="held out")
    lowest = min(baselines.values())
    for what, value in baselines.items():
        axes.axhline(value, color="black", linewidth=0.8, linestyle="--")
        place, side = (0, "left") if value == lowest else (steps, "right")
        axes.text(place, value + 0.05, what, ha=side, fontsize=9)
    axes.set(xlabel="steps (512 tokens each)", ylabel="loss (nats per token)", ylim=(lowest - 0.4, 8.6))
    axes.set_title("The loss falls; on held-out texts it stays higher")
    axes.legend(loc=(0.3, 0.61))
    plt.show()


def norms_and_rates(norms: np.ndarray, rates: np.ndarray, limit: float) -> None:
    """Plot the norm of the gradient and the learning rate of each step."""
    _, (above, below) = plt.subplots(2, 1, figsize=(7, 4.2), sharex=True)
    steps = np.arange(1, norms.size + 1)
    above.plot(steps, norms, color="C0", linewidth=0.8)
    above.axhline(limit, color="C5", linestyle="--", label="limit")
    above.set(ylabel="norm of the gradient", ylim=(0, None))
    above.set_title("The gradient norm and the learning rate of each step")
    above.legend(loc="lower right")
    below.plot(steps, rates, color="C2")
    below.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    plt.show()
