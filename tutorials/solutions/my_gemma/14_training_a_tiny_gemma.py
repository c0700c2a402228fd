"""my_gemma.py, tutorial 14."""

import numpy as np


def clip(gradients, max_norm):
    """Scale all gradients by one factor, in place, so that together they are at most this long."""
    norm = np.sqrt(sum(np.sum(gradient * gradient) for gradient in gradients.values()))
    if norm > max_norm:
        for gradient in gradients.values():
            gradient *= max_norm / norm


def adamw(weights, gradients, state, learning_rate, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1):
    """Update the weights in place; weight decay is for matrices, not for the vectors of the norms.

    state: {"step": 0, "m": {}, "v": {}} before the first step. It keeps the number of steps and, by the names of the
    weights, the running means of the gradient and of its square, which begin with zeros.
    """
    state["step"] += 1
    for name, gradient in gradients.items():
        weight = weights[name]
        m = state["m"][name] = beta1 * state["m"].get(name, 0) + (1 - beta1) * gradient
        v = state["v"][name] = beta2 * state["v"].get(name, 0) + (1 - beta2) * gradient * gradient
        m, v = m / (1 - beta1 ** state["step"]), v / (1 - beta2 ** state["step"])
        if weight.ndim > 1:
            weight *= 1 - learning_rate * weight_decay
        weight -= learning_rate * m / (np.sqrt(v) + eps)


def train_step(ids, loss, weights, config, state, learning_rate, max_norm=1.0):
    """Forward, loss, backward, clip, AdamW, in place: ids [..., T] -> the loss.

    loss: a function, logits [..., T, V] -> loss, dlogits. For next-token prediction, it is `cross_entropy` with the ids
    shifted by one as targets.
    """
    record = {}

    def keep(name, value):
        record[name] = value
        return value

    value, dlogits = loss(gemma(ids, weights, config, tape=keep))
    gradients = gemma_backward(dlogits, ids, weights, config, record)
    clip(gradients, max_norm)
    adamw(weights, gradients, state, learning_rate)
    return value
