"""Figures of tutorial 17: the cost of zeros, importance, and healing."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from gemma_np.compression.structured_pruning import Importance

SETTINGS, METHODS = ["25%", "50%", "2:4"], ["magnitude", "wanda", "channels", "layers"]


def sparsity(
    shares: Sequence[float], single: Mapping[str, Sequence[float]], pairs: Mapping[str, float], original: float
) -> None:
    """Plot the perplexity after each share of zeros, {method: [shares]}, with that of 2:4 and of the original."""
    _, axes = plt.subplots()
    for number, (method, values) in enumerate(single.items()):
        axes.plot(shares, values, marker="os"[number], color=f"C{number}", label=method)
        style = {"color": f"C{number}", "markeredgecolor": "black", "markersize": 8}
        axes.plot(0.5, pairs[method], "D^"[number], label=f"{method}, 2:4", **style)
    axes.axhline(original, color="black", linestyle=":", label="nothing pruned")
    axes.set(yscale="log", xlabel="fraction of zeros", ylabel="perplexity")
    axes.set_title("Setting weights of the layers to zero")
    axes.set_yticks([45, 50, 60, 70, 80, 90], [45, 50, 60, 70, 80, 90])
    axes.minorticks_off()
    axes.legend()
    plt.show()


def importance(found: Importance, kl_without: Sequence[float]) -> None:
    """Plot the importance of channels and of layers, with the KL without each of the four layers."""
    _, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4))
    for layer, scores in enumerate(found.channels):
        ordered = np.sort(scores)[::-1]
        left.plot(np.arange(1, ordered.size + 1), np.cumsum(ordered) / ordered.sum(), label=f"layer {layer}")
    left.plot([0, ordered.size], [0, 1], color="black", linestyle=":", label="if all were equal")
    left.set(xlabel="channels kept, the most important first", ylabel="fraction of the importance", ylim=(0, 1.02))
    left.set_title("Feed-forward channels")
    left.legend(frameon=True, framealpha=1, edgecolor="none", fontsize=9)

    right.bar(range(len(kl_without)), found.layers)
    right.set(xlabel="layer", ylabel="1 - cosine (importance)", title="Layers, with the KL if one is dropped")
    right.set_ylim(0, 1.15 * found.layers.max())
    for layer, kl in enumerate(kl_without):
        right.text(layer, found.layers[layer], f"KL {kl:.1f}", ha="center", va="bottom")
    right.set_xticks(range(4), ["0\nlocal", "1\nglobal", "2\nlocal", "3\nglobal"])
    plt.show()


def healing(curves: Mapping[str, Sequence[float]]) -> None:
    """Plot the KL of each training step, {model: [steps]}."""
    _, axes = plt.subplots()
    for label, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, label=label)
    axes.set(yscale="log", xlabel="training steps", ylabel="KL from the original\n(nats per token)")
    axes.set_title("Healing: each step reads 1,024 tokens")
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 4], [0.1, 0.2, 0.5, 1, 2, 4])
    axes.minorticks_off()
    axes.legend()
    plt.show()


def cost_of_pruning(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Plot the KL of each method and fraction in a stored experiment, {model: rows}."""
    figure, panels = plt.subplots(1, 2, sharey=True)
    for axes, (name, found) in zip(panels, results.items(), strict=True):
        for number, method in enumerate(METHODS):
            chosen = [row for row in found if row["method"] == method]
            places = [SETTINGS.index(row["setting"]) + 0.12 * (number - 1.5) for row in chosen]
            axes.plot(places, [row["kl"] for row in chosen], "osD^"[number], color=f"C{number}", label=method)
        axes.set_xticks(range(len(SETTINGS)), SETTINGS)
        axes.set(title=name, yscale="log", xlim=(-0.5, 2.5), xlabel="removed")
    panels[0].set_ylabel("KL from the original\n(nats per token)")
    panels[0].legend(loc="lower right")
    figure.suptitle("The cost of pruning before healing")
    plt.show()
