"""Figures of tutorial 10: where a token looks, the logit lens, and what is lost without a part."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from support.plots import matrix


def where_it_looks(probs: np.ndarray, heads: Sequence[str], tokens: Sequence[str]) -> None:
    """Plot the probabilities [heads, T] that each head gives to each token."""
    _, axes = plt.subplots(figsize=(7, 4.4))
    matrix(axes, probs, heads, tokens, label="probability")
    axes.set(title=f"Where “{tokens[-1]}” looks to predict the next token")
    plt.show()


def logit_lens(probabilities: Mapping[str, np.ndarray]) -> None:
    """Plot the probability of some pieces after the embedding and after each half of each layer, [2 * layers + 1]."""
    _, axes = plt.subplots(figsize=(7, 3.8))
    for (piece, line), marker in zip(probabilities.items(), "os", strict=True):
        axes.plot(line, marker=marker, label=piece)
    labels = ["embedding"] + [f"{stage // 2} {('attn', 'ffn')[stage % 2]}" for stage in range(len(line) - 1)]
    axes.set_xticks(range(len(line)), labels, rotation=30)
    axes.set(xlabel="after this layer and half", ylabel="probability", ylim=(0, 1.02))
    axes.set_title("The logit lens: first the token itself, then what follows it")
    axes.legend()
    plt.show()


def ablations(by_head: np.ndarray, by_half: np.ndarray) -> None:
    """Plot the loss that each head [layers, H] and each half of a layer [layers, 2] saves."""
    layers, heads = by_head.shape
    _, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(1.2, 1))
    matrix(left, by_head, [f"layer {n}" for n in range(layers)], [f"head {n}" for n in range(heads)])
    left.set_title("Without one head\n(nats per token lost)")
    for shift, half, losses in zip((-0.2, 0.2), ("attention", "feed-forward"), by_half.T, strict=True):
        right.bar(np.arange(layers) + shift, losses, 0.36, label=half)
    right.set(xlabel="layer", ylabel="nats per token lost", xticks=range(layers))
    right.set_title("Without one half of a layer")
    right.legend()
    plt.show()
