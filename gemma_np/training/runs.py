"""Train, fine-tune and distill in one call each, on paths or arrays.

    from gemma_np import training

    model = training.new_model("tokenizer.model", hidden_size=64)
    run = training.train(model, "texts/", "run", config=training.TrainingConfig(steps=200))
    print(run.log[-1]["loss"], run.model.generate("To be"))

A run writes its output folder, which is also a checkpoint, and can be resumed; the message of a KeyboardInterrupt says
how. A `Gemma` object that is passed in is trained in place if its weights are writable. Under MPI, call these functions
inside `with mpi_ranks() as ranks:` and pass the ranks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, Unpack

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.errors import GemmaError
from gemma_np.gemma import Draft, Gemma, load
from gemma_np.mpi import Ranks
from gemma_np.training.conversations import all_conversations, random_conversations, tokenize_conversations
from gemma_np.training.data import Split, Texts, consecutive_batches, open_tokens, random_batches, tokenize_texts
from gemma_np.training.distillation import (
    check_same_vocabulary,
    choose_divergence,
    from_teacher,
    on_policy,
    weights_digest,
)
from gemma_np.training.run_lock import run_lock
from gemma_np.training.run_log import read_log
from gemma_np.training.task import Batch, Task, WeightView
from gemma_np.training.teacher_targets import (
    check_targets,
    from_targets,
    random_targets,
    read_settings,
    targets_tokenizer,
    write_targets,
)
from gemma_np.training.trainer import run_task
from gemma_np.training.training_state import TrainingConfig, check_folder, how_to_go_on

Model = Gemma | str | Path
"""A model, or what `gemma_np.load` takes."""


class TrainingRun(NamedTuple):
    """The result of a training run."""

    model: Gemma
    log: list[dict[str, float]]  # per step: step, loss, grad_norm, learning_rate, tokens_per_second, sometimes val_loss


class RunOptions(TypedDict, total=False):
    """The keyword arguments that all training functions share."""

    config: TrainingConfig
    view_weights: WeightView | None  # the weights that the forward pass uses, such as `FakeQuantize`
    resume: bool  # continue the run in the output folder
    ranks: Ranks


def train(model: Model, texts: Texts, output: str | Path, **options: Unpack[RunOptions]) -> TrainingRun:
    """Train a model to predict the next token of texts: a file, a folder of .txt files, or token ids [N].

    Raises GemmaError for input that is missing or wrong, and when the output folder cannot be used.
    """
    with _open_run(model, output, **options) as run:
        return run.train(run.text_task(run.split(texts)))


def fine_tune(
    model: Model,
    conversations: str | Path | Sequence[list[dict[str, str]]],
    output: str | Path,
    **options: Unpack[RunOptions],
) -> TrainingRun:
    """Fine-tune a model on conversations: a .jsonl file, or lists of messages. The loss counts on the model's turns.

    Raises GemmaError for input that is missing or wrong, and when the output folder cannot be used.
    """
    with _open_run(model, output, **options) as run:
        config = run.config
        rows = tokenize_conversations(
            conversations,
            run.model.require_tokenizer(),
            run.data,
            config.seq_len,
            val_fraction=config.val_fraction,
            seed=config.seed,
            keep=run.resume,
            ranks=run.ranks,
        )
        validation = all_conversations(rows.validation, config.batch_size)
        return run.train(Task(random_conversations(rows.train, config.batch_size), validation=validation))


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
    draft: Draft | None = None,
    **options: Unpack[RunOptions],
) -> TrainingRun:
    """Train a student to match the distribution of a live teacher.

    divergence, temperature, beta: see `choose_divergence`. prompt_tokens: train on-policy, on the student's own
    continuations of prompts of this many tokens from the texts (file, folder, or token ids [N]). draft: sample these
    speculatively, one by one; a function makes the draft anew from the student at each step.

    Raises GemmaError for input that is missing or wrong, when teacher, student or draft have different vocabularies,
    and when the output folder cannot be used.
    """
    if draft is not None and prompt_tokens is None:
        raise GemmaError("draft: given without prompt_tokens, expected both or neither")
    loss = choose_divergence(divergence, temperature=temperature, beta=beta)
    with _open_run(student, output, **options) as run:
        teacher = _loaded(teacher)
        check_same_vocabulary(teacher, run.model)
        split = run.split(texts)
        task = run.text_task(split)
        if prompt_tokens is not None:
            make_draft = _draft_maker(draft, run.model) if draft is not None else None
            next_batch = on_policy(split.train, run.model.config, run.config, prompt_tokens, make_draft)
            task = replace(task, next_batch=next_batch)
        identity = {
            "divergence": divergence,
            "temperature": temperature,
            "beta": beta,
            "prompt_tokens": prompt_tokens,
            "teacher": weights_digest(teacher),
            "draft": _draft_identity(draft),
        }
        return run.train(replace(task, loss=from_teacher(teacher, loss), identity=identity))


def cache_teacher(
    teacher: Model | Sequence[Model],
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

    teacher: a model, or several, whose distributions are averaged.

    To continue an interrupted call, repeat it. Raises GemmaError for input that is missing or wrong.
    """
    models = teacher if isinstance(teacher, Sequence) and not isinstance(teacher, str) else [teacher]
    teachers, folder = [_loaded(model) for model in models], Path(output)
    check_targets(teachers, seq_len, top_k)
    tokenizer = teachers[0].require_tokenizer()
    with _lock(folder, ranks or Ranks()):
        split = tokenize_texts(
            texts, tokenizer, folder / "data", val_fraction=val_fraction, seed=seed, keep=True, ranks=ranks
        )
        if ranks is None or ranks.rank == 0:
            atomic_write(folder / "tokenizer.model", lambda path: path.write_bytes(tokenizer.model))
        write_targets(teachers, split.train, seq_len, top_k, folder, ranks)


def distill_from_cache(
    student: Model, targets: str | Path, output: str | Path, **options: Unpack[RunOptions]
) -> TrainingRun:
    """Train a student to match the cached targets of a teacher: a folder of `cache_teacher`, which sets `seq_len`.

    Raises GemmaError for input that is missing or wrong, and when the output folder cannot be used.
    """
    folder = Path(targets)
    settings = read_settings(folder)
    options["config"] = replace(options.get("config", TrainingConfig()), seq_len=settings["seq_len"])
    with _open_run(student, output, **options) as run:
        if run.model.tokenizer_model != targets_tokenizer(folder).model:
            raise GemmaError(f"{folder}: its tokenizer.model is not the student's, expected the same vocabulary")
        validation = run.validation(open_tokens(folder / "data", run.model.config.vocab_size).validation)
        next_batch = random_targets(folder, run.config.batch_size, run.model.config.vocab_size)
        return run.train(Task(next_batch, from_targets, validation, identity={"targets": settings}))


def _loaded(model: Model) -> Gemma:
    return model if isinstance(model, Gemma) else load(model)


def _draft_maker(draft: Draft, student: Gemma) -> Callable[[Mapping[str, np.ndarray]], Gemma | Literal["lookup"]]:
    """Return the function that makes the draft from the student's weights. Raises GemmaError for another vocabulary."""
    student.resolve_draft(draft)
    return lambda weights: replace(student, weights=weights).resolve_draft(draft)


def _draft_identity(draft: Draft | None) -> int | str | None:
    if isinstance(draft, Gemma):
        return weights_digest(draft)
    return draft.__name__ if callable(draft) else draft


def _lock(folder: Path, ranks: Ranks) -> AbstractContextManager[None]:
    """Return the lock of a folder, which rank 0 holds for all."""
    return run_lock(folder) if ranks.rank == 0 else nullcontext()


@contextmanager
def _open_run(model: Model, output: str | Path, **options: Unpack[RunOptions]) -> Iterator["_Run"]:
    """Yield a run while its folder is locked."""
    with _lock(Path(output), options.get("ranks", Ranks())):
        yield _Run(model, output, **options)


@dataclass
class _Run:
    """A model to train, its output folder, and how to train it."""

    source: Model
    output: str | Path
    config: TrainingConfig = field(default_factory=TrainingConfig)
    view_weights: WeightView | None = None
    resume: bool = False
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        self.folder = Path(self.output)
        self.data = self.folder / "data"
        check_folder(self.folder, resume=self.resume)
        self.model = self.source if isinstance(self.source, Gemma) else load(self.source).dequantized()
        self.model.require_tokenizer()
        context = self.model.config.max_position_embeddings
        if self.config.seq_len > context:
            raise GemmaError(f"seq_len: {self.config.seq_len}, expected at most the model's context of {context}")

    def split(self, texts: Texts) -> Split:
        """Tokenize texts into the folder of the run."""
        return tokenize_texts(
            texts,
            self.model.require_tokenizer(),
            self.data,
            val_fraction=self.config.val_fraction,
            seed=self.config.seed,
            keep=self.resume,
            ranks=self.ranks,
        )

    def text_task(self, split: Split) -> Task:
        """Return the task of predicting the next token of texts."""
        next_batch = random_batches(split.train, self.config.batch_size, self.config.seq_len)
        return Task(next_batch, validation=self.validation(split.validation))

    def validation(self, tokens: np.ndarray) -> Sequence[Batch]:
        """Return the batches to evaluate on: tokens [N], which may be empty."""
        return consecutive_batches(tokens, self.config.batch_size, self.config.seq_len) if len(tokens) else []

    def train(self, task: Task) -> TrainingRun:
        """Train the model on a task, through `view_weights` if there is one."""
        if self.view_weights is not None:
            identity = {**task.identity, "view_weights": repr(self.view_weights)}
            task = replace(task, view_weights=self.view_weights, identity=identity)
        try:
            trained = run_task(self.model, task, self.config, self.folder, resume=self.resume, ranks=self.ranks)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(how_to_go_on(self.folder)) from None
        self.ranks.barrier()  # rank 0 has written the log
        return TrainingRun(trained, read_log(self.folder))
