"""The whole model: embed, blocks, final norm; then head and final cap."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.block import block
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.soft_cap import soft_cap
from gemma_np.scope import Scope, Tape, no_tape, within


def transformer(
    ids: ArrayLike,
    weights: Mapping[str, np.ndarray],
    config: GemmaConfig,
    cache: KVCache | None = None,
    tape: Tape = no_tape,
) -> np.ndarray:
    """What the model makes of each token, up to the final norm.

    ids [..., T] -> [..., T, D]; weights by the names of the published checkpoints. With a cache, the ids follow the
    tokens that it holds, and are added to it; without, they start at position 0.

    Raises GemmaError when there are no ids, when one is no row of the embedding, or when they run past the model's
    (or the cache's) maximum length.
    """
    ids = checked_ids(ids, config, cache)
    model = Scope(weights) / "model"
    x = tape("embedding", embed(ids, model["embed_tokens.weight"]))
    for layer in range(config.num_hidden_layers):
        part = f"layers.{layer}"
        layer_cache = cache.layers[layer] if cache else None
        x = block(x, model / part, config, layer, layer_cache, within(tape, part))
    return tape("norm", rms_norm(x, model["norm.weight"], config.rms_norm_eps))


def output_logits(
    x: np.ndarray, weights: Mapping[str, np.ndarray], config: GemmaConfig, tape: Tape = no_tape
) -> np.ndarray:
    """The score of every token to come next, from what `transformer` returned (all positions, or only the last).

    x [..., T, D] -> logits [..., T, V]; softmax of a row is the model's distribution of the next token.
    """
    logits = tape("logits", unembed(x, weights["model.embed_tokens.weight"]))
    if config.final_logit_softcapping:
        logits = tape("logits_capped", soft_cap(logits, config.final_logit_softcapping))
    return logits


def checked_ids(ids: ArrayLike, config: GemmaConfig, cache: KVCache | None = None) -> np.ndarray:
    """The ids as an array, or the GemmaError that `transformer` promises."""
    ids = np.asarray(ids)
    if ids.size == 0:
        raise GemmaError("token ids: none, expected at least one")
    if not np.issubdtype(ids.dtype, np.integer):
        raise GemmaError(f"token ids: dtype {ids.dtype}, expected integers")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
        raise GemmaError(f"token ids: {wrong}, expected 0 to {config.vocab_size - 1} (vocab_size={config.vocab_size})")
    seen = cache.length if cache else 0
    room = cache.max_length if cache else config.max_position_embeddings
    if seen + ids.shape[-1] > room:
        raise GemmaError(
            f"token ids: {ids.shape[-1]} after {seen} in the cache, expected at most {room} together "
            f"(max_position_embeddings={config.max_position_embeddings})"
        )
    return ids
