"""Quantization-aware training."""

import numpy as np

import gemma_np
from gemma_np.compression.qat import FakeQuantize
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.compression.quantize_model import quantize_model
from gemma_np.mpi import Ranks
from gemma_np.training.optimizer import AdamW
from gemma_np.training.task import Batch, Task, next_token
from gemma_np.training.trainer import loss_and_gradients, run_task, train_step
from gemma_np.training.training_state import State, TrainingConfig
from gemma_np.weights.formats import dequantize
from tests.support import tiny
from tests.support.strategies import random_ids
from tests.support.tolerances import assert_close

MODEL = tiny.gemma(intermediate_size=8)
SCHEME = Scheme("int4", 4)
TRAINING = TrainingConfig(steps=40, batch_size=4, seq_len=9, warmup_steps=1, learning_rate=3e-3)
TEXTS = random_ids(MODEL.config, 0, 8, 10)


def next_batch(state):
    return Batch(TEXTS[state.generator.integers(0, len(TEXTS), 4)])


def test_the_gradient_goes_straight_through():
    """The first step moves the float weights by the gradient that the quantized ones have."""
    state = State({n: w.copy() for n, w in MODEL.weights.items()}, AdamW(weight_decay=0), np.random.default_rng(0))
    task = Task(lambda _: Batch(TEXTS[:4]), view_weights=FakeQuantize(SCHEME))
    _, gradients, _ = loss_and_gradients(task.view_weights(MODEL.weights), MODEL.config, Batch(TEXTS[:4]), next_token)
    train_step(
        state,
        MODEL.config,
        task,
        TrainingConfig(steps=1, batch_size=4, seq_len=9, warmup_steps=0, max_grad_norm=1e9),
        Ranks(),
    )
    for name, gradient in gradients.items():
        assert_close(state.optimizer.m[name], 0.1 * gradient, "gradient", name)


def test_the_checkpoint_is_what_the_model_saw_and_the_run_goes_on_from_floats(tmp_path):
    task = Task(next_batch, view_weights=FakeQuantize(SCHEME))
    trained = run_task(MODEL, task, TRAINING, tmp_path / "run")
    loaded = gemma_np.load(tmp_path / "run")
    for name, weight in loaded.weights.items():
        assert (weight == trained.weights[name]).all()
        if weight.ndim == 2:
            assert_close(dequantize(quantize(weight, SCHEME)), weight, "precision", name)
    again = run_task(MODEL, task, TRAINING, tmp_path / "run", resume=True)
    assert all((again.weights[name] == weight).all() for name, weight in trained.weights.items())


def test_a_model_trained_so_loses_less_when_it_is_quantized(tmp_path):
    def loss_when_quantized(model):
        weights = {
            name: dequantize(weight) for name, weight in quantize_model(model, SCHEME, "round", embedding=SCHEME)
        }
        return loss_and_gradients(weights, model.config, Batch(TEXTS), next_token)[0]

    plain = run_task(MODEL, Task(next_batch), TRAINING, tmp_path / "plain")
    aware = run_task(MODEL, Task(next_batch, view_weights=FakeQuantize(SCHEME)), TRAINING, tmp_path / "aware")
    assert loss_when_quantized(aware) < loss_when_quantized(plain)
