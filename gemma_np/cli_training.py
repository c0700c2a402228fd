"""The commands that make a model, one function each: tokenizer, train, distill, targets, merge, plot-log."""

import argparse
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from gemma_np.config import gemma2_config
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training import trainer
from gemma_np.training.conversations import all_conversations, draw_conversations, write_conversations
from gemma_np.training.data import consecutive_texts, draw_texts, open_tokens, read_text, text_files, write_tokens
from gemma_np.training.distillation import Divergence, check_vocabularies, fingerprint, from_teacher, on_policy
from gemma_np.training.losses import distillation, jensen_shannon, reverse_kl
from gemma_np.training.merging import average
from gemma_np.training.parallel import Ranks, ranks_of_this_run
from gemma_np.training.run_log import plot_logs
from gemma_np.training.run_state import Recipe, check_folder, write_beside
from gemma_np.training.targets import draw_from_targets, from_targets, read_settings, write_targets
from gemma_np.training.task import Task
from gemma_np.training.vocabulary import train_vocabulary

DIVERGENCES: dict[str, Divergence] = {"reverse": reverse_kl, "jensen-shannon": jensen_shannon}


def tokenizer(options: argparse.Namespace) -> None:
    """Train a tokenizer on texts, the way Gemma's was."""
    lines = (line for file in text_files(Path(options.text)) for line in read_text(file).splitlines())
    model = train_vocabulary(lines, options.size)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    write_beside(Path(options.output), lambda path: path.write_bytes(model))


def train(options: argparse.Namespace) -> None:
    """Train a Gemma 2 on texts or conversations, from scratch or from a checkpoint."""
    out = Path(options.output)
    with ranks_of_this_run() as ranks:
        check_folder(out, options.resume)
        recipe = _recipe(options)
        model = (
            _from_checkpoint(options) if options.model else _from_scratch(options, _read_tokenizer(options.tokenizer))
        )
        task = _reading(options, model, recipe, ranks)
        trainer.train(model, task, recipe, out, options.resume, ranks)


def distill(options: argparse.Namespace) -> None:
    """Train a Gemma 2 towards what a teacher makes of texts: live, stored beforehand, or of the student's own."""
    if bool(options.targets) == bool(options.teacher):
        raise GemmaError("expected --teacher and TEXT for a live teacher, or --targets for what one has said before")
    with ranks_of_this_run() as ranks:
        check_folder(Path(options.output), options.resume)
        if options.targets:
            _distill_from_targets(options, ranks)
        else:
            _distill_from_teacher(options, ranks)


def targets(options: argparse.Namespace) -> None:
    """Let a teacher read texts once, and store what it expected, for any number of students."""
    teacher, out = load(options.teacher), Path(options.output)
    words = _tokenizer_of(teacher, options.teacher)
    if not (out / "data" / "train.npy").exists():
        write_tokens(text_files(Path(options.text)), words, out / "data", options.validation, options.seed)
    write_beside(out / "tokenizer.model", lambda path: path.write_bytes(words.model))
    tokens = open_tokens(out / "data" / "train.npy", options.length)
    write_targets(teacher, tokens, options.length, options.top_k, out)


def merge(options: argparse.Namespace) -> None:
    """Average the weights of several checkpoints of one shape; of one, store them in another dtype."""
    first, *rest = models = [load(name) for name in options.models]
    for name, model in zip(options.models[1:], rest, strict=True):
        if model.config != first.config:
            raise GemmaError(f"{name}: another config than {options.models[0]}, expected the same")
    dtype = ml_dtypes.bfloat16 if options.dtype == "bfloat16" else np.dtype(options.dtype)
    merged = {name: weight.astype(dtype) for name, weight in average([model.weights for model in models]).items()}
    Gemma(first.config, merged, first.tokenizer).save(options.output)


def plot_log(options: argparse.Namespace) -> None:
    """Draw the losses of one run or of several."""
    plot_logs([Path(run) for run in options.runs], Path(options.output))


def _reading(options: argparse.Namespace, model: Gemma, recipe: Recipe, ranks: Ranks) -> Task:
    """The task of predicting the next token of the texts that the options name."""
    _check_length(recipe, model)
    words, text, data = _tokenizer_of(model, "the model"), Path(options.text), Path(options.output) / "data"
    talk = text.suffix == ".jsonl"
    if ranks.rank == 0 and not (options.resume and (data / "train.npy").exists()):
        if talk:
            write_conversations(text, words, data, recipe.length, options.validation, recipe.seed)
        else:
            write_tokens(text_files(text), words, data, options.validation, recipe.seed)
    ranks.wait()
    if talk:
        rows, held_out = (np.load(data / f"{name}.npy", mmap_mode="r") for name in ("train", "validation"))
        return Task(draw_conversations(rows, recipe.batch), validation=all_conversations(held_out, recipe.batch))
    tokens = open_tokens(data / "train.npy", recipe.length)
    validation = _validation(data, recipe) if options.validation else []
    return Task(draw_texts(tokens, recipe.batch, recipe.length), validation=validation)


def _validation(data: Path, recipe: Recipe) -> list:
    return consecutive_texts(open_tokens(data / "validation.npy", recipe.length), recipe.batch, recipe.length)


def _distill_from_teacher(options: argparse.Namespace, ranks: Ranks) -> None:
    if options.text is None:
        raise GemmaError("TEXT: missing, expected a text file or a folder for the teacher to read")
    recipe, teacher = _recipe(options), load(options.teacher)
    words = _tokenizer_of(teacher, options.teacher)
    student = _from_checkpoint(options) if options.model else _from_scratch(options, words)
    check_vocabularies(words.model, _tokenizer_of(student, "the student").model)
    if options.divergence == "forward":
        divergence: Divergence = partial(distillation, temperature=options.temperature)
    elif options.temperature == 1:
        divergence = DIVERGENCES[options.divergence]
    else:
        raise GemmaError(f"temperature: {options.temperature}, expected 1 for the {options.divergence} divergence")
    task = _reading(options, student, recipe, ranks)
    if options.on_policy:
        tokens = open_tokens(Path(options.output) / "data" / "train.npy", recipe.length)
        task = replace(task, draw=on_policy(tokens, student.config, recipe, options.prompt))
    about = {
        "divergence": options.divergence,
        "temperature": options.temperature,
        "on policy": options.on_policy and options.prompt,
        "teacher": fingerprint(teacher),
    }
    task = replace(task, loss=from_teacher(teacher, divergence), about=about)
    trainer.train(student, task, recipe, Path(options.output), options.resume, ranks)


def _distill_from_targets(options: argparse.Namespace, ranks: Ranks) -> None:
    folder = Path(options.targets)
    settings = read_settings(folder)
    recipe, words = replace(_recipe(options), length=settings["length"]), _read_tokenizer(folder / "tokenizer.model")
    student = _from_checkpoint(options) if options.model else _from_scratch(options, words)
    check_vocabularies(words.model, _tokenizer_of(student, "the student").model)
    _check_length(recipe, student)
    has_validation = len(np.load(folder / "data" / "validation.npy", mmap_mode="r")) > 0
    task = Task(
        draw_from_targets(folder, recipe.batch),
        from_targets,
        _validation(folder / "data", recipe) if has_validation else [],
        about={"targets": settings},
    )
    trainer.train(student, task, recipe, Path(options.output), options.resume, ranks)


def _recipe(options: argparse.Namespace) -> Recipe:
    return Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})


def _check_length(recipe: Recipe, model: Gemma) -> None:
    context = model.config.max_position_embeddings
    if recipe.length > context:
        raise GemmaError(f"length: {recipe.length}, expected at most the context of {context}")


def _from_checkpoint(options: argparse.Namespace) -> Gemma:
    model = load(options.model)
    _tokenizer_of(model, options.model)
    return model


def _from_scratch(options: argparse.Namespace, words: Tokenizer) -> Gemma:
    config = gemma2_config(
        *(len(words), options.hidden_size, options.layers, options.heads, options.kv_heads, options.head_dim),
        *(options.ffn, options.context, options.head_dim, options.window),
    )
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
