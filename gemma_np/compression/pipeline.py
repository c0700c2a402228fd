"""Prune, heal by distillation from the original, quantize; measure each step and save its checkpoint.

Steps whose folder exists are not repeated.

Source: Muralidharan et al., arXiv 2407.14679 (pruning and distillation); Gemma 2 report, section 3.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.atomic_write import write_json
from gemma_np.checkpoints.checksum import CHECKSUM, folder_checksum
from gemma_np.checkpoints.saving import save_folder
from gemma_np.compression.benchmark import Measurement, measure
from gemma_np.compression.calibration import split_samples
from gemma_np.compression.pruning import keep_sparsity
from gemma_np.compression.pruning_plan import PruningPlan, prune
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import BFLOAT16, DEFAULT_METHOD, check_quantization, quantize_model
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.json_input import NUMBER, TEXT, object_of, read_json, whole_number
from gemma_np.training.data import Split, consecutive_batches, random_batches
from gemma_np.training.distillation import from_teacher, weights_digest
from gemma_np.training.task import Task
from gemma_np.training.trainer import run_task
from gemma_np.training.training_state import TrainingConfig

_FIELDS = {
    "step": TEXT,
    "parameters": whole_number(1),
    "bytes": whole_number(1),
    "perplexity": NUMBER,
    "kl": NUMBER,
    "agreement": NUMBER,
    "tokens_per_second": NUMBER,
}
_CHECKSUMS = object_of({}, others=CHECKSUM)
_REPORT = object_of({}, others=object_of(_FIELDS | {"checksum": CHECKSUM}))


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """The steps of a pipeline and their settings; a step that is None is skipped."""

    prune: PruningPlan | None = None
    heal: TrainingConfig | None = None
    quantize: Scheme | None = None
    method: str = DEFAULT_METHOD
    embedding: Scheme = BFLOAT16
    calibration: tuple[int, int] = (16, 256)  # samples, tokens per sample, at most those of the context
    evaluation: tuple[int, int] = (16, 256)  # texts, tokens per text, at most those of the context


def compress(original: Gemma, config: CompressionConfig, tokens: Split, out: Path) -> Iterator[Measurement]:
    """Compress a model step by step; yield the measurement of the original and of each step as it is completed.

    tokens: as `tokenize_texts` returns them. The folders out/pruned, out/healed and out/quantized are checkpoints;
    out/report.json has the measurements. Existing checkpoints are checked and reused, and a healing run is resumed.

    Raises GemmaError when the folder was started with another config or model, when it has folders of these names that
    no compression has made, and when a step raises it.
    """
    context = original.config.max_position_embeddings
    if context < 2:
        raise GemmaError(f"max_position_embeddings: {context}, expected at least 2, to measure how the model generates")
    if config.heal and config.heal.seq_len > context:
        raise GemmaError(f"seq_len: {config.heal.seq_len}, expected at most the model's context of {context}")
    out.mkdir(parents=True, exist_ok=True)
    _check_same(out / "compression.json", {"config": repr(config), "original": weights_digest(original)})
    ids = split_samples(tokens.train, *config.calibration, original)
    length = min(config.evaluation[1], context)
    texts = np.concatenate([batch.ids for batch in consecutive_batches(tokens.validation, 1, length)])
    return _compress(original, config, tokens, out, ids, texts[: config.evaluation[0]])


def _compress(
    original: Gemma, config: CompressionConfig, tokens: Split, out: Path, ids: np.ndarray, texts: np.ndarray
) -> Iterator[Measurement]:
    report = _Report(out / "report.json")
    checksums = _read_checksums(out / "checksums.json")

    def after(step: str, model: Gemma) -> Measurement:
        return report.of(step, lambda: measure(step, model, original, texts))

    def saved(step: str, make: Callable[[Path], object]) -> Gemma:
        folder = out / step
        if step not in checksums:
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before it wrote the checksum
        if not folder.exists():
            make(folder)
        found = folder_checksum(folder)
        if step not in checksums:
            checksums[step] = found
            write_json(out / "checksums.json", checksums)
        if checksums[step] != found:
            raise GemmaError(f"{folder}: damaged (wrong checksum); to make it again, remove it and resume")
        return load(folder)

    model = original
    yield after("original", original)
    if config.prune:
        plan = config.prune
        model = saved("pruned", lambda folder: prune(original, plan, ids).save(folder))
        yield after("pruned", model)
    if config.quantize:  # fail now rather than after the healing
        check_quantization(model.dequantized(), config.quantize, config.method, ids, config.embedding)
    if config.heal:
        task = Task(
            random_batches(tokens.train, config.heal.batch_size, config.heal.seq_len),
            from_teacher(original),
            consecutive_batches(tokens.validation, config.heal.batch_size, config.heal.seq_len),
            identity={"teacher": weights_digest(original)},
        )
        if config.prune and config.prune.leaves_zeros:
            task = replace(task, view_weights=keep_sparsity(model.weights))
        model = run_task(model.dequantized(), task, config.heal, out / "healed", resume=True)
        yield after("healed", model)
    if config.quantize:
        weights = quantize_model(model.dequantized(), config.quantize, config.method, ids, config.embedding)
        model = saved(
            "quantized", lambda folder: save_folder(folder, model.config, weights, model.tokenizer, source=model.source)
        )
        yield after("quantized", model)


class _Report:
    """The measurements of a pipeline, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = read_json(path, _REPORT, "the report of a compression") if path.exists() else {}
        self.rows = {step: row for step, row in rows.items() if row["step"] == step}

    def of(self, step: str, make: Callable[[], Measurement]) -> Measurement:
        """Return the measurement of a step, from the file or newly made."""
        if step not in self.rows:
            row = asdict(make())
            self.rows[step] = row | {"checksum": _row_checksum(row)}
            write_json(self.path, self.rows)
        row = {name: self.rows[step][name] for name in _FIELDS}
        if self.rows[step]["checksum"] != _row_checksum(row):
            raise GemmaError(f"{self.path}: {step}: damaged (wrong checksum), expected the row that was measured")
        return Measurement(**row)


def _row_checksum(row: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(row).encode())


def _check_same(path: Path, settings: dict[str, object]) -> None:
    """Write the settings of a folder to a file. Raises GemmaError when the folder was started with others."""
    if path.exists():
        if read_json(path, object_of({}), "the settings of a compression") != settings:
            raise GemmaError(f"{path.parent}: started with another config or model, expected another folder")
    else:  # never remove what was not made here
        for step in ("pruned", "healed", "quantized"):
            if os.path.lexists(path.with_name(step)):
                raise GemmaError(f"{path.with_name(step)}: exists, expected a new folder or that of a compression")
    write_json(path, settings)


def _read_checksums(path: Path) -> dict[str, int]:
    """Return the checksum of each checkpoint that has been completed, by the name of its step."""
    checksums = read_json(path, _CHECKSUMS, "the checksums of the checkpoints") if path.exists() else {}
    return {step: checksums[step] for step in ("pruned", "quantized") if step in checksums}
