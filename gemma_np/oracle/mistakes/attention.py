"""Mistakes in attention: the norm of queries and keys, the query scale, the soft cap, the groups of heads."""

import math
from collections.abc import Sequence

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.attention import attend, attention
from gemma_np.model.attention_mask import masked_softmax
from gemma_np.model.soft_cap import soft_cap
from gemma_np.oracle.mistakes.mistake import mistake


@mistake(
    fix="apply q_norm and k_norm, head by head, before the rotation",
    right=attention,
    replaces="model.attention.rms_norm",
    shows=("*.q_norm", "*.k_norm"),
    models=("gemma3_text",),
)
def qk_norm_missing(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Queries and keys are not normalized.

    Return queries or keys as they are: x [..., h], weight [h] -> [..., h].
    """
    return x


@mistake(
    fix="divide scores by sqrt(query_pre_attn_scalar)",
    right=attend,
    replaces="config.GemmaConfig.query_pre_attn_scalar",
    shows="*.scores",
)
def qscale_hidden_over_heads(config: GemmaConfig) -> float:
    """Scores are divided by sqrt(hidden_size / num_attention_heads).

    Return D / H.
    """
    return config.hidden_size / config.num_attention_heads


@mistake(
    fix="divide scores by sqrt(query_pre_attn_scalar), which is sqrt(144) in the 27B",
    right=attend,
    replaces="config.GemmaConfig.query_pre_attn_scalar",
    shows="*.scores",
)
def qscale_head_dim(config: GemmaConfig) -> float:
    """Scores are divided by sqrt(head_dim).

    Return h.
    """
    return config.head_dim


@mistake(
    fix="apply 50 * tanh(scores / 50) before the mask",
    right=attend,
    replaces="model.attention.soft_cap",
    shows=("*.scores_capped", "*.probs"),
    models=("gemma2",),
)
def attncap_missing(x: np.ndarray, cap: float) -> np.ndarray:
    """Scores are not capped (fused attention kernels omit the cap).

    Return the scores as they are: x [...] -> [...].
    """
    return x


@mistake(
    fix="cap first, then mask",
    right=attend,
    replaces="model.attention.masked_softmax",
    shows="*.probs",
    models=("gemma2",),
)
def attncap_after_mask(
    scores: np.ndarray, mask: np.ndarray, *, config: GemmaConfig, lengths: Sequence[int]
) -> np.ndarray:
    """Scores are capped after the mask, which turns the -inf of masked keys into -50.

    Give masked keys that are in the cache a score of -cap: scores [..., T, S], mask [T, S] -> probabilities
    [..., T, S].
    """
    cap = config.attn_logit_softcapping or math.inf
    in_cache = np.ones_like(mask)
    if sum(lengths) == len(mask):  # all passes are read in one
        in_cache &= np.arange(len(mask)) < np.repeat(np.cumsum(lengths), lengths)[:, None]
    return masked_softmax(np.where(mask, scores, -cap), in_cache)


@mistake(
    fix="compute cap * tanh(x / cap)",
    right=soft_cap,
    replaces=("model.attention.soft_cap", "model.transformer.soft_cap"),
    shows=("*.scores_capped", "logits_capped"),
    models=("gemma2",),
)
def cap_formula(x: np.ndarray, cap: float) -> np.ndarray:
    """The cap is computed as x * tanh(x / cap).

    Multiply by x in place of the cap: x [...] -> [...].
    """
    return x * np.tanh(x / cap)


@mistake(
    fix="repeat key-value heads: query head i reads key-value head i // G",
    right=attend,
    replaces="model.attention.grouped_matmul",
    shows=("*.scores", "*.context"),
)
def gqa_tile(heads: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Key-value heads are tiled: query head i reads key-value head i % K.

    Multiply query head i by key-value head i % K: heads [..., H, T, a], shared [..., K, a, b] -> [..., H, T, b].
    """
    tiled = np.arange(heads.shape[-3]) % shared.shape[-3]
    return heads @ shared[..., tiled, :, :]
