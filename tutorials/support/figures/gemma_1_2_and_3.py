"""Figures of tutorial 18: the released models side by side, and what bounds the scores of three small ones."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from gemma_np.config import GLOBAL, LOCAL, GemmaConfig


def layer_types(configs: Mapping[str, GemmaConfig]) -> None:
    """Plot which layers of each model are global."""
    _, axes = plt.subplots(figsize=(7, 3.6))
    for row, config in enumerate(configs.values()):
        for kind, colour in ((LOCAL, "C4"), (GLOBAL, "C0")):
            layers = [layer for layer in range(config.num_hidden_layers) if config.layer_types[layer] == kind]
            label = {LOCAL: "local", GLOBAL: "global"}[kind] if row == len(configs) - 1 else None
            axes.scatter(layers, [row] * len(layers), marker="s", s=22, color=colour, label=label)
    axes.set(yticks=range(len(configs)), yticklabels=configs, xlabel="layer", xlim=(-1, 63))
    axes.invert_yaxis()
    axes.set_title("Which layers are global")
    axes.legend(loc="upper right")
    plt.show()


def parameters(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Plot the share of each part in a model's parameters, {model: {part: count}}."""
    _, axes = plt.subplots(figsize=(7, 4))
    totals = {name: sum(parts.values()) for name, parts in counts.items()}
    labels = [f"{name}  ({total / 1e9:.2f} B)" for name, total in totals.items()]
    left = np.zeros(len(counts))
    for colour, part in enumerate(("embedding", "attention", "feed-forward")):
        shares = np.array([100 * counts[name][part] / totals[name] for name in counts])
        axes.barh(labels, shares, left=left, color=f"C{colour}", label=part)
        left += shares
    axes.invert_yaxis()
    axes.set(xlabel="share of the parameters (%); the norms are too few to be seen", xlim=(0, 100))
    axes.set_title("Where the parameters are")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.3, -0.14))
    plt.show()


def cache_sizes(sizes: Mapping[str, tuple[np.ndarray, Sequence[int]]]) -> None:
    """Plot the bytes of caches against their tokens, {label: (tokens, bytes)}; the last one is dashed."""
    _, axes = plt.subplots(figsize=(7, 3.8))
    *solid, dashed = sizes
    for colour, label in enumerate(solid):
        tokens, size = sizes[label]
        axes.plot(tokens, np.array(size) / 1e9, "o-", color=f"C{colour}", markersize=4, label=label)
    tokens, size = sizes[dashed]
    axes.plot(tokens, np.array(size) / 1e9, "--", color="C2", label=dashed)
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="tokens", ylabel="keys and values (GB, float32)", xticks=2 ** np.arange(8, 18))
    axes.set(xticklabels=[256, 512, "1K", "2K", "4K", "8K", "16K", "32K", "64K", "128K"])
    axes.set(yticks=(0.1, 1, 10, 100), yticklabels=("0.1", "1", "10", "100"), title="The memory of the cache")
    axes.legend()
    plt.show()


def largest_scores(factors: np.ndarray, largest: Mapping[str, Sequence[float]]) -> None:
    """Plot the largest score of each model, {title: one a factor}, against the factor of its weights."""
    _, axes = plt.subplots()
    for (title, scores), how in zip(largest.items(), ("no bound", "soft cap of 50", "norms of q and k"), strict=True):
        axes.plot(factors, scores, "o-", label=f"{title}: {how}")
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="factor of the query and key matrices", ylabel="largest score at the softmax")
    axes.set(xticks=factors, xticklabels=[f"{factor:.0f}" for factor in factors])
    axes.set(yticks=(10, 100, 1000, 10_000), yticklabels=("10", "100", "1,000", "10,000"), ylim=(3, 20_000))
    axes.set_title("The effect of growing weights on the scores")
    axes.legend()
    plt.show()


def scales(q: np.ndarray, k: np.ndarray) -> None:
    """Plot the learned scales of the key against those of the query, [pair, layer, channel of the pair] each."""
    _, axes = plt.subplots(figsize=(4.6, 4.4))
    axes.plot([0, 2.2], [0, 2.2], color="0.7", linewidth=1)
    for colour, label, part in (("C0", "pairs 0 to 7, fast", slice(0, 8)), ("C5", "pairs 8 to 15, slow", slice(8, 16))):
        axes.scatter(q[part], k[part], s=14, color=colour, label=label)
    axes.set(xlabel="scale of q", ylabel="scale of k", xlim=(0, 2.2), ylim=(0, 2.2), aspect="equal")
    axes.set(xticks=(0, 0.5, 1, 1.5, 2), yticks=(0, 0.5, 1, 1.5, 2))
    axes.set_title("The learned scales of the small Gemma 3")
    axes.legend(loc="lower right")
    plt.show()
