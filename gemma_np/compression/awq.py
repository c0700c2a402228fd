"""AWQ, activation-aware weight quantization: channels with large inputs are rounded more finely.

Each channel of a matrix is multiplied by a scale s before it is quantized, and its input is divided by s. The division
is free: it is folded into the weights that compute the input, a norm or the rows of the matrix before.

Source: Lin et al., arXiv 2306.00978 (AWQ).
"""

import numpy as np

from gemma_np.compression.calibration import InputGram
from gemma_np.compression.gptq import output_error
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.config import GemmaConfig
from gemma_np.model.block import pre_feedforward_name
from gemma_np.weights.formats import dequantize

_EXPONENTS = tuple(step / 10 for step in range(11))


def awq_scale(
    layer: dict[str, np.ndarray], gram: InputGram, scheme: Scheme, config: GemmaConfig
) -> dict[str, np.ndarray]:
    """Scale a layer's weights without changing its output, so that quantizing them causes a smaller error."""
    layer = dict(layer)
    attention = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
    gate, up, down, value = "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", attention[2]

    for names, record, norm in (
        (attention, "input_layernorm", "input_layernorm.weight"),
        ((gate, up), "pre_feedforward_layernorm", f"{pre_feedforward_name(config)}.weight"),
    ):
        s = best_scales([layer[name] for name in names], gram[record], scheme)
        layer |= {name: layer[name] * s for name in names}
        layer[norm] = (1 + layer[norm]) / s - 1

    s = best_scales([layer[down]], gram["mlp.hidden"], scheme)
    layer[down], layer[up] = layer[down] * s, layer[up] / s[:, None]

    # Each channel of v is an input of o_proj once for every query head of its group; these share a scale.
    share = (config.num_key_value_heads, -1, config.head_dim)
    s = best_scales([layer["self_attn.o_proj.weight"]], gram["self_attn.context"], scheme, share)
    layer["self_attn.o_proj.weight"] = layer["self_attn.o_proj.weight"] * s
    layer[value] = layer[value] / s.reshape(share)[:, 0].reshape(-1, 1)
    return layer


def best_scales(
    matrices: list[np.ndarray], gram: np.ndarray, scheme: Scheme, share: tuple[int, int, int] | None = None
) -> np.ndarray:
    """Return the scale of each channel: its RMS input to the power of 0.0, 0.1, ... or 1.0, whichever gives the least
    output error.

    matrices [out, in] that share an input with Gram matrix gram [in, in] -> scales [in]. share: (K, G, h), when the G
    query heads of a key-value head must have the same scales.
    """
    typical = np.sqrt(np.diagonal(gram)) + 1e-6 * np.sqrt(np.diagonal(gram).max()) + 1e-30
    if share:
        typical = np.broadcast_to(
            np.sqrt(np.square(typical.reshape(share)).mean(axis=1, keepdims=True)), typical.reshape(share).shape
        ).ravel()
    least, best = np.inf, np.ones_like(typical)
    for exponent in _EXPONENTS:
        s = typical**exponent
        s /= np.sqrt(s.max() * s.min())
        error = sum(
            float(output_error(dequantize(quantize(matrix * s, scheme)) / s, matrix, gram).sum()) for matrix in matrices
        )
        if error < least:
            least, best = error, s
    return best
