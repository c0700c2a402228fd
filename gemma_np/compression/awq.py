"""Activation-aware scaling: channels that carry large inputs get finer steps.

A channel of a matrix is multiplied by s before it is quantized, and its input divided by s. The division costs
nothing: it goes into what computes the input, a norm's weight or the rows of the matrix before.

Source: Lin et al., arXiv 2306.00978 (AWQ).
"""

import numpy as np

from gemma_np.compression.calibration import Moments
from gemma_np.compression.gptq import moment_error
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.config import GemmaConfig
from gemma_np.model.block import pre_feedforward_name
from gemma_np.weights.formats import dequantize

_EXPONENTS = tuple(step / 10 for step in range(11))


def awq_scale(
    layer: dict[str, np.ndarray], moments: Moments, scheme: Scheme, config: GemmaConfig
) -> dict[str, np.ndarray]:
    """A layer's weights that compute the same as before, and suffer less from being quantized."""
    layer = dict(layer)
    attention = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
    gate, up, down, value = "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", attention[2]

    for names, record, norm in (
        (attention, "input_layernorm", "input_layernorm.weight"),
        ((gate, up), "pre_feedforward_layernorm", f"{pre_feedforward_name(config)}.weight"),
    ):
        s = best_factors([layer[name] for name in names], moments[record], scheme)
        layer |= {name: layer[name] * s for name in names}
        layer[norm] = (1 + layer[norm]) / s - 1

    s = best_factors([layer[down]], moments["mlp.hidden"], scheme)
    layer[down], layer[up] = layer[down] * s, layer[up] / s[:, None]

    # A channel of v reaches o_proj once for each query head of its group, so these share a factor.
    share = (config.num_key_value_heads, -1, config.head_dim)
    s = best_factors([layer["self_attn.o_proj.weight"]], moments["self_attn.mixed"], scheme, share)
    layer["self_attn.o_proj.weight"] = layer["self_attn.o_proj.weight"] * s
    layer[value] = layer[value] / s.reshape(share)[:, 0].reshape(-1, 1)
    return layer


def best_factors(
    matrices: list[np.ndarray], moments: np.ndarray, scheme: Scheme, share: tuple[int, int, int] | None = None
) -> np.ndarray:
    """Of the powers 0.0, 0.1, ... 1.0 of each channel's typical input, the one with the least error on real inputs.

    matrices [out, in] of one input with second moments H [in, in] -> factors [in]. share: [in] as [K, G, h], where
    the G factors of each key-value head's channel have to be the same.
    """
    typical = np.sqrt(np.diagonal(moments)) + 1e-6 * np.sqrt(np.diagonal(moments).max()) + 1e-30
    if share:
        typical = np.broadcast_to(
            np.sqrt(np.square(typical.reshape(share)).mean(axis=1, keepdims=True)), typical.reshape(share).shape
        ).ravel()
    least, best = np.inf, np.ones_like(typical)
    for exponent in _EXPONENTS:
        s = typical**exponent
        s /= np.sqrt(s.max() * s.min())
        error = sum(
            float(moment_error(dequantize(quantize(matrix * s, scheme)) / s, matrix, moments).sum())
            for matrix in matrices
        )
        if error < least:
            least, best = error, s
    return best
