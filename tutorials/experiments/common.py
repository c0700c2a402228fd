"""What the experiments share: the corpus, models of a shape, runs that are not repeated, and their results."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import gemma_np
from gemma_np import Gemma
from gemma_np.config import gemma2_config
from gemma_np.training.data import consecutive_batches, open_tokens, text_files, write_tokens
from gemma_np.training.mpi import Ranks
from gemma_np.training.run_log import read_log
from gemma_np.training.task import Task
from gemma_np.training.trainer import initial_weights, validation_loss
from gemma_np.training.training_state import TrainingConfig

HERE = Path(__file__).parent
TEACHER = "shakespeare-4m"
SEEDS = (0, 1, 2)
TRAINING = TrainingConfig(
    steps=1000, batch_size=4, seq_len=256, learning_rate=2e-3, warmup_steps=100, eval_every=1000, save_every=250
)
TOKENS = TRAINING.steps * TRAINING.batch_size * TRAINING.seq_len


@dataclass(frozen=True)
class Shape:
    """What varies; all else is as in the bundled models."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 384
    window: int = 64

    def model(self, seed: int) -> Gemma:
        """A model of this shape, freshly initialised."""
        words = gemma_np.load(TEACHER).tokenizer
        config = gemma2_config(
            *(len(words), self.hidden, self.layers, self.heads, self.kv_heads, self.head_dim, self.ffn),
            *(TRAINING.seq_len, self.head_dim, self.window),
        )
        return Gemma(config, initial_weights(config, np.random.default_rng(seed)), words)

    @property
    def parameters(self) -> int:
        """How many parameters a model of this shape has."""
        return sum(self.model(0).config.parameter_count().values())


class Lab:
    """A folder where corpus and runs are kept: what was interrupted goes on, what was finished is not repeated."""

    def __init__(self, description: str | None) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("texts", type=Path, help="folder with the 42 modern editions, *_gut.txt")
        parser.add_argument("--work", type=Path, default=Path("experiments-work"), help="where the runs are kept")
        options = parser.parse_args()
        self.work, data = options.work, options.work / "data"
        if not (data / "train.npy").exists():
            write_tokens(text_files(options.texts), gemma_np.load(TEACHER).tokenizer, data, 0.05, seed=0)
        self.tokens = open_tokens(data / "train.npy", TRAINING.seq_len)
        self.validation = consecutive_batches(
            open_tokens(data / "validation.npy", TRAINING.seq_len), 8, TRAINING.seq_len, 100
        )
        self.seconds = 0.0  # of training, of all runs asked for

    def trained(self, name: str, shape: Shape, task: Task, seed: int) -> Gemma:
        """The model that this task makes of this shape, from this seed."""
        folder = self.work / f"{name}-seed-{seed}"
        model = train(shape.model(seed), task, replace(TRAINING, seed=seed), folder, resume=True)
        self.seconds += TOKENS / read_log(folder)[-1]["tokens/s"]
        return model

    def loss(self, model: Gemma) -> float:
        """The loss on the plays that no model has read, in nats a token."""
        return validation_loss(model.weights, model.config, self.validation, Ranks())

    def write(self, name: str, rows: Iterable[dict]) -> list[dict]:
        """Write the results down as JSON and print them as a table; mean and spread are over the seeds."""
        rows = [
            {**row, "mean": float(np.mean(losses)), "spread": float(np.std(losses, ddof=1)) if len(losses) > 1 else 0.0}
            for row in rows
            for losses in [row["losses"]]
        ]
        minutes = self.seconds / 60
        result = {"tokens": TOKENS, "seeds": list(SEEDS), "minutes": round(minutes, 1), "rows": rows}
        (HERE / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        for row in rows:
            print(f"{row['label']:32}{row['parameters']:>12,}  {row['mean']:.3f} +- {row['std']:.3f}")
        return rows
