"""Figures of tutorial 20: what several vectors cost, which proposals are accepted, and when a draft pays."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np


def products(
    vectors: Sequence[int],
    took: Mapping[str, np.ndarray],
    flops: np.ndarray,
    intensity: np.ndarray,
    bandwidth: float,
    peak: float,
) -> None:
    """Plot the times of products, {way: seconds of each number of vectors}: their roofline, and the times of one."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8))
    reach, one = np.geomspace(0.3, 60, 100), min(seconds[0] for seconds in took.values())
    left.loglog(reach, np.minimum(peak, reach * bandwidth) / 1e9, color="C6")
    for colour, (way, seconds) in zip(("C5", "C0"), took.items(), strict=True):
        left.plot(intensity, flops / seconds / 1e9, "o", color=colour, markersize=5)
        right.plot(vectors, seconds / one, "o-", color=colour, label=way)
    left.set(xlabel="arithmetic intensity [flop/byte]", ylabel="speed [Gflop/s]", title="The roofline, 1 to 16 vectors")
    right.plot(vectors, vectors, color="C6", linestyle=":", label="one after another")
    right.axhline(1, color="C6", label="reading the weights")
    right.set(xlabel="vectors", ylabel="time [one vector]", ylim=(0, 17), title="The time of a product")
    right.set_xticks((1, 4, 8, 12, 16))
    right.legend(loc="upper left")
    plt.show()


def frequencies(distributions: Mapping[str, np.ndarray]) -> None:
    """Plot distributions over three tokens side by side, {label: [3]}."""
    _, axes = plt.subplots()
    for place, (label, values) in enumerate(distributions.items()):
        axes.bar(np.arange(3) + 0.2 * (place - 1.5), values, 0.18, color=f"C{place}", label=label)
    axes.set_xticks(range(3), "abc")
    axes.set(xlabel="token", ylabel="frequency", title="10,000 tokens, drawn and verified")
    axes.legend()
    plt.show()


def two_models(p: np.ndarray, q: np.ndarray, tokens: Sequence[str], text: str) -> None:
    """Plot what two models expect after a text, and what they have in common, [tokens] each."""
    _, axes = plt.subplots()
    places = np.arange(len(tokens))
    axes.bar(places - 0.2, p, 0.4, color="C0", label="p, shakespeare-4m")
    axes.bar(places + 0.2, q, 0.4, color="C1", label="q, shakespeare-1m")
    axes.plot(places, np.minimum(p, q), "_", color="C6", markersize=28, label="min(p, q)")
    axes.set_xticks(places, tokens, rotation=60)
    axes.set(ylabel="probability", title=f"What follows “{text}”, in two models")
    axes.legend()
    plt.show()


def rings(steps: Mapping[int, Sequence[tuple[np.ndarray, int]]], window: int) -> None:
    """Plot what rings hold, {spare slots: (slots, length) after each of three steps}."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.8), width_ratios=[window + spare for spare in steps])
    for axes, (spare, rows) in zip(panels, steps.items(), strict=True):
        for row, (slots, length) in enumerate(rows):
            for slot, position in enumerate(slots):
                colour = "C1" if position >= length else "C2" if position >= length - window else "0.85"
                axes.add_patch(plt.Rectangle((slot, -row), 0.94, 0.85, color=colour))
                axes.text(slot + 0.47, 0.42 - row, position, ha="center", va="center")
        axes.set(xlim=(0, window + spare), ylim=(-2.1, 1), xlabel="slot")
        axes.set_title(f"{spare} spare slots" if spare else "no spare slots")
        axes.set_xticks(np.arange(window + spare) + 0.47, range(window + spare))
        axes.set_yticks([0.42, -0.58, -1.58], ["12 read", "12 to 15 read", "rewound, 14 read"] if spare else [])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(False)
    figure.suptitle("green: the window of the last token read; orange: taken back; grey: older", fontsize=10)
    plt.show()


def acceptance(
    lengths: Sequence[int],
    measured: Mapping[str, Sequence[float]],
    expected: Mapping[str, Sequence[float]],
    rates: Mapping[str, float],
) -> None:
    """Plot tokens per pass and the share of proposals that is accepted, measured and as the rates predict."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.8))
    for number, (name, tokens) in enumerate(measured.items()):
        curve, places = np.array(expected[name]), np.arange(1, len(expected[name]) + 1)
        left.plot(places, (curve - 1) / places, ":", color=f"C{number}")
        right.plot(places, curve, ":", color=f"C{number}")
        label = f"{name} (a = {rates[name]:.2f})"
        left.plot(lengths, (np.array(tokens) - 1) / lengths, "o", color=f"C{number}", label=label)
        right.plot(lengths, tokens, "o", color=f"C{number}")
    left.set(xlabel="proposals in a pass", ylabel="share of them that is accepted", ylim=(0, 1))
    right.set(xlabel="proposals in a pass", ylabel="tokens in a pass", ylim=(1, None))
    figure.suptitle("Acceptance against draft length: measured (dots) and from a (lines)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    plt.show()


def times(
    drafting: Mapping[str, float],
    verifying: float,
    yields: Mapping[str, float],
    lengths: Sequence[int],
    speed: Mapping[str, Sequence[float]],
    estimated: Mapping[str, Sequence[float]],
) -> None:
    """Plot the time and the tokens of a pass with four proposals, and the speed of each number of proposals."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.5, 4.2))
    names = list(drafting)
    left.barh(names, drafting.values(), color="0.75", label="four steps of the draft")
    left.barh(names, verifying, left=list(drafting.values()), color="0.5", label="the pass over five tokens")
    left.plot([yields[name] for name in names], names, "D", color="C6", label="tokens that it yields")
    left.invert_yaxis()
    left.set(xlabel="time [steps of plain decoding], tokens", title="A pass with four proposals")
    left.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), fontsize=9)
    for number, name in enumerate(names):
        right.plot(lengths, estimated[name], ":", color=f"C{number}")
        right.plot(lengths, speed[name], "o", color=f"C{number}", label=name)
    right.axhline(1, color="C6")
    right.set(xlabel="proposals in a pass", ylabel="speed [plain decoding]", ylim=(0, None))
    right.set_title("Measured (dots), estimated (lines)")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)
    plt.show()


def best_speeds(speed: Callable[..., float], pass_costs: Mapping[str, Callable[[int], float]]) -> None:
    """Plot speed(a, c, cost) against the acceptance a, for four costs c of the draft and each cost of a pass."""
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True)
    rates = np.linspace(0.2, 0.98, 60)
    for axes, (title, cost) in zip(panels, pass_costs.items(), strict=True):
        for share in (0.05, 0.1, 0.3, 0.7):
            axes.semilogy(rates, [speed(rate, share, cost) for rate in rates], label=f"c = {share}")
        axes.axhline(1, color="C6")
        axes.set(xlabel="acceptance a", yticks=(0.5, 1, 2, 4, 8), yticklabels=("0.5", "1", "2", "4", "8"))
        axes.set_title(title, fontsize=10)
        axes.minorticks_off()
    panels[0].set_ylabel("speed [plain decoding]")
    panels[0].legend()
    figure.suptitle("The best speed with 1 to 8 proposals")
    plt.show()
