"""Mistakes in the feed-forward layer: its activation, and what the activation is applied to."""

import math

import numpy as np

from gemma_np.model import feed_forward as model_feed_forward
from gemma_np.model.feed_forward import feed_forward, gelu
from gemma_np.oracle.mistakes.mistake import mistake
from gemma_np.scope import Scope, Tape
from gemma_np.weights.linear import linear


@mistake(fix="use GELU in its tanh form", right=gelu, replaces="model.feed_forward.gelu", shows="*.hidden")
def gelu_exact(x: np.ndarray) -> np.ndarray:
    """GELU is computed with erf.

    Return x/2 * (1 + erf(x / sqrt(2))): x [...] -> [...].
    """
    return x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2


@mistake(fix="use GELU in its tanh form", right=gelu, replaces="model.feed_forward.gelu", shows="*.hidden")
def silu(x: np.ndarray) -> np.ndarray:
    """The gate is SiLU (SwiGLU).

    Return x * sigmoid(x): x [...] -> [...].
    """
    return x / (1 + np.exp(-x))


@mistake(
    fix="apply GELU to the output of gate_proj: gelu(gate) * up",
    right=feed_forward,
    replaces="model.block.feed_forward",
    shows="*.hidden",
)
def gate_up_swapped(x: np.ndarray, weights: Scope, tape: Tape) -> np.ndarray:
    """GELU is applied to the output of up_proj.

    Return down(gate(x) * gelu(up(x))): x [..., T, D] -> [..., T, D].
    """
    gate = tape("gate", linear(x, weights["gate_proj.weight"]))
    up = tape("up", linear(x, weights["up_proj.weight"]))
    hidden = tape("hidden", gate * model_feed_forward.gelu(up))  # where another mistake may replace it
    return tape("down", linear(hidden, weights["down_proj.weight"]))
