"""The corpus, models, training runs and results of the experiments."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

import gemma_np
from gemma_np import Gemma
from gemma_np.config import gemma2_config
from gemma_np.training.data import consecutive_batches, tokenize_texts
from gemma_np.training.mpi import Ranks
from gemma_np.training.run_log import read_log
from gemma_np.training.task import Task
from gemma_np.training.trainer import initial_weights, run_task, validation_loss
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
    """The sizes that vary; everything else is as in the bundled models."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 384
    sliding_window: int = 64

    def model(self, seed: int) -> Gemma:
        """Return a model of this shape with random weights."""
        tokenizer = gemma_np.load(TEACHER).require_tokenizer()
        config = gemma2_config(
            **asdict(self),
            vocab_size=len(tokenizer),
            max_position_embeddings=TRAINING.seq_len,
            query_pre_attn_scalar=self.head_dim,
        )
        return Gemma(config, initial_weights(config, np.random.default_rng(seed)), tokenizer)

    @property
    def parameters(self) -> int:
        """Return the number of parameters of a model of this shape."""
        return sum(self.model(0).config.parameter_count().values())


class Lab:
    """A folder with the corpus and the runs: interrupted runs are continued, finished ones are not repeated."""

    def __init__(self, description: str | None) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("texts", type=Path, help="folder with the 42 modern editions, *_gut.txt")
        parser.add_argument("--work", type=Path, default=Path("experiments-work"), help="folder of the runs")
        options = parser.parse_args()
        self.work = options.work
        tokenizer = gemma_np.load(TEACHER).require_tokenizer()
        split = tokenize_texts(options.texts, tokenizer, options.work / "data", val_fraction=0.05, seed=0, keep=True)
        self.tokens = split.train
        self.validation = consecutive_batches(split.validation, 8, TRAINING.seq_len, limit=100)
        self.seconds = 0.0  # of training, over all runs

    def trained(self, name: str, shape: Shape, task: Task, seed: int) -> Gemma:
        """Train a model of this shape on a task, or return it if it is trained already."""
        folder = self.work / f"{name}-seed-{seed}"
        model = run_task(shape.model(seed), task, replace(TRAINING, seed=seed), folder, resume=True)
        self.seconds += TOKENS / read_log(folder)[-1]["tokens_per_second"]
        return model

    def loss(self, model: Gemma) -> float:
        """Return the loss on the held-out plays, in nats per token."""
        return validation_loss(model.weights, model.config, self.validation, Ranks())

    def write(self, name: str, rows: Iterable[dict]) -> list[dict]:
        """Write the results as JSON and print them as a table; mean and standard deviation are over the seeds."""
        rows = [
            {**row, "mean": float(np.mean(losses)), "std": float(np.std(losses, ddof=1)) if len(losses) > 1 else 0.0}
            for row in rows
            for losses in [row["losses"]]
        ]
        minutes = self.seconds / 60
        result = {"tokens": TOKENS, "seeds": list(SEEDS), "minutes": round(minutes, 1), "rows": rows}
        (HERE / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        for row in rows:
            print(f"{row['label']:32}{row['parameters']:>12,}  {row['mean']:.3f} +- {row['std']:.3f}")
        return rows
