"""The catalogue of mistakes that people have made when implementing Gemma: one function for each, one file for each
part of the model.

To add one, write a function that makes the mistake, in the file of its part, decorate it, and add it to `CATALOGUE`:

    @mistake(fix="use GELU in its tanh form", right=gelu, replaces="model.feed_forward.gelu", shows="*.hidden")
    def silu(x: np.ndarray) -> np.ndarray:
        '''The gate is SiLU (SwiGLU).'''
        return x / (1 + np.exp(-x))

`mistake` documents the arguments, and how the function can use the original function, the config, or the lengths of the
passes. A function that calls another part of the model looks it up in the module in which it would be replaced, so that
two mistakes can be combined.
"""

from gemma_np.oracle.mistakes import attention, attention_mask, block, embedding, feed_forward, head, norms, rope
from gemma_np.oracle.mistakes.mistake import Mistake, inject_mistakes, mistake

__all__ = ["CATALOGUE", "Mistake", "inject_mistakes", "mistake"]

CATALOGUE = (
    embedding.embed_scale_absent,
    embedding.embed_scale_twice,
    embedding.embed_scale_rounding,
    norms.norm_no_plus1,
    norms.norm_plus1_twice,
    norms.norm_cast_early,
    rope.rope_bf16,
    rope.rope_interleaved,
    rope.rope_theta_one,
    rope.rope_scale_missing,
    rope.rope_scale_everywhere,
    attention.qk_norm_missing,
    attention.qscale_hidden_over_heads,
    attention.qscale_head_dim,
    attention.attncap_missing,
    attention.attncap_after_mask,
    attention.cap_formula,
    attention_mask.window_parity,
    attention_mask.window_off_by_one,
    attention_mask.window_ignored,
    attention_mask.window_all_layers,
    attention.gqa_tile,
    attention_mask.decode_mask_index,
    attention_mask.ring_positions,
    rope.decode_positions,
    block.postnorm_missing,
    block.postnorm_misplaced,
    block.norm_names_crossed,
    feed_forward.gelu_exact,
    feed_forward.silu,
    feed_forward.gate_up_swapped,
    head.finalcap_missing,
    head.finalcap_50,
    head.head_transposed,
)
"""In the order of the forward pass. An untied head is missing: its weights are unknown, so it cannot be tried, and the
isolated error of `logits` points to it."""
