"""Solutions of tutorial 11."""

from collections.abc import Sequence

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.weights.formats import Weights


def greedy(ids: Sequence[int], count: int, weights: Weights, config: GemmaConfig) -> list[int]:
    cache = KVCache(config, max_length=len(ids) + count)
    unread, new = ids, []
    for _ in range(count):
        x = transformer(unread, weights, config, cache)
        token = int(lm_head(x[-1], weights, config).argmax())
        new.append(token)
        unread = [token]
    return new


def nucleus(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    probs = np.exp((logits - logits.max()) / temperature)
    probs /= probs.sum()
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order]
    kept = np.zeros_like(probs)
    kept[order[before < top_p]] = probs[order[before < top_p]]
    return kept / kept.sum()


def append(ring: np.ndarray, length: int, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slots = len(ring)
    before = np.arange(max(0, length + 1 - slots), length)
    seen = np.concatenate([ring[before % slots], new])
    ring = ring.copy()
    for position, key in enumerate(new, start=length):
        ring[position % slots] = key
    return seen, ring
