"""Mistakes in the rotation of queries and keys: its pairs, angles, bases and positions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from gemma_np.config import LOCAL, GemmaConfig
from gemma_np.model.rope import rope, rope_cos_sin
from gemma_np.oracle.mistakes.mistake import mistake

ROTATED = ("*.q_rope", "*.k_rope")

CosSin = tuple[np.ndarray, np.ndarray]


@mistake(
    fix="compute the angles in float32 or float64, and keep cosine and sine in the computation's dtype",
    right=rope_cos_sin,
    replaces="model.attention.rope_cos_sin",
    shows=ROTATED,
)
def rope_bf16(positions: range, *rest: Any, original: Callable[..., CosSin]) -> CosSin:
    """Cosine and sine are rounded to bfloat16.

    Round cosine and sine: positions [T] -> [T, h/2] each, of angles in radians.
    """
    cos, sin = original(positions, *rest)
    return cos.astype(bfloat16).astype(cos.dtype), sin.astype(bfloat16).astype(sin.dtype)


@mistake(
    fix="pair channel i with channel i + head_dim / 2, or permute the weights to match",
    right=rope,
    replaces="model.attention.rope",
    shows=ROTATED,
)
def rope_interleaved(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Channels 2i and 2i + 1 are rotated as a pair.

    Rotate adjacent channels: x [..., T, h], cos and sin [T, h/2] -> [..., T, h].
    """
    turned = np.empty_like(x)
    turned[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    turned[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
    return turned


@mistake(
    fix="use rope_local_base_freq (10,000) on local layers, rope_theta (1,000,000) on global ones",
    right=GemmaConfig.rope,
    replaces="config.GemmaConfig.rope_local_base_freq",
    shows=ROTATED,
    models=("gemma3_text",),
)
def rope_theta_one(config: GemmaConfig) -> float:
    """Local and global layers share the global base.

    Return the global base for local layers.
    """
    return config.rope_theta


@mistake(
    fix="divide positions on global layers by 8 (4B and larger)",
    right=GemmaConfig.rope,
    replaces="config.GemmaConfig.rope_scaling_factor",
    shows=ROTATED,
    models=("gemma3_text",),
)
def rope_scale_missing(config: GemmaConfig) -> float:
    """The positions of the global layers are not divided by the scaling factor.

    Return a factor of 1.
    """
    return 1.0


@mistake(
    fix="divide positions on global layers only",
    right=GemmaConfig.rope,
    replaces="config.GemmaConfig.rope",
    shows=ROTATED,
    models=("gemma3_text",),
)
def rope_scale_everywhere(config: GemmaConfig, layer: int) -> tuple[float, float]:
    """The positions of local layers are divided by the scaling factor as well.

    Return the base of the layer and the same divisor for all layers.
    """
    if config.layer_types[layer] == LOCAL:
        stored_factor = vars(config)["rope_scaling_factor"]  # even if rope-scale-missing replaces the field
        return config.rope_local_base_freq or config.rope_theta, stored_factor
    return config.rope_theta, config.rope_scaling_factor


@mistake(
    fix="rotate by the position in the whole text: the length of the cache plus the row",
    right=rope_cos_sin,
    replaces="model.attention.rope_cos_sin",
    shows=ROTATED,
)
def decode_positions(positions: range, *rest: Any, original: Callable[..., CosSin], lengths: Sequence[int]) -> CosSin:
    """In decoding, positions start at zero again.

    Start each pass at position 0: positions [T] -> [T, h/2] each, of angles in radians.
    """
    passes = [original(range(length), *rest) for length in lengths]
    return np.concatenate([cos for cos, _ in passes]), np.concatenate([sin for _, sin in passes])
