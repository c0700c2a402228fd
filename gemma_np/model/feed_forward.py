"""GeGLU: a feed-forward layer in which a gate scales every hidden channel.

Source: Shazeer, arXiv 2002.05202; Gemma 2 report, section 2; Hendrycks and Gimpel, arXiv 1606.08415, section 2 (GELU
in its tanh form).
"""

import math

import numpy as np

from gemma_np.scope import Scope, Tape, no_tape
from gemma_np.weights.linear import linear, linear_backward


def feed_forward(x: np.ndarray, weights: Scope, tape: Tape = no_tape) -> np.ndarray:
    """Compute down(gelu(gate(x)) * up(x)); weights are those of the layer's `mlp`.

    x [..., T, D] -> [..., T, D]
    """
    gate = tape("gate", linear(x, weights["gate_proj.weight"]))  # [..., T, F]
    up = tape("up", linear(x, weights["up_proj.weight"]))  # [..., T, F]
    hidden = tape("hidden", gelu(gate) * up)  # [..., T, F]
    return tape("down", linear(hidden, weights["down_proj.weight"]))


def feed_forward_backward(dy: np.ndarray, x: np.ndarray, weights: Scope, record: Scope, gradients: Scope) -> np.ndarray:
    """Compute the gradients of `feed_forward`, last line first; those of its weights go into `gradients`.

    dy and x [..., T, D], record of the layer's `mlp` -> dx [..., T, D]
    """
    gate, up, hidden = record["gate"], record["up"], record["hidden"]
    dhidden, gradients["down_proj.weight"] = linear_backward(dy, hidden, weights["down_proj.weight"])
    activation, slope = gelu_and_slope(gate)
    dup = activation * dhidden  # undoes: hidden = gelu(gate) * up
    slope *= up
    dgate = np.multiply(slope, dhidden, out=slope)
    dx_up, gradients["up_proj.weight"] = linear_backward(dup, x, weights["up_proj.weight"])
    dx_gate, gradients["gate_proj.weight"] = linear_backward(dgate, x, weights["gate_proj.weight"])
    return dx_up + dx_gate


def gelu(x: np.ndarray) -> np.ndarray:
    """Compute x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))): x [...] -> [...], in one buffer."""
    y = np.asarray(x * x)  # x * x * x is a hundred times as fast as x**3
    y *= 0.044715
    y += 1
    y *= x
    y *= math.sqrt(2 / math.pi)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y


def gelu_and_slope(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute `gelu` and its derivative, which share their tanh: x [...] -> [...] each, in four buffers.

    With u = sqrt(2/pi) * (x + 0.044715 x^3), the derivative is (1 + tanh u) / 2 + x/2 * (1 - tanh^2 u) * du/dx.
    """
    du = x * x
    t = 0.044715 * du
    t += 1
    t *= x
    t *= math.sqrt(2 / math.pi)
    np.tanh(t, out=t)
    half = 0.5 * t
    half += 0.5
    du *= 3 * 0.044715
    du += 1
    du *= math.sqrt(2 / math.pi)
    t *= t
    slope = np.subtract(1, t, out=t)
    slope *= du
    slope *= x
    slope *= 0.5
    slope += half
    half *= x
    return half, slope
