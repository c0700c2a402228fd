"""Prune, heal by distillation from the original, quantize: a small model out of a large one, measured after each step.

Each step leaves a checkpoint folder behind; one that is there is not made again.

Source: Muralidharan et al., arXiv 2407.14679 (pruning and distillation); Gemma 2 report, section 3.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.saving import save_folder
from gemma_np.compression.benchmark import Measurement, measure
from gemma_np.compression.calibration import cut_into_texts
from gemma_np.compression.pruning import keep_sparsity
from gemma_np.compression.pruning_plan import Plan, prune
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import check_quantization, quantize_model
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.training.data import consecutive_texts, random_batches
from gemma_np.training.distillation import from_teacher, weights_digest
from gemma_np.training.task import Task
from gemma_np.training.trainer import train
from gemma_np.training.training_state import Recipe


@dataclass(frozen=True)
class Steps:
    """What to do; a step that is None is left out."""

    prune: Plan | None
    heal: Recipe | None
    quantize: Scheme | None
    method: str = "clip"
    embedding: Scheme | None = None
    calibration: tuple[int, int] = (16, 256)  # texts, tokens of each
    measured: tuple[int, int] = (16, 256)


def compress(
    original: Gemma, steps: Steps, training: np.ndarray, validation: np.ndarray, out: Path
) -> Iterator[Measurement]:
    """Take the steps; of each, and of the original before them, yield what it measures.

    training and validation: token files [N]. The folders out/pruned, out/healed and out/quantized are checkpoints;
    out/report.json has the measurements. A folder that is there is taken as it is, a healing run goes on.

    Raises GemmaError when the folder was begun with other steps, and for whatever a step refuses.
    """
    out.mkdir(parents=True, exist_ok=True)
    _check_same(out / "steps.json", {"steps": repr(steps), "original": weights_digest(original)})
    ids = cut_into_texts(training, *steps.calibration, original)
    texts = np.concatenate([batch.ids for batch in consecutive_texts(validation, 1, steps.measured[1])])
    texts = texts[: steps.measured[0]]
    report = _Report(out / "report.json")

    def after(step: str, model: Gemma) -> Measurement:
        return report.of(step, lambda: measure(step, model, original, texts))

    def saved(step: str, make: Callable[[Path], object]) -> Gemma:
        if not (out / step).exists():
            make(out / step)
        return load(out / step)

    model = original
    yield after("original", original)
    if steps.prune:
        plan = steps.prune
        model = saved("pruned", lambda folder: prune(original, plan, ids).save(folder))
        yield after("pruned", model)
    if steps.quantize:  # better now than after the healing
        check_quantization(model.dequantized(), steps.quantize, steps.method, ids, steps.embedding)
    if steps.heal:
        task = Task(
            random_batches(training, steps.heal.batch, steps.heal.length),
            from_teacher(original),
            consecutive_texts(validation, steps.heal.batch, steps.heal.length),
            about={"teacher": weights_digest(original)},
        )
        if steps.prune and steps.prune.leaves_zeros:
            task = Task(task.draw, task.loss, task.validation, keep_sparsity(model.weights), task.about)
        train(model.dequantized(), task, steps.heal, out / "healed", resume=True)
        model = load(out / "healed")
        yield after("healed", model)
    if steps.quantize:
        weights = quantize_model(model.dequantized(), steps.quantize, steps.method, ids, steps.embedding)
        vocabulary = original.tokenizer.model if original.tokenizer else None
        model = saved("quantized", lambda folder: save_folder(folder, model.config, weights, vocabulary))
        yield after("quantized", model)


class _Report:
    """The measurements of a pipeline, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = json.loads(path.read_text()) if path.exists() else {}

    def of(self, step: str, make: Callable[[], Measurement]) -> Measurement:
        """What was measured after a step, now or before."""
        if step not in self.rows:
            self.rows[step] = asdict(make())
            atomic_write(self.path, lambda partial: partial.write_text(json.dumps(self.rows, indent=2) + "\n"))
        return Measurement(**self.rows[step])


def _check_same(path: Path, about: dict[str, object]) -> None:
    """Note what a folder is begun with, or raise a GemmaError when it was begun with something else."""
    if path.exists() and json.loads(path.read_text()) != about:
        raise GemmaError(f"{path.parent}: begun with other steps or another model, expected another folder")
    atomic_write(path, lambda partial: partial.write_text(json.dumps(about) + "\n"))
