"""The commands that compress: quantize, prune, compress, export-gguf; and init-checkpoint.

Each raises GemmaError for bad input, as one line that `gemma-np` prints.
"""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from gemma_np.checkpoints.gguf_mixture import MIXTURES
from gemma_np.checkpoints.random_weights import RANDOM_FORMATS, random_weights
from gemma_np.checkpoints.saving import save_folder, save_sparse_folder
from gemma_np.cli.arguments import (
    SCHEME_OPTIONS,
    TEXT_HELP,
    Command,
    add_calibration,
    add_model,
    add_scheme,
    read_calibration,
    read_schemes,
    refuse_without,
)
from gemma_np.cli.options import add_number
from gemma_np.cli.outputs import add_new_folder, add_output_file, report_written
from gemma_np.cli.training import add_training_config
from gemma_np.compression import export_gguf as export
from gemma_np.compression import pipeline, pruning_plan, quantize_model
from gemma_np.compression.benchmark import table
from gemma_np.compression.pipeline import CompressionConfig
from gemma_np.compression.pruning_plan import PARTS, read_plan
from gemma_np.compression.quantization import QUANTIZE_FORMATS
from gemma_np.compression.quantize_model import DEFAULT_METHOD
from gemma_np.config import RELEASED, GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import load
from gemma_np.progress import progress_bar
from gemma_np.training.data import tokenize_texts
from gemma_np.training.run_lock import run_lock
from gemma_np.training.training_state import TrainingConfig
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import Weight

GGUF_FORMATS = tuple(mixture for mixture, format in MIXTURES.items() if format in BLOCK_FORMATS)
"""The formats that quantize writes to a .gguf file."""


def add_commands(command: Command) -> None:
    """Register the commands of this group."""
    sub = command(
        quantize,
        "gemma-np quantize --model google/gemma-2-9b-it --format int8 -o gemma-9b-int8",
        "gemma-np quantize --model google/gemma-2-2b --format int4 --method gptq --calibration-text books/ "
        "-o gemma-2b-int4",
        "gemma-np quantize --model google/gemma-2-2b --format q4_k_m -o gemma-2b-q4_k_m.gguf",
    )
    add_model(sub)
    add_scheme(sub, "--format", QUANTIZE_FORMATS + GGUF_FORMATS, required=True)
    add_calibration(sub)
    add_new_folder(sub, "the new checkpoint folder, or the .gguf file for the formats of llama-quantize")

    sub = command(
        prune,
        "gemma-np prune --model google/gemma-2-2b layers=22,intermediate-size=6912 --calibration-text books/ "
        "-o smaller",
        "gemma-np prune --model google/gemma-2-2b wanda=2:4 --calibration-text books/ -o sparse",
    )
    add_model(sub)
    parts = "; ".join(f"{name}: {meaning}" for name, meaning in PARTS.items())
    sub.add_argument("plan", metavar="PLAN", help=f"NAME=VALUE,... with {parts}")
    add_calibration(sub)
    add_new_folder(sub)

    sub = command(
        compress,
        "gemma-np compress plays/ --model shakespeare-4m --prune intermediate-size=512 --distill 300 --quantize int8 "
        "-o small",
        "gemma-np compress plays/ --model shakespeare-4m --prune wanda=2:4 --quantize int8 -o sparse --resume",
    )
    sub.add_argument("text", metavar="TEXT", help=f"text to calibrate, heal and evaluate with: {TEXT_HELP}")
    add_model(sub)
    sub.add_argument("--prune", metavar="PLAN", help="what to prune, as in gemma-np prune")
    add_number(sub, "--distill", "heal with this many steps of distillation", metavar="STEPS")
    add_scheme(sub, "--quantize", QUANTIZE_FORMATS)
    sub.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="output folder, with a checkpoint for each step"
    )
    sub.add_argument("--resume", action="store_true", help="continue the compression in OUT")
    add_training_config(sub, "distillation", without=("steps",))

    sub = command(
        export_gguf,
        "gemma-np export-gguf --model ./gemma-2-2b --format q4_k_m -o gemma-2-2b-q4_k_m.gguf",
        "gemma-np export-gguf --model ./gemma-2-2b --format q4_k_m --calibration-text books/ -o gemma-2-2b-q4_k_m.gguf",
    )
    add_model(sub)
    meaning = "mixture of formats, named as llama-quantize does (q8_0)"
    sub.add_argument("--format", choices=MIXTURES, default="q8_0", help=meaning)
    add_calibration(sub)
    add_output_file(sub, "the .gguf file to write")

    sub = command(
        init_checkpoint,
        "gemma-np init-checkpoint gemma-2-27b --format int4 -o random-27b",
        "gemma-np init-checkpoint gemma-2-27b --sparse-file -o sparse-27b",
    )
    sub.add_argument("name", metavar="NAME", help="a released model, as listed by gemma-np models")
    meaning = "format of the matrices (bfloat16)"
    sub.add_argument("--format", choices=RANDOM_FORMATS, default="bfloat16", help=meaning)
    sub.add_argument("--sparse-file", action="store_true", help="write bfloat16 zeros that take no disk space")
    add_new_folder(sub)


def quantize(options: argparse.Namespace) -> None:
    """Store a model's weights in 2 to 16 bits: a folder, or a .gguf file in formats of llama-quantize."""
    if options.format in GGUF_FORMATS:
        refuse_without(f"--format {'/'.join(QUANTIZE_FORMATS)}", options, *SCHEME_OPTIONS)
        return export_gguf(options)
    out = Path(options.output)
    scheme, embedding = read_schemes(options)
    model = load(options.model, "stored")
    method = options.method or DEFAULT_METHOD
    ids = read_calibration(options, model) if method in quantize_model.CALIBRATED else None
    weights = quantize_model.quantize_model(model, scheme, method, ids, embedding)
    progress = _progress(weights, model.config, "quantizing")
    save_folder(out, model.config, progress, model.tokenizer, source=model.source)
    report_written(out)


def prune(options: argparse.Namespace) -> None:
    """Remove the least important parts of a model."""
    out = Path(options.output)
    plan = read_plan(options.plan)
    model = load(options.model)
    ids = read_calibration(options, model) if plan.needs_calibration else None
    pruning_plan.prune(model, plan, ids).save(out)
    report_written(out)


def compress(options: argparse.Namespace) -> None:
    """Prune a model, heal it by distillation from the original, quantize it; measure each step."""
    if not options.format:
        refuse_without("--quantize", options, *SCHEME_OPTIONS)
    scheme, embedding = read_schemes(options) if options.format else (None, quantize_model.BFLOAT16)
    config = CompressionConfig(
        prune=read_plan(options.prune) if options.prune else None,
        heal=_healing(options) if options.distill else None,
        quantize=scheme,
        method=options.method or DEFAULT_METHOD,
        embedding=embedding,
    )
    out = Path(options.output)
    if out.exists() and not options.resume:
        raise GemmaError(f"{out}: exists, expected --resume or another folder")
    with run_lock(out):
        original = load(options.model)
        tokens = tokenize_texts(
            options.text,
            original.require_tokenizer(),
            out / "data",
            val_fraction=options.val_fraction,
            seed=options.seed,
            keep=options.resume,
        )
        rows = []
        for row in pipeline.compress(original, config, tokens, out):
            rows.append(row)
            print(table(rows[-1:], head=len(rows) == 1), flush=True)
        print(f"{out / rows[-1].step}: the checkpoint; {out / 'report.json'}: this table")


def export_gguf(options: argparse.Namespace) -> None:
    """Write a model to a .gguf file, for llama.cpp and other GGUF readers."""
    model = load(options.model, "stored")
    ids = read_calibration(options, model) if options.calibration_text else None
    export.export_gguf(model, options.format, Path(options.output), ids)
    report_written(options.output)


def init_checkpoint(options: argparse.Namespace) -> None:
    """Write random weights in a released model's shapes, to test memory and speed."""
    out = Path(options.output)
    if options.name not in RELEASED:
        raise GemmaError(f"{options.name}: expected one of {', '.join(RELEASED)}")
    config = RELEASED[options.name]
    if options.sparse_file:
        save_sparse_folder(out, config)
    else:
        save_folder(out, config, _progress(random_weights(config, options.format), config, "writing"), None)
    report_written(out)


def _healing(options: argparse.Namespace) -> TrainingConfig:
    values = {field.name: getattr(options, field.name) for field in fields(TrainingConfig) if field.name != "steps"}
    return TrainingConfig(steps=options.distill, **values)


def _progress(weights: Iterable[tuple[str, Weight]], config: GemmaConfig, what: str) -> Iterable[tuple[str, Weight]]:
    """Return the weights with a progress bar."""
    total = sum(1 for _ in config.weight_shapes())
    return progress_bar(weights, total=total, desc=what, unit="weights")
