"""Train, fine-tune and distill in one call, on paths or arrays: what the command line does, from Python.

    from gemma_np import training

    model = training.new_model("tokenizer.model", hidden_size=64)
    run = training.train(model, "texts/", "run", config=training.TrainingConfig(steps=200))
    print(run.log[-1]["loss"], run.model.generate("To be"))

Every call writes a run folder, which is also a checkpoint, and can be resumed. Under MPI, call them inside
`with mpi_ranks() as ranks:` and pass the ranks.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.config import gemma2_config
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.memory import check_memory
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training.conversations import all_conversations, random_conversations, tokenize_conversations
from gemma_np.training.data import Texts, consecutive_batches, open_tokens, random_batches, tokenize_texts
from gemma_np.training.distillation import (
    check_same_vocabulary,
    choose_divergence,
    from_teacher,
    on_policy,
    weights_digest,
)
from gemma_np.training.mpi import Ranks
from gemma_np.training.run_log import read_log
from gemma_np.training.task import Batch, Task, WeightView
from gemma_np.training.teacher_targets import check_targets, from_targets, random_targets, read_settings, write_targets
from gemma_np.training.trainer import initial_weights, run_task
from gemma_np.training.training_state import TrainingConfig, check_folder

Model = Gemma | str | Path
"""A model, or what `gemma_np.load` takes."""

DEFAULT_CONFIG = TrainingConfig()


class TrainingRun(NamedTuple):
    """The result of a training run."""

    model: Gemma
    log: list[dict[str, float]]  # one entry per step: step, loss, grad_norm, learning_rate, tokens_per_second, val_loss


def new_model(
    tokenizer: Tokenizer | str | Path,
    *,
    vocab_size: int | None = None,
    hidden_size: int = 128,
    num_hidden_layers: int = 4,
    num_attention_heads: int = 4,
    num_key_value_heads: int = 2,
    head_dim: int = 32,
    intermediate_size: int = 512,
    sliding_window: int = 64,
    max_position_embeddings: int = 256,
    seed: int = 0,
) -> Gemma:
    """Return a Gemma 2 of any size with random weights; vocab_size: by default that of the tokenizer.

    Raises GemmaError for a shape that is no Gemma 2, and when training it would not fit in memory.
    """
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else read_tokenizer(tokenizer)
    config = gemma2_config(
        vocab_size=vocab_size or len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        query_pre_attn_scalar=head_dim,
        sliding_window=sliding_window,
    )
    # Weights, gradients and two moments, in float32.
    check_memory(4 * 4 * sum(config.parameter_count().values()), np.dtype(np.float32))
    return Gemma(config, initial_weights(config, np.random.default_rng(seed)), tokenizer)


def train(
    model: Model,
    texts: Texts,
    output: str | Path,
    *,
    config: TrainingConfig = DEFAULT_CONFIG,
    val_fraction: float = 0.05,
    view_weights: WeightView | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> TrainingRun:
    """Train a model to predict the next token of texts: a file, a folder of .txt files, or token ids [N].

    view_weights: what the forward pass sees in place of the weights, such as `FakeQuantize`.

    Raises GemmaError for input that is missing or wrong, and when the output folder cannot be used.
    """
    check_folder(Path(output), resume=resume)
    student = _trainable(model, config)
    task = _text_task(student, texts, Path(output), config, val_fraction, resume, ranks)
    return _run(student, task, output, config, view_weights, resume, ranks)


def fine_tune(
    model: Model,
    conversations: str | Path | Sequence[list[dict[str, str]]],
    output: str | Path,
    *,
    config: TrainingConfig = DEFAULT_CONFIG,
    val_fraction: float = 0.05,
    view_weights: WeightView | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> TrainingRun:
    """Fine-tune a model on conversations: a .jsonl file, or lists of messages. The loss counts on the model's turns.

    Raises GemmaError for input that is missing or wrong, and when the output folder cannot be used.
    """
    check_folder(Path(output), resume=resume)
    student = _trainable(model, config)
    rows = tokenize_conversations(
        conversations,
        student.require_tokenizer(),
        Path(output) / "data",
        config.seq_len,
        val_fraction=val_fraction,
        seed=config.seed,
        keep=resume,
        ranks=ranks,
    )
    validation = all_conversations(rows.validation, config.batch_size)
    task = Task(random_conversations(rows.train, config.batch_size), validation=validation)
    return _run(student, task, output, config, view_weights, resume, ranks)


def distill(
    student: Model,
    texts: Texts,
    output: str | Path,
    *,
    teacher: Model,
    divergence: str = "cross-entropy",
    temperature: float = 1.0,
    beta: float = 0.5,
    prompt_tokens: int | None = None,
    config: TrainingConfig = DEFAULT_CONFIG,
    val_fraction: float = 0.05,
    view_weights: WeightView | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> TrainingRun:
    """Train a student to match the distribution of a live teacher.

    divergence, temperature, beta: see `choose_divergence`. prompt_tokens: train on-policy, on the student's own
    continuations of so many tokens of the texts (file, folder, or token ids [N]), instead of on the texts.

    Raises GemmaError for input that is missing or wrong, when teacher and student have other vocabularies, and when the
    output folder cannot be used.
    """
    check_folder(Path(output), resume=resume)
    loss = choose_divergence(divergence, temperature=temperature, beta=beta)
    teacher = _loaded(teacher)
    student = _trainable(student, config)
    check_same_vocabulary(teacher, student)
    task = _text_task(student, texts, Path(output), config, val_fraction, resume, ranks)
    if prompt_tokens is not None:
        tokens = open_tokens(Path(output) / "data" / "train.npy")
        task = replace(task, next_batch=on_policy(tokens, student.config, config, prompt_tokens))
    identity = {
        "divergence": divergence,
        "temperature": temperature,
        "beta": beta,
        "prompt_tokens": prompt_tokens,
        "teacher": weights_digest(teacher),
    }
    task = replace(task, loss=from_teacher(teacher, loss), identity=identity)
    return _run(student, task, output, config, view_weights, resume, ranks)


def cache_teacher(
    teacher: Model,
    texts: Texts,
    output: str | Path,
    *,
    top_k: int = 32,
    seq_len: int = 128,
    val_fraction: float = 0.05,
    seed: int = 0,
    ranks: Ranks | None = None,
) -> None:
    """Compute a teacher's top-k probabilities on texts (file, folder, or token ids [N]), for `distill_from_cache`.

    An interrupted call is continued by the same call. Raises GemmaError for input that is missing or wrong.
    """
    teacher, folder = _loaded(teacher), Path(output)
    tokenizer = teacher.require_tokenizer()
    check_targets(teacher, seq_len, top_k)
    split = tokenize_texts(
        texts, tokenizer, folder / "data", val_fraction=val_fraction, seed=seed, keep=True, ranks=ranks
    )
    if ranks is None or ranks.rank == 0:
        atomic_write(folder / "tokenizer.model", lambda path: path.write_bytes(tokenizer.model))
    write_targets(teacher, split.train, seq_len, top_k, folder, ranks)


def distill_from_cache(
    student: Model,
    targets: str | Path,
    output: str | Path,
    *,
    config: TrainingConfig = DEFAULT_CONFIG,
    view_weights: WeightView | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> TrainingRun:
    """Train a student to match the cached targets of a teacher: a folder of `cache_teacher`, which sets `seq_len`.

    Raises GemmaError for input that is missing or wrong, and when the output folder cannot be used.
    """
    check_folder(Path(output), resume=resume)
    folder = Path(targets)
    settings = read_settings(folder)
    config = replace(config, seq_len=settings["seq_len"])
    student = _trainable(student, config)
    if student.require_tokenizer().model != read_tokenizer(folder / "tokenizer.model").model:
        raise GemmaError(f"{folder}: its tokenizer.model is not the student's, expected the same vocabulary")
    task = Task(
        random_targets(folder, config.batch_size),
        from_targets,
        _validation(open_tokens(folder / "data" / "validation.npy"), config),
        identity={"targets": settings},
    )
    return _run(student, task, output, config, view_weights, resume, ranks)


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.model file. Raises GemmaError when it cannot be read."""
    try:
        return Tokenizer(Path(path).read_bytes())
    except OSError as error:
        raise GemmaError(f"{path}: {error.strerror}, expected a tokenizer.model file") from None


def _loaded(model: Model) -> Gemma:
    return model if isinstance(model, Gemma) else load(model)


def _trainable(model: Model, config: TrainingConfig) -> Gemma:
    """Return a model with plain weights and a tokenizer, that can read texts of this length."""
    model = model if isinstance(model, Gemma) else load(model).dequantized()
    model.require_tokenizer()
    context = model.config.max_position_embeddings
    if config.seq_len > context:
        raise GemmaError(f"seq_len: {config.seq_len}, expected at most the model's context of {context}")
    return model


def _text_task(
    model: Gemma,
    texts: Texts,
    output: Path,
    config: TrainingConfig,
    val_fraction: float,
    resume: bool,
    ranks: Ranks | None,
) -> Task:
    """Return the task of predicting the next token of texts."""
    split = tokenize_texts(
        texts,
        model.require_tokenizer(),
        output / "data",
        val_fraction=val_fraction,
        seed=config.seed,
        keep=resume,
        ranks=ranks,
    )
    next_batch = random_batches(split.train, config.batch_size, config.seq_len)
    return Task(next_batch, validation=_validation(split.validation, config))


def _validation(tokens: np.ndarray, config: TrainingConfig) -> Sequence[Batch]:
    return consecutive_batches(tokens, config.batch_size, config.seq_len) if len(tokens) else []


def _run(
    model: Gemma,
    task: Task,
    output: str | Path,
    config: TrainingConfig,
    view_weights: WeightView | None,
    resume: bool,
    ranks: Ranks | None,
) -> TrainingRun:
    """Run a task, with the weights seen through `view_weights` if there is one."""
    if view_weights is not None:
        identity = {**task.identity, "view_weights": repr(view_weights)}
        task = replace(task, view_weights=view_weights, identity=identity)
    trained = run_task(model, task, config, Path(output), resume=resume, ranks=ranks)
    return TrainingRun(trained, read_log(Path(output)))
