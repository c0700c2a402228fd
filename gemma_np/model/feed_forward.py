"""GeGLU: a feed-forward layer whose hidden channels are each opened or shut by a gate.

Source: Shazeer, arXiv 2002.05202; Gemma 2 report, section 2. GELU in its tanh form: Hendrycks and Gimpel,
arXiv 1606.08415, section 2.
"""

import math

import numpy as np

from gemma_np.scope import Scope, Tape, no_tape
from gemma_np.storage import linear, linear_backward


def feed_forward(x: np.ndarray, weights: Scope, tape: Tape = no_tape) -> np.ndarray:
    """down(gelu(gate(x)) * up(x)); weights are those of the layer's `mlp`.

    x [..., T, D] -> [..., T, D]
    """
    gate = tape("gate", linear(x, weights["gate_proj.weight"]))  # [..., T, F]
    up = tape("up", linear(x, weights["up_proj.weight"]))  # [..., T, F]
    hidden = tape("hidden", gelu(gate) * up)  # [..., T, F]
    return tape("down", linear(hidden, weights["down_proj.weight"]))


def feed_forward_backward(dy: np.ndarray, x: np.ndarray, weights: Scope, record: Scope, gradients: Scope) -> np.ndarray:
    """Undo `feed_forward`, last line first; the gradients of its weights go into `gradients`.

    dy and x [..., T, D], record of the layer's `mlp` -> dx [..., T, D]
    """
    gate, up, hidden = record["gate"], record["up"], record["hidden"]
    dhidden, gradients["down_proj.weight"] = linear_backward(dy, hidden, weights["down_proj.weight"])
    dup = dhidden * gelu(gate)  # undoes: hidden = gelu(gate) * up
    dgate = dhidden * up * gelu_slope(gate)
    dx_up, gradients["up_proj.weight"] = linear_backward(dup, x, weights["up_proj.weight"])
    dx_gate, gradients["gate_proj.weight"] = linear_backward(dgate, x, weights["gate_proj.weight"])
    return dx_up + dx_gate


def gelu(x: np.ndarray) -> np.ndarray:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))), for an x of any shape; one buffer, filled in place."""
    y = x * x  # x * x * x costs a hundredth of x**3
    y *= 0.044715
    y += 1
    y *= x
    y *= math.sqrt(2 / math.pi)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y


def gelu_slope(x: np.ndarray) -> np.ndarray:
    """The derivative of `gelu`, for an x of any shape.

    With u = sqrt(2/pi) * (x + 0.044715 x^3): (1 + tanh u) / 2 + x/2 * (1 - tanh^2 u) * du/dx.
    """
    square = x * x
    t = np.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * square))
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * square)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du
