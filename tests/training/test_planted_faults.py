"""Mistakes planted in the backward pass, the losses and the optimizer, one by one: each makes a check fail."""

import numpy as np
import pytest

from gemma_np.model import attention
from gemma_np.model.feed_forward import gelu
from gemma_np.model.rms_norm import rms_norm_backward
from gemma_np.training import losses, optimizer
from gemma_np.training.task import Batch, next_token
from gemma_np.training.trainer import loss_and_gradients
from tests.support import tiny
from tests.support.finite_differences import assert_gradient
from tests.support.strategies import normal, random_ids, random_weights


def check_model(model_type):
    """The gradient of the whole model, tied head and all, against finite differences."""
    config = tiny.config(model_type)
    weights, ids = random_weights(config, 0, np.float64), random_ids(config, 0, 2, 6)
    _, gradients, _ = loss_and_gradients(weights, config, Batch(ids), next_token)

    def loss(*values):
        return loss_and_gradients(dict(zip(weights, values, strict=True)), config, Batch(ids), next_token)[0]

    assert_gradient(loss, list(weights.values()), [gradients[name] for name in weights])


def check_temperature():
    logits, teacher = normal(0, 5), normal(1, 5)
    _, dlogits = losses.soft_cross_entropy(logits, teacher, 3.0)
    assert_gradient(lambda x: losses.soft_cross_entropy(x, teacher, 3.0)[0].sum(), (logits,), (dlogits,))


def check_first_step():
    weights = {"norm": np.zeros(3)}
    optimizer.AdamW().step(weights, {"norm": np.full(3, 1e-3)}, 0.01)
    np.testing.assert_allclose(weights["norm"], -0.01, rtol=1e-2)


def rows_without_scale(dx, ids, embedding):
    gradient = np.zeros_like(embedding)
    np.add.at(gradient, ids, dx)
    return gradient


def without_the_mean(dprobs, probs):
    return probs * dprobs


def as_if_the_weight_were_w(dy, x, weight, eps):
    return rms_norm_backward(dy, x, weight - 1, eps)


def with_the_component_along_x(dy, x, weight, eps):
    rms = np.sqrt(np.vecdot(x, x)[..., None] / x.shape[-1] + eps)
    return dy * (1 + weight) / rms, rms_norm_backward(dy, x, weight, eps)[1]


def first_head_of_the_group(left, right, kv_heads):
    group = left.shape[-3] // kv_heads
    return left[..., ::group, :, :].swapaxes(-1, -2) @ right[..., ::group, :, :]


def rotated_forward_again(dy, cos, sin):
    return attention.rope(dy, cos, sin)


def uncorrected_step(self, weights, gradients, learning_rate):
    for name, gradient in gradients.items():
        weights[name] -= learning_rate * 0.1 * gradient / (np.sqrt(0.05 * gradient**2) + self.eps)


def without_the_square(logits, teacher, temperature, original=losses.soft_cross_entropy):
    loss, dlogits = original(logits, teacher, temperature)
    return loss, dlogits / temperature**2


FAULTS = {
    "tied-head-lookup-dropped": (
        *("gemma2", "gemma_np.model.transformer.embed_backward"),
        lambda dx, ids, embedding: np.zeros_like(embedding),
    ),
    "embed-scale-forgotten": ("gemma2", "gemma_np.model.transformer.embed_backward", rows_without_scale),
    "softmax-mean-forgotten": ("gemma2", "gemma_np.model.attention.masked_softmax_backward", without_the_mean),
    "norm-as-w": ("gemma2", "gemma_np.model.block.rms_norm_backward", as_if_the_weight_were_w),
    "norm-along-x": ("gemma2", "gemma_np.model.block.rms_norm_backward", with_the_component_along_x),
    "qk-norm-as-w": ("gemma3_text", "gemma_np.model.attention.rms_norm_backward", as_if_the_weight_were_w),
    "gqa-not-summed": ("gemma2", "gemma_np.model.attention.grouped_matmul_backward", first_head_of_the_group),
    "rope-not-rotated-back": ("gemma2", "gemma_np.model.attention.rope_backward", rotated_forward_again),
    "attncap-forgotten": ("gemma2", "gemma_np.model.attention.soft_cap_backward", lambda dy, y, cap: dy),
    "finalcap-forgotten": ("gemma2", "gemma_np.model.transformer.soft_cap_backward", lambda dy, y, cap: dy),
    "gelu-slope-one": (
        *("gemma2", "gemma_np.model.feed_forward.gelu_and_slope"),
        lambda x: (gelu(x), np.ones_like(x)),
    ),
}


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_the_checks_pass_without_a_fault(model_type):
    check_model(model_type)
    check_temperature()
    check_first_step()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_backward_pass_is_found(fault, monkeypatch):
    model_type, function, faulty = fault
    monkeypatch.setattr(function, faulty)
    with pytest.raises(AssertionError, match="measured"):
        check_model(model_type)


def test_a_missing_square_of_the_temperature_is_found(monkeypatch):
    monkeypatch.setattr(losses, "soft_cross_entropy", without_the_square)
    with pytest.raises(AssertionError, match="measured"):
        check_temperature()


def test_a_missing_bias_correction_is_found(monkeypatch):
    monkeypatch.setattr(optimizer.AdamW, "step", uncorrected_step)
    with pytest.raises(AssertionError):
        check_first_step()
