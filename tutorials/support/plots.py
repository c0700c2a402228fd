"""How the tutorials draw: one style, colours that the colour-blind tell apart, and a matrix with its tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gemma_np.text.tokenizer import Tokenizer

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Okabe and Ito's palette, the darkest and the lightest apart from each other first."""


def use_style() -> None:
    """Let matplotlib draw in the tutorials' style from here on."""
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
    """The tokens as labels: a space is shown as ▁, a new line as ⏎."""
    return [tokenizer.piece(int(id)).replace("\n", "⏎") for id in ids]


def matrix(
    axes: Any,
    values: np.ndarray,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    label: str = "",
    limit: float | None = None,
) -> None:
    """Draw values [rows, columns] as colours with a scale beside them.

    Rows and columns get labels where there are any. With a limit, colours diverge from white at 0 to both sides, up to
    that size; without, they run from the least to the greatest. NaN stays blank.
    """
    scale = {"cmap": "PuOr", "vmin": -limit, "vmax": limit} if limit is not None else {}
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **scale)
    axes.grid(False)
    if len(rows):
        axes.set_yticks(range(len(rows)), rows)
    if len(columns):
        axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.figure.colorbar(image, ax=axes, label=label)
