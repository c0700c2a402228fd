"""One layer: attention and feed-forward, each between two norms, each added to the residual stream.

Source: Gemma 2 report, section 2 (pre-norm and post-norm with RMSNorm). Gemma 1 has no post-norms.
"""

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.attention import attention, attention_backward
from gemma_np.model.feed_forward import feed_forward, feed_forward_backward
from gemma_np.model.kv_cache import LayerCache
from gemma_np.model.rms_norm import rms_norm, rms_norm_backward
from gemma_np.scope import Scope, Tape, no_tape, prefixed


def block(
    x: np.ndarray,
    weights: Scope,
    config: GemmaConfig,
    layer: int,
    cache: LayerCache | tuple[LayerCache, ...] | None = None,
    tape: Tape = no_tape,
) -> np.ndarray:
    """Compute one layer: return the residual stream after it.

    x [..., T, D] -> [..., T, D]; weights are those of the layer.
    """

    def norm(y: np.ndarray, weight_name: str) -> np.ndarray:
        return rms_norm(y, weights[f"{weight_name}.weight"], config.rms_norm_eps)

    y = tape("input_layernorm", norm(x, "input_layernorm"))
    y = attention(y, weights / "self_attn", config, layer, cache, prefixed(tape, "self_attn"))
    if config.has_post_norms:
        y = tape("post_attention_layernorm", norm(y, "post_attention_layernorm"))
    x = tape("resid_mid", x + y)

    y = tape("pre_feedforward_layernorm", norm(x, pre_feedforward_name(config)))
    y = feed_forward(y, weights / "mlp", prefixed(tape, "mlp"))
    if config.has_post_norms:
        y = tape("post_feedforward_layernorm", norm(y, "post_feedforward_layernorm"))
    return tape("resid_post", x + y)


def block_backward(
    dy: np.ndarray, x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int, *, record: Scope, gradients: Scope
) -> np.ndarray:
    """Compute the gradients of `block`, last line first; those of its weights go into `gradients`.

    dy and x [..., T, D], record of the layer -> dx [..., T, D]
    """

    def norm_backward(dz: np.ndarray, z: np.ndarray, name: str) -> np.ndarray:
        weight = f"{name}.weight"
        dz, gradients[weight] = rms_norm_backward(dz, z, weights[weight], config.rms_norm_eps)
        return dz

    dz = dy  # undoes: x + y; the gradient of the residual stream itself is dy
    if config.has_post_norms:
        dz = norm_backward(dz, record["mlp.down"], "post_feedforward_layernorm")
    dz = feed_forward_backward(
        dz, record["pre_feedforward_layernorm"], weights / "mlp", record / "mlp", gradients / "mlp"
    )
    dmid = dy + norm_backward(dz, record["resid_mid"], pre_feedforward_name(config))

    dz = dmid
    if config.has_post_norms:
        dz = norm_backward(dz, record["self_attn.o"], "post_attention_layernorm")
    dz = attention_backward(
        dz,
        record["input_layernorm"],
        weights / "self_attn",
        config,
        layer,
        record=record / "self_attn",
        gradients=gradients / "self_attn",
    )
    return dmid + norm_backward(dz, x, "input_layernorm")


def pre_feedforward_name(config: GemmaConfig) -> str:
    """Return the weight name of the norm before the feed-forward. Gemma 1, which has no post-norms, calls it
    post_attention_layernorm."""
    return "pre_feedforward_layernorm" if config.has_post_norms else "post_attention_layernorm"
