"""One token after another: read the prompt, choose a token, read it, choose the next."""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.weights.formats import Weights

PREFILL_CHUNK = 512
"""Tokens read at once. The scores of a chunk take H * PREFILL_CHUNK * S numbers, those of a whole long prompt H * S^2;
reading more at once is hardly faster."""


def generate_ids(
    prompt: Sequence[int],
    weights: Weights,
    config: GemmaConfig,
    choose: Callable[[np.ndarray], int],
    max_new_tokens: int,
    stop: Collection[int] = (),
    int8_cache: bool = False,
) -> Iterator[int]:
    """The ids that follow the prompt, until `max_new_tokens` of them or one in `stop`, which is not returned.

    choose: logits [V] -> id. int8_cache: keep keys and values in 8 bits.

    Raises GemmaError when prompt and new tokens together are longer than the model can read, or when the logits are
    not finite.
    """
    if max_new_tokens < 1:
        raise GemmaError(f"max_new_tokens: {max_new_tokens}, expected 1 or more")
    length, limit = len(prompt) + max_new_tokens, config.max_position_embeddings
    if length > limit:
        raise GemmaError(
            f"prompt of {len(prompt)} tokens and {max_new_tokens} new ones: {length}, expected at most {limit} "
            f"(max_position_embeddings)"
        )
    cache = KVCache(config, length, dtype=weights["model.norm.weight"].dtype, int8=int8_cache)
    unread = prompt
    for _ in range(max_new_tokens):
        logits = lm_head(prefill(unread, weights, config, cache), weights, config)
        if not np.isfinite(logits.max()):
            raise GemmaError(f"logits: {logits.max()} after {cache.length} tokens, expected finite numbers")
        token = choose(logits)
        if token in stop:
            return
        yield token
        unread = [token]


def prefill(ids: Sequence[int], weights: Weights, config: GemmaConfig, cache: KVCache) -> np.ndarray:
    """Read ids into the cache, a chunk at a time, and return what the model makes of the last of them: [D]."""
    from tqdm import tqdm

    with tqdm(total=len(ids), desc="reading", unit=" tokens", delay=2, leave=False) as progress:
        for start in range(0, max(len(ids), 1), PREFILL_CHUNK):
            x = transformer(ids[start : start + PREFILL_CHUNK], weights, config, cache)
            progress.update(x.shape[0])
    return x[-1]
