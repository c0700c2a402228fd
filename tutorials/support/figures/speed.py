"""Figures of tutorial 12: the roofline of a machine, and how the cache grows."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np


def roofline(
    counts: Sequence[int], intensities: Sequence[float], rates: Sequence[float], bandwidth: float, peak: float
) -> None:
    """Plot the rates [flop/s] of a weight times some numbers of vectors against their intensities [flop/byte]."""
    _, axes = plt.subplots(figsize=(7, 4))
    reach = np.geomspace(0.03, 1000, 200)
    axes.loglog(reach, np.minimum(peak, reach * bandwidth) / 1e9, color="C6")
    for count, intensity, rate in zip(counts, intensities, rates, strict=True):
        place = intensity, rate / 1e9
        axes.plot(*place, "o", color="C5" if count == 1 else "C0", markersize=7)
        axes.annotate(f"T = {count}", place, xytext=(7, -12), textcoords="offset points", fontsize=9)
    axes.plot([], [], "o", color="C5", label="decode")
    axes.plot([], [], "o", color="C0", label="prefill of T tokens")
    ridge = peak / bandwidth
    axes.axvline(ridge, color="C6", linestyle=":")
    axes.text(0.9 * ridge, 2 * peak / 1e9, "limited by memory", ha="right", fontsize=9)
    axes.text(1.1 * ridge, 2 * peak / 1e9, "limited by arithmetic", ha="left", fontsize=9)
    axes.set(xlabel="arithmetic intensity [flop/byte]", ylabel="speed [Gflop/s]")
    axes.set_ylim(min(rates) / 4e9, 4 * peak / 1e9)
    axes.set_title("The roofline of this machine: a weight of the 2B times T vectors")
    axes.legend(loc="lower right")
    plt.show()


def cache_sizes(lengths: np.ndarray, sizes: Mapping[str, np.ndarray], all_global: Mapping[str, np.ndarray]) -> None:
    """Plot the bytes of caches against their tokens, {model: [lengths]}, as they are and with global layers only."""
    _, axes = plt.subplots()
    for number, name in enumerate(sizes):
        axes.plot(lengths, sizes[name] / 1e9, color=f"C{number}", label=name)
        axes.plot(lengths, all_global[name] / 1e9, color=f"C{number}", linestyle=":")
    axes.plot([], [], color="C6", linestyle=":", label="if all layers were global")
    axes.set(xlabel="tokens in the cache", ylabel="keys and values [GB]", xticks=range(0, 8193, 1024))
    axes.set_title("Local layers stop growing at their window")
    axes.legend()
    plt.show()
