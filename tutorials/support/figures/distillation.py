"""Figures of tutorial 15: what a teacher predicts, and what its students learn."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from gemma_np.text.tokenizer import Tokenizer
from support.plots import pieces


def targets(probs: np.ndarray, ids: np.ndarray, positions: Sequence[int], tokenizer: Tokenizer) -> None:
    """Plot what comes next at four positions: the teacher's probabilities [T, V] and the text's token, ids [T + 1]."""
    figure, panels = plt.subplots(2, 2, figsize=(7, 5))
    for axes, t in zip(panels.flat, positions, strict=True):
        shown = [int(id) for id in np.argsort(-probs[t])[:6]]
        if ids[t + 1] not in shown:
            shown.append(int(ids[t + 1]))
        axes.barh(range(len(shown)), probs[t, shown], color="C0", label="the teacher")
        came = shown.index(ids[t + 1])
        axes.barh(came, 1, facecolor="none", edgecolor="C1", linewidth=1.5, label="the text (one-hot)")
        axes.set_yticks(range(len(shown)), pieces(shown, tokenizer))
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05)
        axes.set_title(" ".join(tokenizer.decode(ids[1 : t + 1].tolist()).split()[-3:]) + " ...", fontsize=10)
    panels[0, 0].legend(loc="lower right")
    for axes in panels[1]:
        axes.set_xlabel("probability")
    figure.suptitle("What comes next: the teacher's target and the text's")
    plt.show()


def uncertainty(entropies: np.ndarray, tokens: Sequence[str]) -> None:
    """Plot the entropy of the next token in bits, after each of these tokens."""
    _, axes = plt.subplots()
    axes.bar(range(len(tokens)), entropies, color="C0")
    axes.set_xticks(range(len(tokens)), tokens, rotation=60)
    axes.set(xlabel="last token read", ylabel="entropy (bits)", title="The teacher's uncertainty about the next token")
    plt.show()


def twins(steps: Sequence[int], curves: Mapping[str, Sequence[float]], floor: float, one_pass: int) -> None:
    """Plot held-out losses, {label: one a step}, above the teacher's own; a pass over the texts takes some steps."""
    _, axes = plt.subplots()
    for (label, losses), colour in zip(curves.items(), ("C1", "C0"), strict=True):
        axes.plot(steps, losses, "o-", color=colour, label=label)
    axes.axhline(floor, color="black", linewidth=0.8, linestyle="--", label="the teacher's own loss")
    axes.axvline(one_pass, color="grey", linewidth=0.8, linestyle=":", label="one pass over the texts")
    axes.set(xlabel="steps (512 tokens each)", ylabel="loss on held-out texts (nats per token)")
    axes.set(ylim=(floor - 0.3, None), title="Same texts, same initial weights, different targets")
    axes.legend(loc=(0.55, 0.14))
    plt.show()


def bundled_pairs(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]) -> None:
    """Plot the losses of several runs of each kind, {kind: runs: checkpoints: (tokens, loss)}."""
    _, axes = plt.subplots()
    for (kind, runs), colour in zip(curves.items(), ("C1", "C0", "C6"), strict=True):
        for number, run in enumerate(runs):
            tokens, losses = np.array(run).T
            axes.plot(tokens / 1e6, losses, "o-", color=colour, markersize=3, label=None if number else kind)
    axes.set(xlabel="tokens of training (millions)", ylabel="loss on unread plays (nats per token)")
    axes.set_title("Three students, their twins, and a teacher")
    axes.legend()
    plt.show()


def tables(table6: Sequence[Mapping[str, Any]], table7: Sequence[Mapping[str, Any]]) -> None:
    """Plot the rows of two stored experiments: students of several budgets, and of several sizes."""
    _, panels = plt.subplots(1, 2, figsize=(7, 3.4), sharey=True)
    for axes, rows_of, x, label in (
        (panels[0], table6, "tokens", "tokens of training (millions)"),
        (panels[1], table7, "parameters", "parameters (millions), 1 M tokens"),
    ):
        for kind, colour in (("from scratch", "C1"), ("distilled", "C0")):
            rows = [row for row in rows_of if row["kind"] == kind]
            places = [row[x] / 1e6 for row in rows]
            means, deviations = [row["mean"] for row in rows], [row["std"] for row in rows]
            axes.errorbar(places, means, deviations, marker="o", capsize=3, color=colour, label=kind)
        ticks = [f"{float(f'{place:.1g}'):g}" for place in places]
        axes.set(xlabel=label, xscale="log", xticks=places, xticklabels=ticks)
        axes.minorticks_off()
    panels[0].set(ylabel="held-out loss (nats per token)", title="Table 6: three budgets")
    panels[1].set(title="Table 7: three sizes")
    panels[1].legend()
    plt.show()
