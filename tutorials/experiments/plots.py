"""The plots of the experiments."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent


def bars(name: str, rows: list[dict], title: str) -> None:
    """Plot the mean loss of each row with its standard deviation, and the loss of each seed as a tick."""
    figure = Figure(figsize=(7, 1.4 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.errorbar(row["mean"], place, xerr=row["std"], fmt="o", color="C0", capsize=4)
        axes.plot(row["losses"], [place] * len(row["losses"]), "|", color="C1", markersize=10)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.margins(y=0.3)
    axes.set(
        xlabel="validation loss (nats per token); dot and whiskers: mean and standard deviation, ticks: seeds",
        title=title,
    )
    save(figure, axes, HERE / f"{name}.svg")


def lines(name: str, rows: list[dict], title: str, *, x: str, unit: str) -> None:
    """Plot the loss over a column of the rows, in millions, one line per kind of training."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        chosen = [row for row in rows if row["kind"] == kind]
        sizes = [row[x] / 1e6 for row in chosen]
        means, stds = [row["mean"] for row in chosen], [row["std"] for row in chosen]
        axes.errorbar(sizes, means, yerr=stds, fmt="o-", color=f"C{number}", capsize=4, label=kind)
    axes.set(xlabel=unit, ylabel="validation loss (nats per token)", title=title)
    axes.legend(frameon=False)
    save(figure, axes, HERE / f"{name}.svg")


def save(figure: Figure, axes: Axes, path: Path) -> None:
    """Write the figure to an svg file."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
