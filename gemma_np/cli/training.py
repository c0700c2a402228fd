"""The commands that train: tokenizer, train, distill, cache-teacher, merge, plot-log.

Each raises GemmaError for bad input, as one line that `gemma-np` prints.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.cli.arguments import (
    DRAFT_HELP,
    MODEL_HELP,
    TEXT_HELP,
    Command,
    add_group_size,
    read_group_size,
    refuse_without,
)
from gemma_np.cli.options import add_number
from gemma_np.cli.outputs import add_new_folder, add_output_file, report_written
from gemma_np.compression.drafts import read_draft
from gemma_np.compression.qat import FakeQuantize
from gemma_np.compression.quantization import QUANTIZE_FORMATS, Scheme
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.input_files import read_text
from gemma_np.text.tokenizer import Tokenizer, read_tokenizer
from gemma_np.training import merging, runs
from gemma_np.training.data import text_files
from gemma_np.training.distillation import DIVERGENCES
from gemma_np.training.initial_model import SMALL_SHAPE, new_model
from gemma_np.training.run_log import plot_logs
from gemma_np.training.teacher_targets import targets_tokenizer
from gemma_np.training.tokenizer_training import train_tokenizer
from gemma_np.training.training_state import TrainingConfig

SHAPE = {  # name in the config: option, meaning
    "hidden_size": ("hidden-size", "channels of the residual stream"),
    "num_hidden_layers": ("layers", "layers"),
    "num_attention_heads": ("heads", "query heads"),
    "num_key_value_heads": ("kv-heads", "key-value heads"),
    "head_dim": ("head-dim", "channels of each head"),
    "intermediate_size": ("intermediate-size", "channels of the feed-forward layer"),
    "sliding_window": ("sliding-window", "keys that a local layer sees"),
    "max_position_embeddings": ("context", "context length in tokens"),
}

TRAINING = {
    "steps": "training steps",
    "batch_size": "texts in a batch, shared by the ranks",
    "seq_len": "tokens in a text",
    "learning_rate": "peak learning rate",
    "warmup_steps": "steps of linear warm-up",
    "max_grad_norm": "clip gradients to this global norm",
    "weight_decay": "weight decay, applied to matrices",
    "grad_accum_steps": "batches accumulated into one step",
    "seed": "seed of weights, data and split",
    "val_fraction": "fraction of documents held out",
    "save_every": "steps between checkpoints",
    "eval_every": "steps between evaluations",
}


def add_commands(command: Command) -> None:
    """Register the commands of this group."""
    sub = command(tokenizer, "gemma-np tokenizer texts/ --vocab-size 2048 -o tokenizer.model")
    sub.add_argument("text", metavar="TEXT", help=TEXT_HELP)
    add_number(sub, "--vocab-size", "number of pieces", 2048, metavar="V")
    add_output_file(sub, "the file to write", "tokenizer.model")

    sub = command(
        train,
        "gemma-np train texts/ --tokenizer tokenizer.model -o run --steps 2000",
        "gemma-np train texts/ --tokenizer tokenizer.model -o run --steps 2000 --resume",
        "gemma-np train chats.jsonl --model google/gemma-3-270m -o tuned --learning-rate 1e-5 --seq-len 512",
        "mpiexec -n 4 gemma-np train texts/ --tokenizer tokenizer.model -o run",
        shares_work=True,
    )
    sub.add_argument("text", metavar="TEXT", help=f"{TEXT_HELP}; or a .jsonl file with one conversation per line")
    sub.add_argument("--tokenizer", metavar="FILE", help="train from scratch, with this tokenizer.model")
    _add_run(sub)

    sub = command(
        distill,
        "gemma-np distill texts/ --teacher run -o student --hidden-size 64 --intermediate-size 256",
        "gemma-np distill --targets targets -o student",
        "gemma-np distill texts/ --teacher run --model student --on-policy --divergence jensen-shannon -o better",
        shares_work=True,
    )
    sub.add_argument("text", metavar="TEXT", nargs="?", help=f"{TEXT_HELP} (not with --targets)")
    sub.add_argument("--teacher", metavar="M", help=f"live teacher: {MODEL_HELP}")
    sub.add_argument("--targets", metavar="FOLDER", help="precomputed targets, written by gemma-np cache-teacher")
    meaning = "divergence from the teacher (cross-entropy, which is -sum P_T log P_S)"
    sub.add_argument("--divergence", choices=DIVERGENCES, default="cross-entropy", help=meaning)
    meaning, row = "cross-entropy: soften both distributions", "--temperature of distillation"
    add_number(sub, "--temperature", meaning, 1.0, row=row, metavar="T")
    add_number(sub, "--beta", "jensen-shannon: weight of the teacher", 0.5, metavar="B")
    sub.add_argument("--on-policy", action="store_true", help="train on the student's own continuations")
    add_number(sub, "--prompt-tokens", "on-policy: tokens in a prompt", 16)
    sub.add_argument("--draft", metavar="M", help=f"on-policy: sample one by one, with a draft: {DRAFT_HELP}")
    _add_run(sub)

    sub = command(
        cache_teacher,
        "gemma-np cache-teacher texts/ --teacher run -o targets --top-k 32 --seq-len 256",
        "gemma-np cache-teacher texts/ --teacher run-1 --teacher run-2 -o targets",
        shares_work=True,
    )
    sub.add_argument("text", metavar="TEXT", help=TEXT_HELP)
    meaning = f"the teacher: {MODEL_HELP}; repeat it to average several"
    sub.add_argument("--teacher", metavar="M", required=True, action="append", help=meaning)
    sub.add_argument("-o", "--output", metavar="FOLDER", required=True, help="output folder; existing files are kept")
    add_number(sub, "--top-k", "most likely tokens to store per position", 32, metavar="K")
    add_number(sub, "--seq-len", "tokens in a text", 128)
    add_number(sub, "--val-fraction", "fraction of documents held out", 0.05, metavar="P")
    add_number(sub, "--seed", "seed of the split", 0, metavar="S")

    sub = command(merge, "gemma-np merge run-1 run-2 run-3 -o merged", "gemma-np merge run --dtype bfloat16 -o small")
    sub.add_argument("models", metavar="M", nargs="+", help="checkpoints with the same config and tokenizer")
    add_new_folder(sub)
    sub.add_argument("--dtype", choices=merging.DTYPES, default="float32", help="dtype of the new checkpoint (float32)")

    sub = command(plot_log, "gemma-np plot-log run", "gemma-np plot-log student baseline -o losses.svg")
    sub.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    add_output_file(sub, "a png, svg or pdf file", "log.png")


def tokenizer(options: argparse.Namespace) -> None:
    """Train a tokenizer with the settings of Gemma's own."""
    lines = (line for file in text_files(Path(options.text)) for line in read_text(file).splitlines())
    model = train_tokenizer(lines, options.vocab_size)
    atomic_write(Path(options.output), lambda path: path.write_bytes(model))
    report_written(options.output)


def train(options: argparse.Namespace) -> None:
    """Train a Gemma on texts, or fine-tune it on conversations."""
    if options.model is None and options.tokenizer is None:
        raise GemmaError("expected --tokenizer to train from scratch, or --model to continue from a checkpoint")
    train_on = runs.fine_tune if Path(options.text).suffix == ".jsonl" else runs.train
    run = train_on(
        options.model or _new_model(options, read_tokenizer(options.tokenizer)),
        options.text,
        options.output,
        config=training_config(options),
        view_weights=_fake_quantize(options),
        resume=options.resume,
        ranks=options.ranks,
    )
    _report_run(options.output, run)


def distill(options: argparse.Namespace) -> None:
    """Train a Gemma to match a teacher's distribution: live teacher, precomputed targets, or on-policy."""
    if bool(options.targets) == bool(options.teacher):
        raise GemmaError("expected --teacher and TEXT for a live teacher, or --targets for precomputed targets")
    common: runs.RunOptions = {
        "config": training_config(options),
        "view_weights": _fake_quantize(options),
        "resume": options.resume,
        "ranks": options.ranks,
    }
    if options.targets:
        live = options.text or options.on_policy or options.draft or options.temperature != 1
        if live or options.divergence != "cross-entropy":
            raise GemmaError(
                "--targets: expected no TEXT, --on-policy, --draft, --temperature or --divergence beside it"
            )
        student = options.model or _new_model(options, targets_tokenizer(options.targets))
        return _report_run(options.output, runs.distill_from_cache(student, options.targets, options.output, **common))
    if options.text is None:
        raise GemmaError("TEXT: missing, expected a text file or a folder for the teacher to read")
    if not options.on_policy:
        refuse_without("--on-policy", options, "draft")
    teacher = load(options.teacher)
    run = runs.distill(
        options.model or _new_model(options, teacher.require_tokenizer(), teacher.config.vocab_size),
        options.text,
        options.output,
        teacher=teacher,
        divergence=options.divergence,
        temperature=options.temperature,
        beta=options.beta,
        prompt_tokens=options.prompt_tokens if options.on_policy else None,
        draft=read_draft(options.draft) if options.draft else None,
        **common,
    )
    _report_run(options.output, run)


def cache_teacher(options: argparse.Namespace) -> None:
    """Precompute a teacher's top-k probabilities on texts, for any number of students."""
    runs.cache_teacher(
        options.teacher,
        options.text,
        options.output,
        top_k=options.top_k,
        seq_len=options.seq_len,
        val_fraction=options.val_fraction,
        seed=options.seed,
        ranks=options.ranks,
    )
    report_written(options.output)


def merge(options: argparse.Namespace) -> None:
    """Average the weights of several checkpoints, or convert one to another dtype."""
    merging.merge([load(name) for name in options.models], options.dtype).save(options.output)
    report_written(options.output)


def plot_log(options: argparse.Namespace) -> None:
    """Plot the losses of one or more runs."""
    plot_logs([Path(run) for run in options.runs], Path(options.output))
    report_written(options.output)


def training_config(options: argparse.Namespace) -> TrainingConfig:
    """Return the training config that the arguments describe."""
    return TrainingConfig(**{field.name: getattr(options, field.name) for field in fields(TrainingConfig)})


def add_training_config(parser: argparse.ArgumentParser, title: str, without: Sequence[str] = ()) -> None:
    """Add an argument for each field of the training config."""
    group = parser.add_argument_group(title)
    for field in fields(TrainingConfig):
        if field.name in without:
            continue
        add_number(group, f"--{field.name.replace('_', '-')}", TRAINING[field.name], field.default)


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `train` and `distill` share."""
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="the run folder, which is also a checkpoint"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in OUT")
    parser.add_argument("--model", metavar="M", help=f"continue from a checkpoint: {MODEL_HELP}")
    shape = parser.add_argument_group("a model from scratch")
    add_number(shape, "--generation", "generation of Gemma", 2)
    for name, (option, meaning) in SHAPE.items():
        add_number(shape, f"--{option}", meaning, SMALL_SHAPE[name], dest=name)
    add_training_config(parser, "training")
    aware = parser.add_argument_group("quantization-aware training")
    meaning = "simulate this quantization while training"
    aware.add_argument("--quantization-aware", metavar="FORMAT", choices=QUANTIZE_FORMATS, help=meaning)
    add_group_size(aware)


def _report_run(output: str, run: runs.TrainingRun) -> None:
    last = run.log[-1]
    validation = f", {last['val_loss']:.3f} in validation" if "val_loss" in last else ""
    report_written(output, f"; after {last['step']:.0f} steps, the loss is {last['loss']:.3f}{validation}")


def _new_model(options: argparse.Namespace, tokenizer: Tokenizer, vocab_size: int | None = None) -> Gemma:
    shape = {name: getattr(options, name) for name in SHAPE}
    return new_model(tokenizer, vocab_size=vocab_size, seed=options.seed, generation=options.generation, **shape)


def _fake_quantize(options: argparse.Namespace) -> FakeQuantize | None:
    if not options.quantization_aware:
        refuse_without("--quantization-aware", options, "group_size")
        return None
    format = options.quantization_aware
    return FakeQuantize(Scheme(format, read_group_size(options, format)))
