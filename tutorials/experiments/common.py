"""What the experiments share: the corpus, models of a million parameters, training runs and results."""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from corpus import open_corpus

import gemma_np
from gemma_np import Gemma
from gemma_np.mpi import Ranks
from gemma_np.training import TrainingConfig, mpi_ranks, new_model
from gemma_np.training.data import consecutive_batches, random_batches
from gemma_np.training.task import Task
from gemma_np.training.trainer import run_task, validation_loss

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
SEQ_LEN = 256
BATCH_SIZE = 4
BUDGET = 1e6  # tokens
SHAPE_1M = {"intermediate_size": 384}
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


@dataclass(frozen=True)
class Run:
    """One training run: its folder, its model before the first step, its task and its training config."""

    name: str
    model: Gemma
    task: Task
    config: TrainingConfig

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the model."""
        return sum(self.model.config.parameter_count().values())

    @property
    def cost(self) -> float:
        """Return a measure of the time that the run takes. A token of a model with few parameters takes longer than
        these say: as if it had 1.6 million more."""
        return (self.parameters + 1.6e6) * self.config.steps * self.config.batch_size


class Lab:
    """The folder with the corpus and the runs, and the ranks that share the runs."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.corpus = open_corpus(folder, ranks)
        self.validation = consecutive_batches(self.corpus.held_out, 8, SEQ_LEN)

    def train(self, runs: list[Run], stage: str = "training") -> None:
        """Train models, each on one rank: the most expensive first, each on the rank that has the least to do.

        Interrupted runs are continued, finished ones are not repeated. Rank 0 says how much of its share is left.
        """
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

    def loss(self, model: Gemma) -> float:
        """Return the loss on the two held-out plays, in nats per token."""
        batches = consecutive_batches(self.corpus.held_out, 8, SEQ_LEN, limit=100)
        return validation_loss(model.weights, model.config, batches, Ranks())

    def from_scratch(self, label: str, seed: int, **shape: int) -> Run:
        """Return the training of a model on the plays; shape: sizes of `GemmaConfig` that differ from `SHAPE_1M`."""
        model = new_model(self.corpus.tokenizer, seed=seed, **(SHAPE_1M | shape))
        task = Task(random_batches(self.corpus.plays, BATCH_SIZE, SEQ_LEN), validation=self.validation)
        return Run(f"{label}-{seed}", model, task, replace(TRAINING, steps=steps(BUDGET), seed=seed))

    def compare(
        self,
        name: str,
        runs: dict[str, list[Run]],
        plot: Callable[[str, list[dict]], None],
        columns: dict[str, dict] | None = None,
    ) -> None:
        """Train the runs under each label, one for each seed, and print, write and plot their losses.

        columns: what else the rows have, by label.
        """
        self.train([run for group in runs.values() for run in group])
        if self.ranks.rank == 0:
            rows = [
                row(label, group[0].parameters, [self.loss(self.trained(run.name)) for run in group])
                | (columns or {}).get(label, {})
                for label, group in runs.items()
            ]
            write(name, rows)
            plot(name, rows)


def row(label: str, parameters: int, losses: list[float]) -> dict:
    """Return a row of a table; mean and standard deviation are over the seeds."""
    std = float(np.std(losses, ddof=1)) if len(losses) > 1 else 0.0
    return {"label": label, "parameters": parameters, "losses": losses, "mean": float(np.mean(losses)), "std": std}


def write(name: str, rows: Iterable[dict]) -> None:
    """Write a table as JSON and print it."""
    rows = list(rows)
    (HERE / f"{name}.json").write_text(json.dumps({"seeds": list(SEEDS), "rows": rows}, indent=2) + "\n")
    for line in rows:
        print(f"{line['label']:32}{line['parameters']:>12,}  {line['mean']:.3f} +- {line['std']:.3f}")


@contextmanager
def open_lab(description: str | None) -> Iterator[Lab]:
    """Read the command line and yield the lab of this process, which under `mpiexec` is one of several."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("experiments-work"), help="folder of the corpus and the runs")
    options = parser.parse_args()
    with mpi_ranks() as ranks:
        if ranks.rank:
            os.environ["TQDM_DISABLE"] = "1"  # one rank shows its progress
        yield Lab(options.work, ranks)
