"""One layer: attention and feed-forward, each between two norms, each added to the residual stream.

Source: Gemma 2 report, section 2 (pre-norm and post-norm with RMSNorm). Gemma 1 has no post-norms.
"""

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.attention import attention
from gemma_np.model.feed_forward import feed_forward
from gemma_np.model.kv_cache import LayerCache
from gemma_np.model.rms_norm import rms_norm
from gemma_np.scope import Scope, Tape, no_tape, within


def block(
    x: np.ndarray,
    weights: Scope,
    config: GemmaConfig,
    layer: int,
    cache: LayerCache | None = None,
    tape: Tape = no_tape,
) -> np.ndarray:
    """The residual stream after one layer.

    x [..., T, D] -> [..., T, D]; weights are those of the layer.
    """

    def norm(name: str, y: np.ndarray, weight_name: str | None = None) -> np.ndarray:
        weight = weights[f"{weight_name or name}.weight"]
        return tape(name, rms_norm(y, weight, config.rms_norm_eps))

    # In Gemma 1 the norm before the feed-forward is the one *after* attention, and that is its name there.
    pre_feedforward = "pre_feedforward_layernorm" if config.has_post_norms else "post_attention_layernorm"

    y = norm("input_layernorm", x)
    y = attention(y, weights / "self_attn", config, layer, cache, within(tape, "self_attn"))
    if config.has_post_norms:
        y = norm("post_attention_layernorm", y)
    x = tape("resid_mid", x + y)

    y = norm("pre_feedforward_layernorm", x, pre_feedforward)
    y = feed_forward(y, weights / "mlp", within(tape, "mlp"))
    if config.has_post_norms:
        y = norm("post_feedforward_layernorm", y)
    return tape("resid_post", x + y)
