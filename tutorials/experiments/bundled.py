"""Make the bundled models from nothing.

    mpiexec -n 2 python tutorials/experiments/bundled.py

The ranks share the runs, one core each. To continue an interrupted call, repeat it.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from corpus import Corpus, open_corpus

from gemma_np import Gemma
from gemma_np.training import TrainingConfig, mpi_ranks, new_model
from gemma_np.training.data import consecutive_batches, random_windows
from gemma_np.training.mpi import Ranks
from gemma_np.training.task import Batch, Task
from gemma_np.training.trainer import run_task
from gemma_np.training.training_state import State

SEQ_LEN = 256
BATCH_SIZE = 4
SHAPE_1M = {"intermediate_size": 384}
SHAPE_4M = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 768}
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
        """Return a measure of the time that the run takes: its parameters times its tokens."""
        return sum(self.model.config.parameter_count().values()) * self.config.steps * self.config.batch_size


class Workshop:
    """The folder with the corpus and the runs, and the ranks that share the work."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.corpus = open_corpus(folder, ranks)
        self.validation = consecutive_batches(self.corpus.held_out, 8, SEQ_LEN, limit=1000)

    def train(self, runs: list[Run]) -> None:
        """Train the models that are not trained yet, each on one rank: the most expensive first, each on the rank that
        has the least to do."""
        work = [0.0] * self.ranks.size
        for run in sorted(runs, key=lambda run: run.cost, reverse=True):
            rank = work.index(min(work))
            work[rank] += run.cost
            if rank != self.ranks.rank:
                continue
            task = replace(run.task, validation=self.validation)
            run_task(run.model, task, run.config, self.folder / run.name, resume=True)
        self.ranks.barrier()

    def twin(self, seed: int, tokens: float) -> Run:
        config = replace(TRAINING, steps=steps(tokens), seed=seed)
        model = new_model(self.corpus.tokenizer, seed=seed, **SHAPE_1M)
        return Run(f"twin-{seed}", model, Task(same_batches(two_readings(self.corpus.plays))), config)

    def teacher(self) -> Run:
        config = replace(TRAINING, steps=steps(12e6), learning_rate=3e-3, seed=10)
        model = new_model(self.corpus.tokenizer, seed=10, **SHAPE_4M)
        return Run("teacher", model, Task(from_bibles_to_plays(self.corpus, config)), config)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bundled-work"), help="folder of the corpus and the runs")
    options = parser.parse_args()
    with mpi_ranks() as ranks:
        workshop = Workshop(options.work, ranks)
        workshop.train([workshop.teacher(), *(workshop.twin(seed, 10e6) for seed in range(3))])
