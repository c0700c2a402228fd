"""Mistakes in the output head: its matrix, and the cap of the logits."""

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.embedding import unembed
from gemma_np.model.soft_cap import soft_cap
from gemma_np.oracle.mistakes.mistake import mistake


@mistake(
    fix="apply 30 * tanh(logits / 30)",
    right=soft_cap,
    replaces="model.transformer.soft_cap",
    shows="logits_capped",
    models=("gemma2",),
)
def finalcap_missing(x: np.ndarray, cap: float) -> np.ndarray:
    """The logits are not capped; greedy text stays the same, probabilities do not.

    Return the logits as they are: x [...] -> [...].
    """
    return x


@mistake(
    fix="cap logits with final_logit_softcapping, 30",
    right=soft_cap,
    replaces="config.GemmaConfig.final_logit_softcapping",
    shows="logits_capped",
    models=("gemma2",),
)
def finalcap_50(config: GemmaConfig) -> float | None:
    """The logits are capped with the cap of the attention scores.

    Return attn_logit_softcapping.
    """
    return config.attn_logit_softcapping


@mistake(
    fix="logits = x @ embedding.T, with the embedding stored [V, D]",
    right=unembed,
    replaces="model.transformer.unembed",
    shows="logits",
)
def head_transposed(x: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """The head reads the embedding as if it were stored transposed.

    Reshape [V, D] to [D, V]: x [..., T, D], embedding [V, D] -> [..., T, V].
    """
    return x @ embedding.reshape(embedding.shape[::-1])
