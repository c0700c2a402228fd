"""The commands that make a model, one function each: tokenizer, train, distill, targets, merge, plot-log.

Each raises GemmaError for what it cannot do, in the one line that `gemma-np` then prints.
"""

import argparse
import math
import zlib
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.loading import check_memory
from gemma_np.compression.qat import fake_quantize
from gemma_np.compression.quantization import Scheme
from gemma_np.config import gemma2_config
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training import trainer
from gemma_np.training.conversations import all_conversations, draw_conversations, write_conversations
from gemma_np.training.data import (
    consecutive_texts,
    open_tokens,
    prepare,
    random_batches,
    read_text,
    text_files,
    write_tokens,
)
from gemma_np.training.distillation import Divergence, check_vocabularies, from_teacher, on_policy, weights_digest
from gemma_np.training.losses import distillation, jensen_shannon, reverse_kl
from gemma_np.training.merging import average
from gemma_np.training.mpi import Ranks, mpi_ranks
from gemma_np.training.run_log import plot_logs
from gemma_np.training.task import Batch, Task
from gemma_np.training.teacher_targets import (
    check_targets,
    draw_from_targets,
    from_targets,
    read_settings,
    write_targets,
)
from gemma_np.training.tokenizer_training import train_vocabulary
from gemma_np.training.training_state import Recipe, check_folder

DIVERGENCES = ("forward", "reverse", "jensen-shannon")


def tokenizer(options: argparse.Namespace) -> None:
    """Train a tokenizer on texts, the way Gemma's was."""
    lines = (line for file in text_files(Path(options.text)) for line in read_text(file).splitlines())
    model = train_vocabulary(lines, options.size)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(Path(options.output), lambda path: path.write_bytes(model))


def train(options: argparse.Namespace) -> None:
    """Train a Gemma 2 on texts or conversations, from scratch or from a checkpoint."""
    out = Path(options.output)
    with mpi_ranks() as ranks:
        check_folder(out, options.resume)
        recipe = _recipe(options)
        if options.model:
            model = _from_checkpoint(options)
        else:
            words = _read_tokenizer(options.tokenizer)
            model = _from_scratch(options, words, len(words))
        task = _aware(options, _reading(options, model, recipe, ranks))
        trainer.train(model, task, recipe, out, options.resume, ranks)


def distill(options: argparse.Namespace) -> None:
    """Train a Gemma 2 towards what a teacher makes of texts: live, stored beforehand, or of the student's own."""
    with mpi_ranks() as ranks:
        if bool(options.targets) == bool(options.teacher):
            raise GemmaError(
                "expected --teacher and TEXT for a live teacher, or --targets for what one has said before"
            )
        live_only = options.text or options.on_policy or options.temperature != 1 or options.divergence != "forward"
        if options.targets and live_only:
            raise GemmaError("--targets: expected no TEXT, --on-policy, --temperature or --divergence beside it")
        check_folder(Path(options.output), options.resume)
        if options.targets:
            _distill_from_targets(options, ranks)
        else:
            _distill_from_teacher(options, ranks)


def targets(options: argparse.Namespace) -> None:
    """Let a teacher read texts once, and store what it expected, for any number of students."""
    with mpi_ranks() as ranks:
        teacher, out = load(options.teacher), Path(options.output)
        check_targets(teacher, options.length, options.top_k)
        words = _tokenizer_of(teacher, options.teacher)
        if ranks.rank == 0:
            _write_texts(options, words, out / "data", keep=True)
            atomic_write(out / "tokenizer.model", lambda path: path.write_bytes(words.model))
        ranks.barrier()
        tokens = open_tokens(out / "data" / "train.npy", options.length)
        write_targets(teacher, tokens, options.length, options.top_k, out, ranks)


def merge(options: argparse.Namespace) -> None:
    """Average the weights of several checkpoints of one shape; of one, store them in another dtype."""
    first, *rest = models = [load(name).dequantized() for name in options.models]
    for name, model in zip(options.models[1:], rest, strict=True):
        if model.config != first.config:
            raise GemmaError(f"{name}: another config than {options.models[0]}, expected the same")
        if (model.tokenizer and model.tokenizer.model) != (first.tokenizer and first.tokenizer.model):
            raise GemmaError(f"{name}: another tokenizer.model than {options.models[0]}, expected the same")
    dtype = ml_dtypes.bfloat16 if options.dtype == "bfloat16" else np.dtype(options.dtype)
    merged = {name: weight.astype(dtype) for name, weight in average([model.weights for model in models]).items()}
    Gemma(first.config, merged, first.tokenizer).save(options.output)


def plot_log(options: argparse.Namespace) -> None:
    """Draw the losses of one run or of several."""
    plot_logs([Path(run) for run in options.runs], Path(options.output))


def _reading(options: argparse.Namespace, model: Gemma, recipe: Recipe, ranks: Ranks) -> Task:
    """The task of predicting the next token of the texts that the options name."""
    _check_length(recipe, model)
    words, data = _tokenizer_of(model, "the model"), Path(options.output) / "data"
    if ranks.rank == 0:
        _write_texts(options, words, data, options.resume)
    ranks.barrier()
    if _is_talk(options):
        rows, held_out = (np.load(data / f"{name}.npy", mmap_mode="r") for name in ("train", "validation"))
        return Task(draw_conversations(rows, recipe.batch), validation=all_conversations(held_out, recipe.batch))
    tokens = open_tokens(data / "train.npy", recipe.length)
    validation = _validation(data, recipe) if options.validation else []
    return Task(random_batches(tokens, recipe.batch, recipe.length), validation=validation)


def _write_texts(options: argparse.Namespace, words: Tokenizer, data: Path, keep: bool) -> None:
    """Tokenize the texts or conversations that the options name, or keep what an earlier run has made of the same."""
    text = Path(options.text)
    files = text_files(text)
    about = {
        "documents": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "tokenizer": zlib.crc32(words.model),
        "validation": options.validation,
        "seed": options.seed,
    }
    if _is_talk(options):
        about["length"] = options.length
        rows = (text, words, data, options.length, options.validation, options.seed)
        prepare(data, about, lambda: write_conversations(*rows), keep)
    else:
        prepare(data, about, lambda: write_tokens(files, words, data, options.validation, options.seed), keep)


def _is_talk(options: argparse.Namespace) -> bool:
    return Path(options.text).suffix == ".jsonl"


def _validation(data: Path, recipe: Recipe) -> list[Batch]:
    return consecutive_texts(open_tokens(data / "validation.npy", recipe.length), recipe.batch, recipe.length)


def _distill_from_teacher(options: argparse.Namespace, ranks: Ranks) -> None:
    if options.text is None:
        raise GemmaError("TEXT: missing, expected a text file or a folder for the teacher to read")
    recipe, teacher = _recipe(options), load(options.teacher)
    words = _tokenizer_of(teacher, options.teacher)
    size = teacher.config.vocab_size
    student = _from_checkpoint(options) if options.model else _from_scratch(options, words, size)
    check_vocabularies(teacher, student)
    if not 0 < options.temperature < math.inf:
        raise GemmaError(f"temperature: {options.temperature}, expected more than 0")
    if not 0 < options.beta < 1:
        raise GemmaError(f"beta: {options.beta}, expected more than 0 and less than 1")
    if options.divergence == "forward":
        divergence: Divergence = partial(distillation, temperature=options.temperature)
    elif options.temperature != 1:
        raise GemmaError(f"temperature: {options.temperature}, expected 1 for the {options.divergence} divergence")
    elif options.divergence == "reverse":
        divergence = reverse_kl
    else:
        divergence = partial(jensen_shannon, beta=options.beta)
    task = _reading(options, student, recipe, ranks)
    if options.on_policy:
        tokens = open_tokens(Path(options.output) / "data" / "train.npy", recipe.length)
        task = replace(task, draw=on_policy(tokens, student.config, recipe, options.prompt))
    about = {
        "divergence": options.divergence,
        "temperature": options.temperature,
        "beta": options.beta,
        "on policy": options.on_policy and options.prompt,
        "teacher": weights_digest(teacher),
    }
    task = replace(task, loss=from_teacher(teacher, divergence), about=about)
    trainer.train(student, _aware(options, task), recipe, Path(options.output), options.resume, ranks)


def _distill_from_targets(options: argparse.Namespace, ranks: Ranks) -> None:
    folder = Path(options.targets)
    settings = read_settings(folder)
    recipe, words = replace(_recipe(options), length=settings["length"]), _read_tokenizer(folder / "tokenizer.model")
    student = _from_checkpoint(options) if options.model else _from_scratch(options, words, len(words))
    if _tokenizer_of(student, "the student").model != words.model:
        raise GemmaError(f"{options.model}: another tokenizer.model than {folder}, expected the same vocabulary")
    _check_length(recipe, student)
    has_validation = (folder / "data" / "validation.npy").stat().st_size > 128  # its header, and no tokens
    task = Task(
        draw_from_targets(folder, recipe.batch),
        from_targets,
        _validation(folder / "data", recipe) if has_validation else [],
        about={"targets": settings},
    )
    trainer.train(student, _aware(options, task), recipe, Path(options.output), options.resume, ranks)


def _aware(options: argparse.Namespace, task: Task) -> Task:
    """The task, with the weights that a quantized model will have in sight, if the options ask for it."""
    if not options.quantization_aware:
        return task
    scheme = Scheme(options.quantization_aware, options.group if options.quantization_aware == "int4" else None)
    return replace(task, seen=fake_quantize(scheme), about={**task.about, "quantization aware": repr(scheme)})


def _recipe(options: argparse.Namespace) -> Recipe:
    return Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})


def _check_length(recipe: Recipe, model: Gemma) -> None:
    context = model.config.max_position_embeddings
    if recipe.length > context:
        raise GemmaError(f"length: {recipe.length}, expected at most the context of {context}")


def _from_checkpoint(options: argparse.Namespace) -> Gemma:
    model = load(options.model).dequantized()
    _tokenizer_of(model, options.model)
    return model


def _from_scratch(options: argparse.Namespace, words: Tokenizer, vocab_size: int) -> Gemma:
    config = gemma2_config(
        *(vocab_size, options.hidden_size, options.layers, options.heads, options.kv_heads, options.head_dim),
        *(options.ffn, options.context, options.head_dim, options.window),
    )
    check_memory(4 * 4 * sum(config.parameter_count().values()), np.dtype(np.float32))
    return Gemma(config, trainer.initial_weights(config, np.random.default_rng(options.seed)), words)


def _tokenizer_of(model: Gemma, name: str) -> Tokenizer:
    if model.tokenizer is None:
        raise GemmaError(f"{name}: no tokenizer.model, expected one to read the text with")
    return model.tokenizer


def _read_tokenizer(path: str | Path | None) -> Tokenizer:
    if path is None:
        raise GemmaError("expected --tokenizer to train from scratch, or --model to go on from a checkpoint")
    try:
        return Tokenizer(Path(path).read_bytes())
    except OSError as error:
        raise GemmaError(f"{path}: {error.strerror}, expected a tokenizer.model file") from None
