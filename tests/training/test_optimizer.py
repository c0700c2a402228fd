"""AdamW against the framework and against a loop; clipping; the schedule."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.training.optimizer import AdamW, clip_by_global_norm, cosine_schedule
from tests.support.strategies import normal, random_ids, random_weights, seeds
from tests.support.tiny import config as tiny_config
from tests.support.tolerances import assert_close


@given(seeds, st.integers(1, 5))
def test_adamw_matches_a_loop_over_numbers(seed, steps):
    weights = {"matrix": normal(seed, 2, 3), "norm": normal(seed + 1, 3)}
    expected = {name: weight.copy() for name, weight in weights.items()}
    moments = {name: np.zeros((2, weight.size)) for name, weight in weights.items()}
    optimizer = AdamW(weight_decay=0.3)
    for step in range(1, steps + 1):
        gradients = {name: normal(seed + step, *weight.shape) for name, weight in weights.items()}
        optimizer.step(weights, gradients, 0.1)
        for name, weight in expected.items():
            decay = 0.3 if name == "matrix" else 0
            flat, gradient = weight.reshape(-1), gradients[name].reshape(-1)
            for i in range(flat.size):
                m = moments[name][0, i] = 0.9 * moments[name][0, i] + 0.1 * gradient[i]
                v = moments[name][1, i] = 0.95 * moments[name][1, i] + 0.05 * gradient[i] ** 2
                flat[i] -= 0.1 * decay * flat[i]
                flat[i] -= 0.1 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.95**step)) + 1e-8)
    for name in weights:
        np.testing.assert_allclose(weights[name], expected[name], rtol=1e-10)


@given(seeds)
def test_the_first_step_is_the_learning_rate(seed):
    """Whatever the gradient's size, the step is its sign times the learning rate: bias correction sees to that."""
    weights, gradient = {"norm": np.zeros(5)}, normal(seed, 5)
    gradient = np.sign(gradient) * np.maximum(np.abs(gradient), 1e-3) * 1e-3  # at least 100 times eps
    AdamW().step(weights, {"norm": gradient}, 0.01)
    np.testing.assert_allclose(weights["norm"], -0.01 * np.sign(gradient), rtol=0.02)


def test_the_dtype_stays_float32():
    weights = {"norm": np.zeros(5, np.float32)}
    optimizer = AdamW()
    optimizer.step(weights, {"norm": np.ones(5, np.float32)}, 0.01)
    assert {weights["norm"].dtype, optimizer.m["norm"].dtype, optimizer.v["norm"].dtype} == {np.dtype("f4")}


@given(seeds, st.floats(0.01, 100))
def test_clipping(seed, limit):
    gradients = {"a": normal(seed, 3, 2), "b": normal(seed + 1, 4)}
    before = {name: g.copy() for name, g in gradients.items()}
    norm = clip_by_global_norm(gradients, limit)
    together = np.concatenate([g.ravel() for g in before.values()])
    assert norm == pytest.approx(np.linalg.norm(together))
    scale = min(1, limit / norm)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, before[name] * scale, rtol=1e-12)


def test_the_schedule():
    rates = [cosine_schedule(step, steps=100, peak=2.0, warmup_steps=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(2.0 * 0.55)  # half-way down from 2.0 to 0.2
    assert 0.2 < rates[99] < 0.21
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert cosine_schedule(0, steps=10, peak=1.0, warmup_steps=0) == 1.0


@pytest.mark.framework
def test_ten_steps_match_the_framework():
    """A whole tiny Gemma 2 trained on one batch: the ten losses agree to 1e-5."""
    import torch

    from gemma_np.model.transformer import lm_head, lm_head_backward, transformer, transformer_backward
    from gemma_np.scope import Record
    from gemma_np.training.losses import cross_entropy, masked_mean
    from tests.support.framework import framework_model

    config = tiny_config()
    weights = {name: weight.copy() for name, weight in random_weights(config, 0).items()}
    ids = random_ids(config, 0, 4, 17)
    model = framework_model(config, weights)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    theirs, ours = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95)), AdamW()
    model.model.embed_tokens.padding_idx = None
    expected, found = [], []
    for _ in range(10):
        logits = model(torch.tensor(ids[:, :-1])).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ids[:, 1:]).flatten())
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        expected.append(loss.item())

        record, gradients = Record(), {}
        logits = lm_head(transformer(ids[:, :-1], weights, config, tape=record), weights, config, record)
        loss, dlogits = masked_mean(*cross_entropy(logits, ids[:, 1:]))
        dx = lm_head_backward(dlogits, weights, config, record, gradients)
        transformer_backward(dx, ids[:, :-1], weights, config, record, gradients)
        ours.step(weights, gradients, 0.01)
        found.append(loss)
    assert found[-1] < found[0] - 1
    assert_close(np.array(found, np.float32), np.array(expected, np.float32), "framework")
