"""Figures of tutorial 7: masks, how far one token reaches, and a ring of slots."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from support.figures.attention import cache_sizes as cache_sizes


def masks_and_probabilities(masks: Mapping[str, np.ndarray], probs: Mapping[str, np.ndarray]) -> None:
    """Plot the masks of some layers, bool [T, S], above their probabilities [T, S], by the layers' titles."""
    figure, axes = plt.subplots(2, len(masks), figsize=(7, 6.2), sharex=True, sharey=True)
    for (title, mask), (above, below) in zip(masks.items(), axes.T, strict=True):
        above.imshow(np.where(mask, 1.0, np.nan), vmin=0, vmax=2)
        image = below.imshow(np.where(mask, probs[title], np.nan), norm=LogNorm(1e-4, 1))
        above.set_title(f"{title}: visible")
        below.set(title="Where it looks", xlabel="position of the key")
    for left in axes[:, 0]:
        left.set_ylabel("position of the query")
    figure.colorbar(image, ax=axes, label="probability (log scale)", shrink=0.6)
    plt.show()


def effects_of_one_token(
    places: np.ndarray, changes: Mapping[str, np.ndarray], reached: Mapping[str, np.ndarray]
) -> None:
    """Plot how much a token at each of some places changes the last token, where the masks let it through.

    changes: [layers, places] by title; reached: bool [layers, T]
    """
    figure, axes = plt.subplots(1, len(changes), figsize=(7, 3.8), sharey=True)
    figure.suptitle("What replacing one token changes in the last one")
    for panel, (title, change) in zip(axes, changes.items(), strict=True):
        shown = np.where(reached[title][:, places], change, np.nan)
        for layer, line in enumerate(shown):
            panel.semilogy(places, line, linewidth=4 - layer, label=f"after layer {layer}")
        panel.set(title=title, xlabel="position of the replaced token", ylim=(1e-7, 1))
        panel.axvline(reached[title].shape[1] - 1, color="C6", linestyle=":", linewidth=1)
    axes[0].set_ylabel("change of the last token's vector\n(relative to its length)")
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 0.02))
    plt.show()


def slots_of_a_ring(held: np.ndarray) -> None:
    """Plot the position that each slot holds after each step, [slots, steps]; NaN for none."""
    slots, steps = held.shape
    _, axes = plt.subplots(figsize=(7, 2.8))
    axes.imshow(held, vmin=0, vmax=steps - 1)
    for slot, step in np.argwhere(~np.isnan(held)):
        value = int(held[slot, step])
        axes.text(step, slot, value, ha="center", va="center", color="white" if value < 6 else "black")
    axes.grid(False)
    axes.set(xticks=range(steps), yticks=range(slots), xlabel="newest position", ylabel="slot")
    axes.set_title(f"The position that each of {slots} slots holds")
    plt.show()
