"""Plot a comparison: the error and threshold of every record, in the order of execution."""

from collections.abc import Sequence
from pathlib import Path

from gemma_np.oracle.comparison import Row
from gemma_np.plotting import new_figure, save_figure


def plot_comparison(rows: Sequence[Row], output: str | Path) -> None:
    """Plot the errors of the rows to a file, in the format of its suffix (png, svg, pdf)."""
    judged = [row for row in rows if row.status in ("OK", "DIFF")]
    figure = new_figure(10, 4.5)
    axes = figure.subplots()
    axes.plot([row.threshold for row in judged], color="0.6", linewidth=1, drawstyle="steps-mid", label="threshold")
    for status, colour in (("OK", "C0"), ("DIFF", "C3")):
        points = [(x, max(row.error, row.threshold / 1e4)) for x, row in enumerate(judged) if row.status == status]
        if points:
            axes.plot(*zip(*points, strict=True), ".", color=colour, label=status)
    starts = [x for x, row in enumerate(judged) if row.key.endswith(".input_layernorm")]
    axes.set_xticks(starts, [judged[x].key.rsplit(".", 1)[0] for x in starts], rotation=45, ha="right")
    first = next((x for x, row in enumerate(judged) if row.status == "DIFF"), None)
    if first is not None:
        axes.annotate(
            f"first: {judged[first].key}",
            (first, judged[first].error),
            xytext=(0.02, 0.96),
            textcoords="axes fraction",
            va="top",
            arrowprops={"arrowstyle": "->", "color": "C3"},
        )
    axes.set(yscale="log", ylabel="largest error / largest number", xlabel="records, in the order of execution")
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3)
    save_figure(figure, output)
