"""Make the bundled models from nothing, in about three hours on two cores.

    mpiexec -n 2 python tutorials/experiments/bundled.py

The ranks share the runs, one core each. To continue an interrupted call, repeat it. The models, with the curve and the
samples of their cards, are written to bundled-work/models.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from corpus import Corpus, open_corpus
from dialogues import conversations, own_replies

import gemma_np
from gemma_np import Gemma
from gemma_np.training import TrainingConfig, cache_teacher, mpi_ranks, new_model
from gemma_np.training.conversations import all_conversations, conversation_rows, random_conversations
from gemma_np.training.data import consecutive_batches, random_batches, random_windows
from gemma_np.training.distillation import from_teacher
from gemma_np.training.mpi import Ranks
from gemma_np.training.task import Batch, Task
from gemma_np.training.teacher_targets import from_targets, random_targets
from gemma_np.training.trainer import run_task
from gemma_np.training.training_state import State

SEQ_LEN = 256
BATCH_SIZE = 4
SHAPE_1M = {"intermediate_size": 384}
SHAPE_4M = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 768}
SHAPE_TINY = {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1}
SEEDS = (0, 1, 2)
TRAINING = TrainingConfig(
    batch_size=BATCH_SIZE,
    seq_len=SEQ_LEN,
    learning_rate=4e-3,
    warmup_steps=200,
    weight_decay=0.3,
    save_every=250,
    eval_every=1000,
)


def steps(tokens: float) -> int:
    """Return the number of steps in which a model reads this many tokens."""
    return round(tokens / (BATCH_SIZE * SEQ_LEN))


def from_bibles_to_plays(corpus: Corpus, config: TrainingConfig) -> Callable[[State], Batch]:
    """Return the `next_batch` of a task that begins with the Bibles and ends with the plays: the probability that a
    text is taken from the plays rises from 0 to 1 in proportion to the step."""

    def next_batch(state: State) -> Batch:
        plays = state.generator.random(config.batch_size) < state.step / config.steps
        texts = [
            random_windows(corpus.plays if is_play else corpus.bibles, 1, SEQ_LEN + 1, state.generator)
            for is_play in plays
        ]
        return Batch(np.concatenate(texts))

    return next_batch


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


@dataclass(frozen=True)
class Run:
    """One training run: its folder, its model before the first step, its task and its training config."""

    name: str
    model: Gemma
    task: Task
    config: TrainingConfig

    @property
    def cost(self) -> float:
        """Return a measure of the time that the run takes. A token of a model with few parameters takes longer than
        these say: as if it had 1.6 million more."""
        parameters = sum(self.model.config.parameter_count().values())
        return (parameters + 1.6e6) * self.config.steps * self.config.batch_size


class Workshop:
    """The folder with the corpus and the runs, and the ranks that share the work."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.corpus = open_corpus(folder, ranks)
        self.validation = consecutive_batches(self.corpus.held_out, 8, SEQ_LEN)

    def train(self, stage: str, runs: list[Run]) -> None:
        """Train the models of a stage, each on one rank: the most expensive first, each on the rank that has the least
        to do. Rank 0 says how much of its share is left."""
        shares: list[list[Run]] = [[] for _ in range(self.ranks.size)]
        for run in sorted(runs, key=lambda run: run.cost, reverse=True):
            min(shares, key=lambda share: sum(run.cost for run in share)).append(run)
        share = shares[self.ranks.rank]
        started, total, done = time.perf_counter(), sum(run.cost for run in share), 0.0
        for run in share:
            if self.ranks.rank == 0:
                minutes = (time.perf_counter() - started) * (total / done - 1) / 60 if done else None
                print(f"{stage}: {run.name}" + (f", {minutes:.0f} minutes left" if minutes else ""), flush=True)
            run_task(run.model, run.task, run.config, self.folder / run.name, resume=True)
            done += run.cost
        self.ranks.barrier()

    def trained(self, name: str) -> Gemma:
        """Return the model of a finished run."""
        return gemma_np.load(self.folder / name).dequantized()

    # Stage 1: the teachers, and models of the other generations

    def teacher(self) -> Run:
        """Return the training of a larger model on 12 million tokens: from the Bibles to the plays."""
        config = replace(TRAINING, steps=steps(12e6), learning_rate=3e-3, seed=10)
        model = new_model(self.corpus.tokenizer, seed=10, **SHAPE_4M)
        return Run(
            "teacher", model, Task(from_bibles_to_plays(self.corpus, config), validation=self.validation), config
        )

    def twin(self, seed: int) -> Run:
        """Return the training of a student's twin, on the plays alone."""
        config = replace(TRAINING, steps=steps(10e6), seed=seed)
        task = Task(same_batches(two_readings(self.corpus.plays)), validation=self.validation)
        return Run(f"twin-{seed}", new_model(self.corpus.tokenizer, seed=seed, **SHAPE_1M), task, config)

    def other_generation(self, generation: int, **shape: int) -> Run:
        """Return the training of a tiny Gemma 1 or 3 on the plays."""
        config = replace(TRAINING, steps=steps(5e6), seed=generation)
        task = Task(random_batches(self.corpus.plays, BATCH_SIZE, SEQ_LEN), validation=self.validation)
        model = new_model(self.corpus.tokenizer, seed=generation, generation=generation, **SHAPE_TINY, **shape)
        return Run(f"gemma{generation}", model, task, config)

    # Stage 2: the students

    def cache_teachers(self) -> None:
        """Cache the mean of the teacher and the twins on the plays."""
        teachers = [self.trained(name) for name in ("teacher", *(f"twin-{seed}" for seed in SEEDS))]
        texts, folder = two_readings(self.corpus.plays), self.folder / "targets"
        cache_teacher(teachers, texts, folder, top_k=64, seq_len=SEQ_LEN, val_fraction=0, ranks=self.ranks)

    def student(self, seed: int) -> Run:
        """Return the distillation of a student: the first weights, the batches and the config of its twin."""
        twin = self.twin(seed)
        next_batch = random_targets(self.folder / "targets", BATCH_SIZE, twin.model.config.vocab_size)
        return replace(twin, name=f"student-{seed}", task=Task(next_batch, from_targets, self.validation))

    # Stages 3 and 4: the model that takes turns

    def rows(self, part: str) -> np.ndarray:
        """Return the conversations of a part of the corpus, as `conversation_rows` does."""
        tokenizer = self.corpus.tokenizer
        plays = [path.read_text(encoding="utf-8") for path in sorted((self.folder / "texts" / part).glob("*.txt"))]
        found = [conversation for play in plays for conversation in conversations(play, tokenizer, SEQ_LEN)]
        return conversation_rows(found, tokenizer, SEQ_LEN)

    def fine_tuned(self, name: str) -> Run:
        """Return the fine-tuning of a model on the conversations of the plays, once through all of them."""
        rows = self.rows("plays")
        config = replace(
            TRAINING, steps=len(rows) // 8, batch_size=8, learning_rate=1e-3, warmup_steps=100, weight_decay=0.1
        )
        task = Task(random_conversations(rows, config.batch_size), validation=self.chat_validation())
        return Run(f"{name}-chat", self.trained(name), task, config)

    def on_policy(self, student: str, teacher: str) -> Run:
        """Return the on-policy distillation of a fine-tuned student from a fine-tuned teacher."""
        config = replace(
            TRAINING, steps=1000, batch_size=8, learning_rate=3e-4, warmup_steps=50, weight_decay=0.1, eval_every=250
        )
        model = self.trained(student)
        task = Task(
            own_replies(self.rows("plays"), model.config, self.corpus.tokenizer, config.batch_size),
            from_teacher(self.trained(teacher)),
            self.chat_validation(),
        )
        return Run(f"{student}-on-policy", model, task, config)

    def chat_validation(self) -> list[Batch]:
        """Return the conversations of the held-out plays."""
        return all_conversations(self.rows("held_out"), 8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bundled-work"), help="folder of the corpus and the runs")
    options = parser.parse_args()
    with mpi_ranks() as ranks:
        if ranks.rank:
            os.environ["TQDM_DISABLE"] = "1"  # one rank shows its progress
        workshop = Workshop(options.work, ranks)
        tiny = [
            workshop.other_generation(3, num_hidden_layers=6, intermediate_size=128),
            workshop.other_generation(1, intermediate_size=192),
        ]
        workshop.train("stage 1 of 4", [workshop.teacher(), *(workshop.twin(seed) for seed in SEEDS), *tiny])
        workshop.cache_teachers()
        workshop.train("stage 2 of 4", [workshop.student(seed) for seed in SEEDS])
        workshop.train("stage 3 of 4", [workshop.fine_tuned("teacher"), workshop.fine_tuned("student-0")])
        workshop.train("stage 4 of 4", [workshop.on_policy("student-0-chat", "teacher-chat")])
