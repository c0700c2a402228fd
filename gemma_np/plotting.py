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
        raise GemmaError('matplotlib: not installed; to plot, pip install "gemma-np[plot]"') from None
    return Figure(figsize=(width, height), layout="constrained")


def plot_format(output: str | Path) -> str:
    """Return the format of a plot: the suffix of its file, or png. Raises GemmaError when it cannot be written."""
    format = Path(output).suffix.removeprefix(".") or "png"
    if format not in new_figure(1, 1).canvas.get_supported_filetypes():
        raise GemmaError(f"{output}: format {quoted(format)}, expected png, svg or pdf")
    return format


def save_figure(figure: Any, output: str | Path) -> None:
    """Save a figure in the format of the file's suffix (png, svg, pdf). Raises GemmaError when it cannot be saved."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path, format = Path(output), plot_format(output)
    try:
        atomic_write(path, lambda partial: figure.savefig(partial, format=format, dpi=150))
    except GemmaError:
        raise
    except (ArithmeticError, ValueError) as error:  # Matplotlib raises either for numbers near 1e308
        raise GemmaError(f"{path}: cannot be drawn ({error}), expected smaller numbers") from None
