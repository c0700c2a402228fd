"""Figures of tutorial 6: attention maps, the habits of heads, and the size of the cache."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from support.plots import matrix


def attention_maps(probs: np.ndarray, tokens: Sequence[str], titles: Mapping[int, str]) -> None:
    """Plot the probabilities [H, T, T] of some heads, whose titles are given; later tokens are blank."""
    past = np.tri(len(tokens), dtype=bool)
    figure, axes = plt.subplots(1, len(titles), figsize=(8, 4.8), sharey=True)
    for place, (head, title) in zip(axes, titles.items(), strict=True):
        image = place.imshow(np.where(past, probs[head], np.nan), vmin=0, vmax=1)
        place.grid(False)
        place.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
        place.set_yticks(range(len(tokens)), tokens, fontsize=7)
        place.set(title=f"Head {head}: {title}", xlabel="key: the token looked at")
    axes[0].set_ylabel("query: the token that looks")
    figure.colorbar(image, ax=axes, label="probability (a row sums to 1)", shrink=0.8)
    plt.show()


def habits_of_heads(shares: np.ndarray, heads: Sequence[str], habits: Sequence[str]) -> None:
    """Plot the mean probability that each head gives to each habit, [heads, habits]."""
    _, axes = plt.subplots(figsize=(6, 4.6))
    matrix(axes, shares, heads, label="mean probability")
    axes.set_xticks(range(len(habits)), habits)
    axes.set(title="Each head has its own habits", xlabel="where it looks")
    plt.show()


def cache_sizes(models: Sequence[str], gigabytes: Mapping[str, Sequence[float]]) -> None:
    """Plot the sizes of the caches of some models, for two ways to build them."""
    _, axes = plt.subplots()
    for shift, (label, sizes) in zip((-0.2, 0.2), gigabytes.items(), strict=True):
        axes.bar_label(axes.bar(np.arange(len(models)) + shift, sizes, 0.36, label=label), fmt="%.1f")
    axes.set_xticks(range(len(models)), models)
    axes.set(title="Keys and values of 8192 tokens", ylabel="gigabytes (float32)")
    axes.margins(y=0.2)
    axes.legend(loc="upper left")
    plt.show()
