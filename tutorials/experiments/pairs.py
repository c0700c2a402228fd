"""Students and their twins: equal shapes, budgets, batches and first weights; only the loss differs.

The teacher is the mean of two models, cached once: shakespeare-4m, and a student's twin of seed 0.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from common import BATCH_SIZE, SEQ_LEN, SHAPE_1M, TRAINING, Lab, Run, steps

from gemma_np.training import cache_teacher, new_model
from gemma_np.training.task import Batch, Task
from gemma_np.training.teacher_targets import from_targets, random_targets
from gemma_np.training.training_state import State

SHAPES = {
    "0.3 M": {"hidden_size": 64, "head_dim": 16, "intermediate_size": 192},
    "0.6 M": {"hidden_size": 96, "head_dim": 24, "intermediate_size": 288},
    "1 M": SHAPE_1M,
}
BUNDLED_BUDGET = 10e6  # tokens


def two_readings(tokens: np.ndarray) -> np.ndarray:
    """Return tokens [N] twice, the second time shifted by half a text, so that texts begin at two kinds of places."""
    return np.concatenate([tokens, tokens[SEQ_LEN // 2 :]])


def same_batches(tokens: np.ndarray) -> Callable[[State], Batch]:
    """Return the `next_batch` of a task that draws the batches of `random_targets`, without their targets."""
    texts = (len(tokens) - 1) // SEQ_LEN

    def next_batch(state: State) -> Batch:
        starts = SEQ_LEN * state.generator.integers(0, texts, BATCH_SIZE)
        return Batch(np.stack([tokens[start : start + SEQ_LEN + 1] for start in starts]).astype(np.int64))

    return next_batch


def twin(lab: Lab, seed: int, tokens: float, size: str = "1 M") -> Run:
    """Return the training of a student's twin on the plays alone."""
    model = new_model(lab.corpus.tokenizer, seed=seed, **SHAPES[size])
    task = Task(same_batches(two_readings(lab.corpus.plays)), validation=lab.validation)
    config = replace(TRAINING, steps=steps(tokens), seed=seed)
    return Run(_name("twin", seed, tokens, size), model, task, config)


def student(lab: Lab, seed: int, tokens: float, size: str = "1 M") -> Run:
    """Return the distillation of a student from the cached teachers."""
    run = twin(lab, seed, tokens, size)
    next_batch = random_targets(lab.folder / "targets", BATCH_SIZE, run.model.config.vocab_size)
    return replace(run, name=_name("student", seed, tokens, size), task=Task(next_batch, from_targets, lab.validation))


def cache_teachers(lab: Lab) -> None:
    """Cache the mean of the teachers on the plays."""
    teachers = [lab.trained(name) for name in ("teacher", _name("twin", 0, BUNDLED_BUDGET, "1 M"))]
    cache_teacher(
        teachers,
        two_readings(lab.corpus.plays),
        lab.folder / "targets",
        top_k=64,
        seq_len=SEQ_LEN,
        val_fraction=0,
        ranks=lab.ranks,
    )


def _name(kind: str, seed: int, tokens: float, size: str) -> str:
    return f"{kind}-{size.replace(' ', '')}-{tokens / 1e6:g}M-tokens-{seed}"


KINDS = {"from scratch": twin, "distilled": student}
