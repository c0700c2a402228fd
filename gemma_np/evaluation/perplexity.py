"""Perplexity: how many tokens the model hesitates between, on average, at each step of a text."""

import numpy as np
from numpy.typing import ArrayLike

from gemma_np.config import GemmaConfig
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import output_logits, transformer
from gemma_np.storage import Weights

_CHUNK = 256  # logits of V numbers a token: 262 MB a chunk at V = 256,000


def negative_log_likelihood(ids: ArrayLike, weights: Weights, config: GemmaConfig) -> np.ndarray:
    """-log p of each token but the first, given all before it.

    ids [T], T at most the model's maximum -> [T - 1], in nats, float64. The perplexity is the exponential of its mean.
    """
    from tqdm import tqdm

    ids = np.asarray(ids)
    cache = KVCache(config, len(ids), dtype=weights["model.norm.weight"].dtype)
    parts = []
    with tqdm(total=len(ids) - 1, desc="perplexity", unit=" tokens", delay=2, leave=False) as progress:
        for start in range(0, len(ids) - 1, _CHUNK):
            stop = min(start + _CHUNK, len(ids) - 1)
            logits = output_logits(transformer(ids[start:stop], weights, config, cache), weights, config)
            parts.append(_cross_entropy(logits, ids[start + 1 : stop + 1]))
            progress.update(stop - start)
    return np.concatenate(parts)


def _cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """log(sum(exp(logits))) - logits[target], row by row: [T, V], [T] -> [T] in float64."""
    largest = logits.max(axis=-1)
    total = np.exp(logits - largest[:, None]).sum(axis=-1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets]
    return np.log(total) + largest.astype(np.float64) - chosen
