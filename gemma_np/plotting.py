"""Create and save matplotlib figures, for all plots of the package (pip install "gemma-np[plot]")."""

from pathlib import Path
from typing import Any

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.errors import GemmaError, quoted


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure; width and height in inches. Raises GemmaError when matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise GemmaError("matplotlib: not installed; to plot, pip install 'gemma-np[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, output: str | Path) -> None:
    """Save a figure in the format of the file's suffix (png, svg, pdf). Raises GemmaError when it cannot be saved."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path = Path(output)
    suffix = path.suffix.removeprefix(".") or "png"
    if suffix not in figure.canvas.get_supported_filetypes():
        raise GemmaError(f"{path}: format {quoted(suffix)}, expected png, svg or pdf")
    try:
        atomic_write(path, lambda partial: figure.savefig(partial, format=suffix, dpi=150))
    except GemmaError:
        raise
    except (ArithmeticError, ValueError) as error:  # Matplotlib raises either for numbers near 1e308
        raise GemmaError(f"{path}: cannot be drawn ({error}), expected smaller numbers") from None
