"""The commands that make a model smaller, one function each: quantize, prune, compress, export-gguf; and
random-checkpoint, to try what fits.

Each raises GemmaError for what it cannot do, in the one line that `gemma-np` then prints.
"""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np

from gemma_np.checkpoints.random_weights import random_weights, write_sparse
from gemma_np.checkpoints.saving import save_folder
from gemma_np.compression import gguf_export, pipeline
from gemma_np.compression.benchmark import table
from gemma_np.compression.calibration import calibration_texts
from gemma_np.compression.pipeline import Steps
from gemma_np.compression.pruning_plan import prune as prune_parts
from gemma_np.compression.pruning_plan import read_plan
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import CALIBRATED, quantize_model
from gemma_np.config import RELEASED, GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.training.data import open_tokens, prepare, read_text, text_files, write_tokens
from gemma_np.training.training_state import Recipe
from gemma_np.weights.formats import Weight


def quantize(options: argparse.Namespace) -> None:
    """Store a model's weights in 4, 8 or 16 bits."""
    out = _new_folder(options.output)
    scheme, embedding = schemes(options)
    model = load(options.model, "stored")
    ids = _calibration(options, model) if options.method in CALIBRATED else None
    weights = quantize_model(model, scheme, options.method, ids, embedding)
    save_folder(out, model.config, _shown(weights, model.config, "quantizing"), _vocabulary(model))


def prune(options: argparse.Namespace) -> None:
    """Take the least important parts out of a model; what is left is an ordinary checkpoint."""
    out = _new_folder(options.output)
    plan = read_plan(options.plan)
    model = load(options.model)
    ids = _calibration(options, model) if plan.needs_text else None
    prune_parts(model, plan, ids).save(out)


def compress(options: argparse.Namespace) -> None:
    """Prune a model, heal it by distillation from the original, quantize it; measured after each step."""
    scheme, embedding = schemes(options) if options.to else (None, None)
    plan = read_plan(options.prune) if options.prune else None
    steps = Steps(plan, _recipe(options) if options.distill else None, scheme, options.method, embedding)
    out = Path(options.output)
    if out.exists() and not options.resume:
        raise GemmaError(f"{out}: exists, expected --resume or another folder")
    original = load(options.model)
    if original.tokenizer is None:
        raise GemmaError(f"{options.model}: no tokenizer.model, expected one to read the text with")
    data, files, words = out / "data", text_files(Path(options.text)), original.tokenizer
    about = {"documents": len(files), "bytes": sum(file.stat().st_size for file in files), "seed": options.seed}
    prepare(data, about, lambda: write_tokens(files, words, data, options.validation, options.seed), options.resume)
    training, validation = (open_tokens(data / f"{name}.npy", options.length) for name in ("train", "validation"))
    rows = []
    for row in pipeline.compress(original, steps, training, validation, out):
        rows.append(row)
        print(table(rows[-1:], head=len(rows) == 1), flush=True)
    print(f"{out / rows[-1].step}: the checkpoint; {out / 'report.json'}: this table")


def export_gguf(options: argparse.Namespace) -> None:
    """Write a model to a .gguf file, for llama.cpp and its relatives."""
    gguf_export.export_gguf(load(options.model, "stored"), options.to, Path(options.output))


def random_checkpoint(options: argparse.Namespace) -> None:
    """Write a checkpoint of random weights in a released model's shapes, to try what fits and how fast it is."""
    out = _new_folder(options.output)
    if options.name not in RELEASED:
        raise GemmaError(f"{options.name}: expected one of {', '.join(RELEASED)}")
    config = RELEASED[options.name]
    if options.sparse:
        write_sparse(out, config)
    else:
        save_folder(out, config, _shown(random_weights(config, options.dtype), config, "writing"), None)


def schemes(options: argparse.Namespace) -> tuple[Scheme, Scheme | None]:
    """How matrices, and the embedding, if it is another way, are to be stored."""
    scheme = Scheme(options.to, options.group if options.to == "int4" else None, options.zero_points)
    return scheme, Scheme(options.embedding) if options.embedding else None


def _recipe(options: argparse.Namespace) -> Recipe:
    values = {field.name: getattr(options, field.name) for field in fields(Recipe) if field.name != "steps"}
    return Recipe(steps=options.distill, **values)


def _calibration(options: argparse.Namespace, model: Gemma) -> np.ndarray:
    if options.text is None:
        raise GemmaError("expected --text, a text file or a folder to calibrate with")
    text = "\n".join(read_text(file) for file in text_files(Path(options.text)))
    return calibration_texts(model, text, options.texts, options.length)


def _shown(weights: Iterable[tuple[str, Weight]], config: GemmaConfig, what: str) -> Iterable[tuple[str, Weight]]:
    """The weights with a progress bar."""
    from tqdm import tqdm

    total = sum(1 for _ in config.weight_shapes())
    return tqdm(weights, total=total, desc=what, unit=" weights", delay=1, leave=False)


def _new_folder(name: str) -> Path:
    folder = Path(name)
    if folder.exists():
        raise GemmaError(f"{folder}: exists, expected a new folder")
    return folder


def _vocabulary(model: Gemma) -> bytes | None:
    return model.tokenizer.model if model.tokenizer else None
