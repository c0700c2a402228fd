"""Measure the speed of a training step at the tiny shape (D 128, 4 layers, V 2,048, batch 8 x 128), as ratios.

    pip install -e '.[framework,mpi]'
    python -m tests.benchmarks.training

A ratio above 1 means that gemma_np is that much faster than torch (eager, float32, its own AdamW and clipping, as many
threads as there are cores). Rounds alternate, each in a fresh process; the median and the range are shown.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from gemma_np.mpi import mpi_ranks
from gemma_np.training.optimizer import AdamW
from gemma_np.training.task import Batch, Task
from gemma_np.training.trainer import initial_weights, train_step
from gemma_np.training.training_state import State, TrainingConfig
from tests.benchmarks.speed import TINY

TRAINING = TrainingConfig(batch_size=8, seq_len=128)
STEPS = 30


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        {"ours": ours, "theirs": theirs}[options.worker]()
        return
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or "mpiexec"
    commands = {"theirs": [], "one process": [], "two MPI ranks": [mpiexec, "-n", "2"]}
    speeds = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, prefix in commands.items():
            worker = "theirs" if name == "theirs" else "ours"
            command = [*prefix, sys.executable, "-m", "tests.benchmarks.training", "--worker", worker]
            speeds[name].append(float(subprocess.check_output(command)))
    reference = np.array(speeds.pop("theirs"))
    for name, values in speeds.items():
        ratio = np.array(values) / reference
        print(
            f"training, {name:16}{np.median(ratio):6.2f} x the framework (range {ratio.min():.2f} to "
            f"{ratio.max():.2f}): {np.median(values):,.0f} against {np.median(reference):,.0f} tokens/s"
        )


def ours() -> None:
    """Train on the ranks that mpiexec started, and print the tokens per second."""
    generator = np.random.default_rng(0)
    state = State(initial_weights(TINY, generator), AdamW(), generator)
    task = Task(
        lambda state: Batch(state.generator.integers(0, TINY.vocab_size, (TRAINING.batch_size, TRAINING.seq_len + 1)))
    )
    with mpi_ranks() as ranks:
        speed = tokens_per_second(lambda: train_step(state, TINY, task, TRAINING, ranks))
        if ranks.rank == 0:
            print(speed)


def theirs() -> None:
    """Do the same with torch."""
    import torch

    from tests.benchmarks.speed import framework_model

    model, _ = framework_model(TINY)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), TRAINING.learning_rate, (0.9, 0.95), weight_decay=TRAINING.weight_decay
    )

    def step() -> None:
        ids = torch.randint(TINY.vocab_size, (TRAINING.batch_size, TRAINING.seq_len + 1))
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAINING.max_grad_norm)
        optimizer.step()

    print(tokens_per_second(step))


def tokens_per_second(step) -> float:
    for _ in range(5):
        step()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS * TRAINING.batch_size * TRAINING.seq_len / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
