"""What was done instead of what is right: the faulty functions of the catalogue in mistakes.py.

Where one calls another part of the model, it does so through that part's module, so that two mistakes add up.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from gemma_np.config import GLOBAL, LOCAL, GemmaConfig
from gemma_np.model.attention_mask import masked_softmax
from gemma_np.model.rms_norm import rms_norm
from gemma_np.scope import Scope, Tape, prefixed
from gemma_np.weights.linear import linear

Patches = dict[str, Callable[[Any], Any]]
"""What is replaced, by its place below `gemma_np`, and what makes the faulty one of the one that is there."""

_block: Any = importlib.import_module("gemma_np.model.block")
_feed_forward: Any = importlib.import_module("gemma_np.model.feed_forward")


def bfloat16(x: Any) -> np.ndarray:
    """Rounded to bfloat16, in its own dtype: [...] -> [...]."""
    x = np.asarray(x)
    return x.astype(ml_dtypes.bfloat16).astype(x.dtype)


def embed_scale_rounded(embed: Any) -> Any:
    """sqrt(D) is rounded to bfloat16."""

    def faulty(ids: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        scale = math.sqrt(embedding.shape[1])
        return embed(ids, embedding) * (float(bfloat16(scale)) / scale)

    return faulty


def norm_cast_early(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / rms(x) is rounded before it is multiplied: x [..., D], weight [D] -> [..., D]."""
    return bfloat16(rms_norm(x, np.zeros_like(weight), eps)) * (1 + weight)


def rope_interleaved(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Channels 2i and 2i + 1 are a pair: x [..., T, h], cos and sin [T, h/2] -> [..., T, h]."""
    turned = np.empty_like(x)
    turned[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    turned[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
    return turned


def rotation_that_stalls(config: GemmaConfig, lengths: Sequence[int]) -> Patches:
    """Each pass counts from zero again."""

    def make(rope_cos_sin: Any) -> Any:
        def stalled(positions: range, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
            angles = [rope_cos_sin(range(length), *rest) for length in lengths]
            return np.concatenate([cos for cos, _ in angles]), np.concatenate([sin for _, sin in angles])

        return stalled

    return {"model.attention.rope_cos_sin": make}


def per_group_tiled(heads: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Query head i reads key-value head i % K: heads [..., H, T, a], shared [..., K, a, b] -> [..., H, T, b]."""
    tiled = np.arange(heads.shape[-3]) % shared.shape[-3]
    return heads @ shared[..., tiled, :, :]


def softmax_after_capping_the_mask(config: GemmaConfig, lengths: Sequence[int]) -> Patches:
    """A hidden key has a score of -cap."""
    cap = config.attn_logit_softcapping or math.inf

    def faulty(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return masked_softmax(np.where(mask, scores, -cap), np.ones_like(mask))

    return {"model.attention.masked_softmax": lambda softmax: faulty}


def mask_by_row(config: GemmaConfig, lengths: Sequence[int]) -> Patches:
    """A token's row within its pass is taken for its position."""
    rows = np.concatenate([np.arange(length) for length in lengths])
    return {
        "model.attention.attention_mask": lambda attention_mask: (
            lambda queries, keys, window: attention_mask(rows, keys, window)
        )
    }


def mask_by_slot(config: GemmaConfig, lengths: Sequence[int]) -> Patches:
    """In the decoding passes, the slot of a ring is taken for the position of the key in it."""
    one_by_one = np.concatenate([np.full(length, number > 0) for number, length in enumerate(lengths)])

    def make(attention_mask: Any) -> Any:
        def faulty(queries: range, keys: range, window: int | None) -> np.ndarray:
            mask = attention_mask(queries, keys, window)
            if not window:
                return mask
            before_its_slot = np.asarray(keys) % window <= np.asarray(queries)[:, None] % window
            return mask & (before_its_slot | ~one_by_one[:, None])

        return faulty

    return {"model.attention.attention_mask": make}


def block_without_post_norms(
    x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int, cache: Any, tape: Tape
) -> np.ndarray:
    """What attention and feed-forward return is added as it is: x [..., T, D] -> [..., T, D]."""
    y = tape("input_layernorm", _block.rms_norm(x, weights["input_layernorm.weight"], config.rms_norm_eps))
    y = _block.attention(y, weights / "self_attn", config, layer, cache, prefixed(tape, "self_attn"))
    x = tape("resid_mid", x + tape("post_attention_layernorm", y))
    y = _block.rms_norm(x, weights["pre_feedforward_layernorm.weight"], config.rms_norm_eps)
    y = _block.feed_forward(tape("pre_feedforward_layernorm", y), weights / "mlp", prefixed(tape, "mlp"))
    return tape("resid_post", x + tape("post_feedforward_layernorm", y))


def block_with_post_norm_behind_the_sum(
    x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int, cache: Any, tape: Tape
) -> np.ndarray:
    """The post-attention norm is applied to the sum: x [..., T, D] -> [..., T, D]."""
    y = tape("input_layernorm", _block.rms_norm(x, weights["input_layernorm.weight"], config.rms_norm_eps))
    y = _block.attention(y, weights / "self_attn", config, layer, cache, prefixed(tape, "self_attn"))
    x = _block.rms_norm(x + y, weights["post_attention_layernorm.weight"], config.rms_norm_eps)
    x = tape("resid_mid", tape("post_attention_layernorm", x))
    y = _block.rms_norm(x, weights["pre_feedforward_layernorm.weight"], config.rms_norm_eps)
    y = _block.feed_forward(tape("pre_feedforward_layernorm", y), weights / "mlp", prefixed(tape, "mlp"))
    y = _block.rms_norm(y, weights["post_feedforward_layernorm.weight"], config.rms_norm_eps)
    return tape("resid_post", x + tape("post_feedforward_layernorm", y))


def crossed_norms(block: Any) -> Any:
    """Two norms have each other's weights."""

    def faulty(x: np.ndarray, weights: Scope, *rest: Any) -> np.ndarray:
        crossed = dict(weights)
        crossed["post_attention_layernorm.weight"] = weights["pre_feedforward_layernorm.weight"]
        crossed["pre_feedforward_layernorm.weight"] = weights["post_attention_layernorm.weight"]
        return block(x, Scope(crossed), *rest)

    return faulty


def gelu_exact(x: np.ndarray) -> np.ndarray:
    """With erf in place of tanh: x [...] -> [...]."""
    return x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x): x [...] -> [...]."""
    return x / (1 + np.exp(-x))


def feed_forward_with_gelu_on_up(x: np.ndarray, weights: Scope, tape: Tape) -> np.ndarray:
    """The other factor goes through GELU: x [..., T, D] -> [..., T, D]."""
    gate = tape("gate", linear(x, weights["gate_proj.weight"]))
    up = tape("up", linear(x, weights["up_proj.weight"]))
    return tape("down", linear(tape("hidden", gate * _feed_forward.gelu(up)), weights["down_proj.weight"]))


def window_by_parity(config: GemmaConfig, layer: int) -> int | None:
    """Local and global layers are exchanged."""
    return config.sliding_window if config.layer_types[layer] == GLOBAL else None


def rope_scaled_everywhere(config: GemmaConfig, layer: int) -> tuple[float, float]:
    """Local layers divide their positions, too."""
    if config.layer_types[layer] == LOCAL:
        return config.rope_local_base_freq or config.rope_theta, vars(config)["rope_scaling_factor"]
    return config.rope_theta, config.rope_scaling_factor
