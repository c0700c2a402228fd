"""GeGLU: a feed-forward layer whose hidden channels are each opened or shut by a gate.

Source: Shazeer, arXiv 2002.05202; Gemma 2 report, section 2. GELU in its tanh form: Hendrycks and Gimpel,
arXiv 1606.08415, section 2.
"""

import math

import numpy as np

from gemma_np.scope import Scope, Tape, no_tape
from gemma_np.storage import linear


def feed_forward(x: np.ndarray, weights: Scope, tape: Tape = no_tape) -> np.ndarray:
    """down(gelu(gate(x)) * up(x)); weights are those of the layer's `mlp`.

    x [..., T, D] -> [..., T, D]
    """
    gate = tape("gate", linear(x, weights["gate_proj.weight"]))  # [..., T, F]
    up = tape("up", linear(x, weights["up_proj.weight"]))  # [..., T, F]
    hidden = tape("hidden", gelu(gate) * up)  # [..., T, F]
    return tape("down", linear(hidden, weights["down_proj.weight"]))


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
