"""The memory that `info --training` estimates, against what a step allocates."""

import tracemalloc

import numpy as np
import pytest

from gemma_np.cli import main
from gemma_np.config import gemma2_config
from gemma_np.memory import training_bytes
from gemma_np.mpi import Ranks
from gemma_np.training.optimizer import AdamW
from gemma_np.training.task import Batch, Task
from gemma_np.training.trainer import initial_weights, train_step
from gemma_np.training.training_state import State, TrainingConfig

SHAPES = {  # D, layers, h, F, V, batch_size, seq_len: each peaks at another moment
    "records": (128, 4, 32, 512, 2048, 8, 128),
    "scores": (64, 2, 16, 256, 512, 4, 512),
    "feed-forward": (64, 2, 16, 1024, 512, 4, 64),
    "head": (64, 2, 16, 128, 8000, 4, 64),
    "optimizer": (256, 4, 32, 1024, 8192, 1, 64),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_estimate_is_within_a_tenth(shape):
    D, layers, h, F, V, B, T = shape
    config = gemma2_config(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=h,
        intermediate_size=F,
        max_position_embeddings=T,
        query_pre_attn_scalar=h,
        sliding_window=64,
    )
    tracemalloc.start()
    try:
        state = State(initial_weights(config, np.random.default_rng(0)), AdamW(), np.random.default_rng(0))
        ids = state.generator.integers(0, V, (B, T + 1))
        training_config, task = TrainingConfig(batch_size=B, seq_len=T), Task(lambda state: Batch(ids))
        train_step(state, config, task, training_config, Ranks())  # the first allocates the moments
        tracemalloc.reset_peak()
        train_step(state, config, task, training_config, Ranks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(training_bytes(config, B, T).values()) == pytest.approx(peak, rel=0.1)


def test_info_prints_the_estimate(capsys):
    assert main(["info", "--model", "gemma-2-2b", "--training", "--batch-size", "2", "--seq-len", "64"]) == 0
    out = capsys.readouterr().out
    assert "memory of training in float32, 2 texts of 64 tokens per step" in out
    assert "moments of AdamW" in out
