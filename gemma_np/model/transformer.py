"""The whole model: embedding, blocks, final norm; then the head and the final cap.

Source: Gemma 2 report, section 2 and table 1.
"""

from collections.abc import Mapping, MutableMapping

import numpy as np
from numpy.typing import ArrayLike

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.batch_cache import BatchCache
from gemma_np.model.block import block, block_backward
from gemma_np.model.embedding import embed, embed_backward, unembed
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.rms_norm import rms_norm, rms_norm_backward
from gemma_np.model.soft_cap import soft_cap, soft_cap_backward
from gemma_np.scope import Scope, Tape, no_tape, prefixed
from gemma_np.weights.formats import Weights
from gemma_np.weights.linear import linear_backward


def transformer(
    ids: ArrayLike,
    weights: Weights,
    config: GemmaConfig,
    cache: KVCache | BatchCache | None = None,
    tape: Tape = no_tape,
) -> np.ndarray:
    """Run the model up to the final norm.

    ids [..., T] -> [..., T, D]; weights by the names of the published checkpoints. With a cache, the ids follow the
    tokens in it and are added to it; without one, they start at position 0.

    Raises GemmaError when there are no ids, when an id is not in the vocabulary, when they exceed the context length or
    the room in the cache, and when the cache was made for another batch or dtype.
    """
    ids = validate_token_ids(ids, config, cache)
    model = Scope(weights) / "model"
    if cache and cache.dtype != model["norm.weight"].dtype:
        raise GemmaError(f"cache: dtype {cache.dtype}, expected {model['norm.weight'].dtype}, that of the weights")
    x = tape("embedding", embed(ids, model["embed_tokens.weight"]))
    for layer in range(config.num_hidden_layers):
        part = f"layers.{layer}"
        layer_cache = cache.layers[layer] if cache else None
        x = block(x, model / part, config, layer, layer_cache, prefixed(tape, part))
    return tape("norm", rms_norm(x, model["norm.weight"], config.rms_norm_eps))


def lm_head(x: np.ndarray, weights: Weights, config: GemmaConfig, tape: Tape = no_tape) -> np.ndarray:
    """Return the logits of the next token, from the output of `transformer` at all positions or only the last.

    x [..., T, D] -> logits [..., T, V]; the softmax of a row is the model's distribution of the next token.
    """
    logits = tape("logits", unembed(x, weights["model.embed_tokens.weight"]))
    if config.final_logit_softcapping:
        logits = tape("logits_capped", soft_cap(logits, config.final_logit_softcapping))
    return logits


def transformer_backward(
    dx: np.ndarray,
    ids: ArrayLike,
    weights: Mapping[str, np.ndarray],
    config: GemmaConfig,
    record: Mapping[str, np.ndarray],
    gradients: MutableMapping[str, np.ndarray],
) -> None:
    """Compute the gradients of `transformer` without a cache, last line first; they have the names of the weights.

    dx [..., T, D], ids [..., T], record of the forward pass. The gradient of the embedding is added to that of the
    head, which is the same matrix.
    """
    tape, model, model_gradients = Scope(record), Scope(weights) / "model", Scope(gradients) / "model"
    inputs = ["embedding", *(f"layers.{layer}.resid_post" for layer in range(config.num_hidden_layers))]
    dx, model_gradients["norm.weight"] = rms_norm_backward(
        dx, record[inputs[-1]], model["norm.weight"], config.rms_norm_eps
    )
    for layer in reversed(range(config.num_hidden_layers)):
        part = f"layers.{layer}"
        dx = block_backward(
            dx, record[inputs[layer]], model / part, config, layer, record=tape / part, gradients=model_gradients / part
        )
    model_gradients["embed_tokens.weight"] += embed_backward(dx, np.asarray(ids), model["embed_tokens.weight"])


def lm_head_backward(
    dlogits: np.ndarray,
    weights: Mapping[str, np.ndarray],
    config: GemmaConfig,
    record: Mapping[str, np.ndarray],
    gradients: MutableMapping[str, np.ndarray],
) -> np.ndarray:
    """Compute the gradients of `lm_head`; `transformer_backward` adds its own to that of the tied matrix.

    dlogits [..., T, V], record of the forward pass -> dx [..., T, D]
    """
    name = "model.embed_tokens.weight"
    if config.final_logit_softcapping:
        dlogits = soft_cap_backward(dlogits, record["logits_capped"], config.final_logit_softcapping)
    dx, gradients[name] = linear_backward(dlogits, record["norm"], weights[name])
    return dx


def validate_token_ids(ids: ArrayLike, config: GemmaConfig, cache: KVCache | BatchCache | None = None) -> np.ndarray:
    """Return the ids as an array [..., T]. Raises GemmaError as `transformer` describes."""
    try:
        ids = np.asarray(ids)
    except ValueError:
        raise GemmaError("token ids: texts of different lengths, expected one array [..., T]") from None
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise GemmaError(f"token ids: dtype {ids.dtype}, expected integers")
    if ids.ndim == 0 or ids.size == 0:
        raise GemmaError(f"token ids: shape {ids.shape}, expected at least one id along an axis T")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
        raise GemmaError(f"token ids: {wrong}, expected 0 to {config.vocab_size - 1} (vocab_size={config.vocab_size})")
    if cache and ids.shape[:-1] != cache.batch:
        raise GemmaError(f"token ids: batch axes {ids.shape[:-1]}, expected the cache's {cache.batch}")
    start = cache.length if cache else 0
    room = cache.max_length if cache else config.max_position_embeddings
    if start + ids.shape[-1] > room:
        raise GemmaError(
            f"token ids: {ids.shape[-1]} after {start} in the cache, expected at most {room} together "
            f"(max_position_embeddings={config.max_position_embeddings})"
        )
    return ids
