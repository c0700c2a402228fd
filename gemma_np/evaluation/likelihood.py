"""Log-likelihoods of continuations; a prefix that several contexts share is read once.

Source: lm-evaluation-harness, whose definition is the sum of log P of the continuation's tokens, each given the context
and the tokens before it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.log_probs import negative_log_likelihood
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.mpi import Ranks
from gemma_np.progress import progress_bar
from gemma_np.text.generation import prefill
from gemma_np.weights.formats import Weights

_ROWS = 256  # rows of V logits: 262 MB at V = 256,000

Ids = tuple[int, ...]


class Pair(NamedTuple):
    """A context and the continuation to score."""

    context: Ids
    continuation: Ids


class Likelihood(NamedTuple):
    """The score of one continuation."""

    log_prob: float  # nats
    is_greedy: bool  # whether greedy decoding would generate it


def likelihoods(
    pairs: Sequence[Pair], weights: Weights, config: GemmaConfig, ranks: Ranks | None = None
) -> list[Likelihood]:
    """Score each continuation after its context; the results are in the order of the pairs.

    A prefix that contexts share is read once, and the continuations of one context are read as a batch. The ranks share
    the contexts, and every rank returns all results.
    Raises GemmaError for an empty context or continuation, and when both together exceed the model's context length.
    """
    for pair in pairs:
        if not pair.context or not pair.continuation:
            raise GemmaError("empty context or continuation, expected at least one token of each")
        length, limit = len(pair.context) + len(pair.continuation) - 1, config.max_position_embeddings
        if length > limit:
            raise GemmaError(
                f"context and continuation: {length} tokens, expected at most {limit} (max_position_embeddings)"
            )
    by_context: dict[Ids, list[Ids]] = {}
    for context, continuation in dict.fromkeys(pairs):
        by_context.setdefault(context, []).append(continuation)
    ranks = ranks or Ranks()
    contexts = ranks.share(sorted(by_context))
    longest = max((len(pair.context) + len(pair.continuation) for pair in pairs), default=1)
    room = min(longest, config.max_position_embeddings)
    results: dict[Pair, Likelihood] = {}
    with progress_bar(total=len(contexts), desc="scoring", unit="texts") as progress:
        for context, (x, cache) in zip(contexts, read_sharing(contexts, room, weights, config), strict=True):
            continuations = by_context[context]
            for continuation, score in zip(
                continuations, _continue(x, cache, continuations, weights, config), strict=True
            ):
                results[Pair(context, continuation)] = score
            progress.update()
    everything = {pair: score for part in ranks.all_gather(results) for pair, score in part.items()}
    return [everything[pair] for pair in pairs]


def read_sharing(
    contexts: Sequence[Ids], room: int, weights: Weights, config: GemmaConfig
) -> Iterator[tuple[np.ndarray, KVCache]]:
    """Read sorted, distinct contexts; for each, yield the model's output at its last token, [D], and its cache.

    The cache has room for `room` tokens. Where the next context shares a prefix, a copy of the cache is kept at the
    position where the two diverge.
    """
    empty = KVCache(config, room, dtype=weights["model.norm.weight"].dtype)
    kept = [(0, empty)]  # (n, a cache that holds the first n tokens of this context), the longest last
    for number, context in enumerate(contexts):
        shared = _common(contexts[number - 1], context) if number else 0
        while kept[-1][0] > shared:
            kept.pop()
        start, cache = kept[-1][0], kept[-1][1].repeated()
        split = _common(context, contexts[number + 1]) if number + 1 < len(contexts) else 0
        if start < split < len(context):
            prefill(context[start:split], weights, config, cache)
            kept.append((split, cache.repeated()))
            start = split
        x = prefill(context[start:], weights, config, cache)
        if split == len(context):
            kept.append((split, cache.repeated()))
        yield x, cache


def _continue(
    x: np.ndarray, cache: KVCache, continuations: Sequence[Ids], weights: Weights, config: GemmaConfig
) -> list[Likelihood]:
    """Score continuations of one context as one batch, from its last output x [D] and its cache.

    They are padded at the end, where no scored token sees the padding."""
    count, longest = len(continuations), max(map(len, continuations))
    rows = np.broadcast_to(x, (count, 1, len(x)))
    if longest > 1:
        ids = np.zeros((count, longest - 1), int)
        for row, continuation in zip(ids, continuations, strict=True):
            row[: len(continuation) - 1] = continuation[:-1]
        rows = np.concatenate([rows, transformer(ids, weights, config, cache.repeated(count))], axis=1)
    before = np.concatenate(
        [row[: len(c)] for row, c in zip(rows, continuations, strict=True)]
    )  # of each token, [N, D]
    log_probs, are_greedy = _log_probs(before, np.concatenate(continuations), weights, config)
    ends = np.cumsum([len(continuation) for continuation in continuations])[:-1]
    parts = zip(np.split(log_probs, ends), np.split(are_greedy, ends), strict=True)
    return [Likelihood(float(log_prob.sum()), bool(greedy.all())) for log_prob, greedy in parts]


def _log_probs(
    x: np.ndarray, targets: np.ndarray, weights: Weights, config: GemmaConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return log P of each target, and whether it is the most likely token.

    x [N, D], targets [N] -> float64 [N], bool [N]
    """
    log_probs, are_greedy = np.empty(len(x)), np.empty(len(x), bool)
    for start in range(0, len(x), _ROWS):
        part = slice(start, start + _ROWS)
        logits = lm_head(x[part], weights, config)
        log_probs[part] = -negative_log_likelihood(logits, targets[part])
        are_greedy[part] = logits.argmax(axis=-1) == targets[part]
    return log_probs, are_greedy


def _common(one: Ids, other: Ids) -> int:
    """Return the length of the common prefix of two texts."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
