"""The exercises on the differences between Gemma 1, 2 and 3."""

import math
from dataclasses import replace

import numpy as np

from gemma_np.config import LOCAL, RELEASED, GemmaConfig, layer_pattern
from gemma_np.memory import cache_bytes
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.rope import rope, rope_cos_sin
from gemma_np.model.soft_cap import soft_cap
from support.exercise import Cases, Exercise, known


def _pattern_cases(generator: np.random.Generator) -> Cases:
    return {
        "Gemma 2, four layers": (4, 1),
        "an odd number of layers": (5, 1),
        "Gemma 1, all global": (4, 0),
        "Gemma 3": (int(generator.integers(13, 30)), 5),
    }


def _local_layers(layers: int, local_per_global: int) -> list[bool]:
    return [kind == LOCAL for kind in layer_pattern(layers, local_per_global)]


LOCAL_LAYERS = Exercise(
    reference=_local_layers,
    cases=_pattern_cases,
    mistakes={
        known("window-parity"): lambda layers, local_per_global: [
            not local for local in _local_layers(layers, local_per_global)
        ],
        "the pattern begins with the global layer; the local ones come first": lambda layers, local_per_global: [
            layer % (local_per_global + 1) != 0 for layer in range(layers)
        ],
        "every local_per_global-th layer is global; every (local_per_global + 1)-th is": (
            lambda layers, local_per_global: [(layer + 1) % max(1, local_per_global) != 0 for layer in range(layers)]
        ),
    },
)


def _cache_cases(generator: np.random.Generator) -> Cases:
    return {
        "Gemma 1": (RELEASED["gemma-2b"], 1000),
        "Gemma 2, a text shorter than the window": (RELEASED["gemma-2-2b"], 1000),
        "Gemma 2, a longer one": (RELEASED["gemma-2-2b"], int(generator.integers(5000, 8000))),
        "Gemma 3": (RELEASED["gemma-3-4b"], int(generator.integers(5000, 100_000))),
    }


CACHE_BYTES = Exercise(
    reference=cache_bytes,
    cases=_cache_cases,
    mistakes={
        "only half is counted; both keys and values are kept, in float32": lambda config, length: (
            cache_bytes(config, length) // 2
        ),
        "the query heads are counted; only the key-value heads are kept": lambda config, length: (
            cache_bytes(config, length) // config.num_key_value_heads * config.num_attention_heads
        ),
        "every layer keeps the whole text; a local one keeps at most its window": lambda config, length: (
            config.num_hidden_layers
            * cache_bytes(replace(config, num_hidden_layers=1, layer_types=("full_attention",)), length)
        ),
        "every layer keeps at most the window; a global one keeps the whole text": lambda config, length: cache_bytes(
            config, min(length, config.sliding_window or length)
        ),
        "a local layer always counts its whole window; it keeps no more than the text": lambda config, length: sum(
            cache_bytes(replace(config, num_hidden_layers=1, layer_types=(kind,)), _whole_window(config, kind, length))
            for kind in config.layer_types
        ),
        "numbers are counted; a float32 has 4 bytes": lambda config, length: cache_bytes(config, length) // 4,
    },
)


def _whole_window(config: GemmaConfig, kind: str, length: int) -> int:
    return (config.sliding_window or length) if kind == LOCAL else length


def _parameter_cases(generator: np.random.Generator) -> Cases:
    names = {
        "Gemma 2 2B": "gemma-2-2b",
        "Gemma 2 27B": "gemma-2-27b",
        "Gemma 1 2B": "gemma-2b",
        "Gemma 3 1B": "gemma-3-1b",
    }
    return {case: (RELEASED[name],) for case, name in names.items()}


def _parameters(config: GemmaConfig) -> tuple[int, int]:
    counts = config.parameter_count()
    return counts["embedding"], sum(counts.values()) - counts["embedding"]


def _with_more(config: GemmaConfig, embedding: int, rest: int) -> tuple[int, int]:
    right = _parameters(config)
    return right[0] + embedding, right[1] + rest


PARAMETERS = Exercise(
    reference=_parameters,
    cases=_parameter_cases,
    mistakes={
        "the head is counted as a separate matrix; it is the embedding": lambda config: _with_more(
            config, config.vocab_size * config.hidden_size, 0
        ),
        "the feed-forward is counted with two matrices; gate, up and down are three": lambda config: _with_more(
            config, 0, -config.num_hidden_layers * config.intermediate_size * config.hidden_size
        ),
        "keys and values are counted with H heads; they have K": lambda config: _parameters(
            replace(config, num_key_value_heads=config.num_attention_heads)
        ),
        "head_dim is assumed to be D / H; it is a separate field": lambda config: _parameters(
            replace(config, head_dim=config.hidden_size // config.num_attention_heads)
        ),
        "the norm after the last layer is left out": lambda config: _with_more(config, 0, -config.hidden_size),
        "Gemma 1 has two norms per layer, not four": lambda config: _with_more(
            config, 0, 0 if config.has_post_norms else 2 * config.num_hidden_layers * config.hidden_size
        ),
        "the norms of queries and keys are left out, one vector [h] each in every layer of Gemma 3": lambda config: (
            _with_more(config, 0, -2 * config.num_hidden_layers * config.head_dim if config.has_qk_norm else 0)
        ),
    },
)


EPS = 1e-6


def _score_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal

    def case(*shape: int, start: int, scale: float, query_scalar: float) -> tuple[np.ndarray | float, ...]:
        length, head_dim = shape[-2:]
        cos, sin = rope_cos_sin(range(start, start + length), head_dim, 100.0, 1.0, np.float64)
        weights = (scale * draw(head_dim), scale * draw(head_dim))
        return 3 * draw(shape), 3 * draw(shape), *weights, cos, sin, query_scalar

    return {
        "one token, weights of zero": case(1, 8, start=0, scale=0.0, query_scalar=8.0),
        "several tokens, weights of zero": case(4, 8, start=3, scale=0.0, query_scalar=8.0),
        "weights that are not zero": case(4, 8, start=3, scale=1.0, query_scalar=8.0),
        "a query scalar that is not the head dimension": case(4, 8, start=3, scale=1.0, query_scalar=6.0),
        "several heads": case(2, 4, 8, start=3, scale=1.0, query_scalar=6.0),
    }


def _normed_scores(
    q: np.ndarray,
    k: np.ndarray,
    q_weight: np.ndarray,
    k_weight: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    query_scalar: float,
    *,
    norm_q: bool = True,
    norm_k: bool = True,
) -> np.ndarray:
    q = rms_norm(q, q_weight, EPS) if norm_q else q
    k = rms_norm(k, k_weight, EPS) if norm_k else k
    return _scores(rope(q, cos, sin), rope(k, cos, sin), query_scalar)


def _scores(q: np.ndarray, k: np.ndarray, query_scalar: float) -> np.ndarray:
    scores: np.ndarray = q @ k.swapaxes(-1, -2) / math.sqrt(query_scalar)
    return scores


def _normed_after(
    q: np.ndarray,
    k: np.ndarray,
    q_weight: np.ndarray,
    k_weight: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    query_scalar: float,
) -> np.ndarray:
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    return _scores(rms_norm(q, q_weight, EPS), rms_norm(k, k_weight, EPS), query_scalar)


QK_NORM = Exercise(
    reference=_normed_scores,
    cases=_score_cases,
    mistakes={
        "the norms come after RoPE; normalize q and k first, then rotate them": _normed_after,
        "neither is normalized; normalize q and k before RoPE": lambda *arguments: _normed_scores(
            *arguments, norm_q=False, norm_k=False
        ),
        "only the queries are normalized; normalize the keys as well": lambda *arguments: _normed_scores(
            *arguments, norm_k=False
        ),
        "only the keys are normalized; normalize the queries as well": lambda *arguments: _normed_scores(
            *arguments, norm_q=False
        ),
        "the weights are swapped; q has its own, and so has k": lambda q, k, q_weight, k_weight, *rest: _normed_scores(
            q, k, k_weight, q_weight, *rest
        ),
        known("norm-no-plus1"): lambda q, k, q_weight, k_weight, *rest: _normed_scores(
            q, k, q_weight - 1, k_weight - 1, *rest
        ),
        "the weights are not used; rms_norm takes q_weight for queries, k_weight for keys": (
            lambda q, k, q_weight, k_weight, *rest: _normed_scores(q, k, 0 * q_weight, 0 * k_weight, *rest)
        ),
        "q and k are scaled to length 1; RMSNorm scales them to length sqrt(h)": lambda q, *rest: (
            _normed_scores(q, *rest) / q.shape[-1]
        ),
        "the scores are not divided; divide them by sqrt(query_scalar)": lambda *arguments: _normed_scores(
            *arguments[:-1], 1.0
        ),
        "the scores are divided by sqrt(h); divide them by sqrt(query_scalar)": lambda q, *rest: _normed_scores(
            q, *rest[:-1], q.shape[-1]
        ),
        "q and k are not rotated; rotate both after the norms": lambda q, k, q_weight, k_weight, cos, sin, s: (
            _normed_scores(q, k, q_weight, k_weight, np.ones_like(cos), np.zeros_like(sin), s)
        ),
        "the scores are capped, as in Gemma 2; the norms replace the cap": lambda *arguments: soft_cap(
            _normed_scores(*arguments), 50.0
        ),
    },
)
