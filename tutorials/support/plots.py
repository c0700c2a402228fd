"""Plots of the tutorials: one style, colours for colour-blind readers, and a matrix with its tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gemma_np.text.tokenizer import Tokenizer

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Okabe and Ito's palette, in an order in which neighbours differ most."""


def use_style() -> None:
    """Set matplotlib to the style of the tutorials."""
    import matplotlib

    matplotlib.rcParams.update(
        {
            "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "figure.constrained_layout.use": True,
            "figure.dpi": 90,
            "figure.figsize": (7, 3.6),
            "image.cmap": "viridis",
            "legend.frameon": False,
        }
    )


def pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Return the piece of each token as a label: ▁ for a space, ⏎ for a new line."""
    return [tokenizer.piece(int(id)).replace("\n", "⏎") for id in ids]


def matrix(
    axes: Any,
    values: np.ndarray,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    label: str = "",
    limit: float | None = None,
) -> None:
    """Plot values [rows, columns] as colours, with a colour bar.

    With a limit, the colours diverge from white at 0 up to that size; without, they run from the smallest to the
    largest value. NaN stays blank.
    """
    scale = {"cmap": "PuOr", "vmin": -limit, "vmax": limit} if limit is not None else {}
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **scale)
    axes.grid(False)
    if len(rows):
        axes.set_yticks(range(len(rows)), rows)
    if len(columns):
        axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.figure.colorbar(image, ax=axes, label=label)
