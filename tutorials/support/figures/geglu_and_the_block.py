"""Figures of tutorial 9: gelu and what its gate lets through, and what each half of a layer adds."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from support.plots import matrix


def gelu_and_silu(x: np.ndarray, gelu: np.ndarray, silu: np.ndarray, erf: np.ndarray, gates: np.ndarray) -> None:
    """Plot gelu in its tanh form and SiLU of x [N] over the density of gates; and how far SiLU and erf are off."""
    _, (curves, errors) = plt.subplots(1, 2, figsize=(7, 3.4))
    curves.plot(x, gelu, label="gelu (tanh)")
    curves.plot(x, silu, "--", label="SiLU")
    curves.hist(gates, bins=60, density=True, color="0.8", label="gates, density")
    curves.set(xlabel="gate", ylabel="value", xlim=(-5, 4), ylim=(-0.4, 4), title="Two similar functions")
    curves.legend(loc="upper left")
    errors.semilogy(x, np.maximum(np.abs(erf - gelu), 1e-9), color="C2", label="GELU with erf")
    errors.semilogy(x, np.maximum(np.abs(silu - gelu), 1e-9), "--", color="C1", label="SiLU")
    errors.set(xlabel="gate", ylabel="distance from gelu (tanh)", ylim=(1e-7, 20), title="Their errors")
    errors.legend(loc="upper center", ncols=2, fontsize=8)
    plt.show()


def gates(gate: np.ndarray, up: np.ndarray, hidden: np.ndarray) -> None:
    """Plot each hidden channel of each token, [T, F], by gate and up, in the colour of hidden."""
    figure, axes = plt.subplots(figsize=(7, 4))
    dots = axes.scatter(gate, up, c=hidden, s=6, cmap="PuOr", vmin=-1, vmax=1)
    axes.set(xlabel="gate", ylabel="up", title="Layer 1: a channel counts when its gate is open")
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_facecolor("0.8")
    figure.colorbar(dots, label="hidden = gelu(gate) * up")
    plt.show()


def strongest_channels(hidden: np.ndarray, tokens: Sequence[str]) -> None:
    """Plot hidden [T, channels] as a matrix."""
    _, axes = plt.subplots(figsize=(7, 4))
    matrix(axes, hidden, tokens, label="hidden = gelu(gate) * up", limit=3)
    axes.set(xlabel=f"the {hidden.shape[1]} channels with the largest values, sorted")
    axes.set_title("Layer 1: which channels fire at which token")
    plt.show()


def what_each_half_adds(attention: Sequence[float], feed_forward: Sequence[float], stream: Sequence[float]) -> None:
    """Plot the sizes of what the halves of each layer add, and of the stream before it."""
    _, axes = plt.subplots()
    place = np.arange(len(attention))
    axes.bar(place - 0.2, attention, 0.36, label="attention adds")
    axes.bar(place + 0.2, feed_forward, 0.36, label="feed-forward adds")
    axes.plot(place, stream, "o--", color="C6", label="the stream, before the layer")
    axes.set(xlabel="layer", ylabel="root mean square", xticks=place, title="How much each half adds to the stream")
    axes.legend()
    plt.show()
