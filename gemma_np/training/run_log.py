"""The log of a run: log.jsonl with one line per step, a progress bar, and a plot."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.errors import GemmaError
from gemma_np.input_files import read_text
from gemma_np.json_input import NUMBER, object_of, parse_json, whole_number
from gemma_np.plotting import new_figure, save_figure
from gemma_np.progress import progress_bar
from gemma_np.training.training_state import read_identity

_ENTRY = object_of({"step": whole_number(1), "loss": NUMBER, "learning_rate": NUMBER}, others=NUMBER)


class RunLog:
    """The log of a run in progress; a silent one writes nothing."""

    def __init__(self, folder: Path, steps: int, step: int, *, silent: bool = False) -> None:
        """Open the log of a folder and drop the lines after `step`, which a killed run may have written after its last
        checkpoint."""
        self.progress = progress_bar(total=steps, initial=step, desc="training", unit="steps", hide=silent)
        self.file: TextIO | None = None
        if silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        kept = [entry for entry in _entries(path) if entry["step"] <= step] if path.exists() else []
        atomic_write(path, lambda partial: partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept)))
        self.file = path.open("a")

    def write(self, entry: Mapping[str, float]) -> None:
        """Add a line and advance the progress bar."""
        if self.file:
            with _naming(self.file):
                self.file.write(json.dumps(entry) + "\n")
        self.progress.set_postfix_str(f"loss {entry['loss']:.3f}", refresh=False)
        self.progress.update()

    def flush(self) -> None:
        """Flush the lines to the file before the checkpoint of their last step is written."""
        if self.file:
            with _naming(self.file):
                self.file.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.close()
        if self.file:
            with _naming(self.file):
                self.file.close()


@contextmanager
def _naming(file: TextIO) -> Iterator[None]:
    """Let an error of the disk name the file."""
    try:
        yield
    except OSError as error:
        raise GemmaError(f"{file.name}: could not be written ({error.strerror or error})") from None


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the entries of a run's log, one per step. Raises GemmaError when there is none."""
    path = folder / "log.jsonl"
    entries = _entries(path)
    if not entries:
        raise GemmaError(f"{path}: has no steps, expected the log of a run")
    return entries


def _entries(path: Path) -> list[dict[str, float]]:
    """Return the complete lines of a log; a killed run may have left an incomplete one at its end."""
    lines = read_text(path, "the log of a run").split("\n")[:-1]
    return [parse_json(line, _ENTRY, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


NEXT_TOKEN = "-log P of the next token"


def training_loss(folder: Path) -> str:
    """Return what the training loss of a run is; before its first checkpoint, the loss of next-token prediction."""
    identity = read_identity(folder)
    if "targets" in identity:
        return f"cross-entropy with the teacher's top {identity['targets']['top_k']} and the rest"
    if "divergence" not in identity:
        return NEXT_TOKEN
    temperature = identity.get("temperature", 1.0)
    softened = f" at temperature {temperature:g}" if temperature != 1 else ""
    return {
        "cross-entropy": f"cross-entropy with the teacher{softened}",
        "reverse-kl": "reverse KL divergence from the teacher",
        "jensen-shannon": "Jensen-Shannon divergence from the teacher",
    }[identity["divergence"]]


def plot_logs(folders: Sequence[Path], output: Path) -> None:
    """Plot the losses of runs in nats, each kind of loss on axes of its own, and below their learning rates.

    Raises GemmaError when a log or matplotlib is missing.
    """
    logs = {folder: read_log(folder) for folder in folders}
    kinds = {folder: training_loss(folder) for folder in logs}
    is_validated = any("val_loss" in entry for log in logs.values() for entry in log)
    panels = sorted({*kinds.values(), *([NEXT_TOKEN] if is_validated else [])}, key=lambda kind: kind != NEXT_TOKEN)
    figure = new_figure(8, 2 + 3.5 * len(panels))
    *loss_axes, rate_axes = figure.subplots(len(panels) + 1, 1, sharex=True, height_ratios=[4] * len(panels) + [1])
    axes_of = dict(zip(panels, loss_axes, strict=True))
    for number, (folder, log) in enumerate(logs.items()):
        colour = f"C{number}"
        steps, losses = np.array([(entry["step"], entry["loss"]) for entry in log]).T
        axes, reach = axes_of[kinds[folder]], len(losses) // 100
        axes.plot(steps, losses, color=colour, alpha=0.2, linewidth=0.8)
        label = f"{folder}: training" + (f" (mean of {2 * reach + 1} steps)" if reach else "")
        axes.plot(steps[reach : len(steps) - reach], centred_mean(losses, reach), color=colour, label=label)
        measured = [(entry["step"], entry["val_loss"]) for entry in log if "val_loss" in entry]
        if measured:
            label = f"{folder}: validation"
            axes_of[NEXT_TOKEN].plot(*np.array(measured).T, "o--", color=colour, markersize=4, label=label)
        rate_axes.plot(steps, [entry["learning_rate"] for entry in log], color=colour)
    for kind, axes in axes_of.items():
        axes.set_title(kind, fontsize=10, loc="left")
        axes.set(ylabel="nats per token")
        axes.legend(frameon=False)
    rate_axes.set(xlabel="step", ylabel="learning rate")
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (*loss_axes, rate_axes):
        axes.grid(alpha=0.3)
    save_figure(figure, output)


def centred_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Return the mean of each value and `reach` values on both sides, where these exist: [N] -> [N - 2 * reach]."""
    return np.convolve(values, np.full(2 * reach + 1, 1 / (2 * reach + 1)), "valid")
