"""The exercises on what a token costs."""

import math
from dataclasses import replace

import numpy as np

from gemma_np.config import GLOBAL, RELEASED, GemmaConfig
from gemma_np.gemma import BUNDLED, resolve_config
from gemma_np.memory import cache_bytes
from support.exercise import Cases, Exercise

_Shape = tuple[int, int]


def _flops(T: float, shape: _Shape) -> float:
    return 2 * T * math.prod(shape)


def _bytes(T: float, shape: _Shape, bytes_per_weight: float) -> float:
    return bytes_per_weight * math.prod(shape) + 4 * T * sum(shape)


def _least_seconds(T: int, shape: _Shape, bytes_per_weight: float, peak: float, bandwidth: float) -> float:
    return max(_flops(T, shape) / peak, _bytes(T, shape, bytes_per_weight) / bandwidth)


def _least_seconds_cases(generator: np.random.Generator) -> Cases:
    peak, bandwidth = 1e9 * generator.uniform(40, 60), 1e9 * generator.uniform(5, 10)
    return {
        "one vector, float32": (1, (9216, 2304), 4, peak, bandwidth),
        "one vector, a format of half a byte": (1, (9216, 2304), 0.5, peak, bandwidth),
        "a prompt of 512 tokens": (512, (9216, 2304), 4, peak, bandwidth),
        "a thousand vectors and a small weight": (1000, (16, 8), 4, peak, bandwidth),
    }


LEAST_SECONDS = Exercise(
    reference=_least_seconds,
    cases=_least_seconds_cases,
    mistakes={
        "this is the time of the arithmetic alone; take the larger one of arithmetic and memory": (
            lambda T, shape, bytes_per_weight, peak, bandwidth: _flops(T, shape) / peak
        ),
        "this is the time of the memory alone; take the larger one of arithmetic and memory": (
            lambda T, shape, bytes_per_weight, peak, bandwidth: _bytes(T, shape, bytes_per_weight) / bandwidth
        ),
        "the two times are added; both run at once, so take the larger one": (
            lambda T, shape, bytes_per_weight, peak, bandwidth: (
                _flops(T, shape) / peak + _bytes(T, shape, bytes_per_weight) / bandwidth
            )
        ),
        "this is the smaller one of the two times; take the larger one": (
            lambda T, shape, bytes_per_weight, peak, bandwidth: min(
                _flops(T, shape) / peak, _bytes(T, shape, bytes_per_weight) / bandwidth
            )
        ),
        "the vectors are not counted; 4 T (in + out) bytes are read and written beside the weight": (
            lambda T, shape, bytes_per_weight, peak, bandwidth: max(
                _flops(T, shape) / peak, _bytes(0, shape, bytes_per_weight) / bandwidth
            )
        ),
        "the weight is read once for each vector; one reading serves all of them": (
            lambda T, shape, bytes_per_weight, peak, bandwidth: max(
                _flops(T, shape) / peak, T * _bytes(1, shape, bytes_per_weight) / bandwidth
            )
        ),
        "a multiplication and an addition are two flops; multiply by 2": (
            lambda T, shape, bytes_per_weight, peak, bandwidth: _least_seconds(
                T, shape, bytes_per_weight, 2 * peak, bandwidth
            )
        ),
    },
)


def _count(config: GemmaConfig) -> int:
    return sum(config.parameter_count().values())


def _decode_speed(config: GemmaConfig, bytes_per_weight: float, length: int, bandwidth: float) -> float:
    return bandwidth / (bytes_per_weight * _count(config) + cache_bytes(config, length))


def _decode_speed_cases(generator: np.random.Generator) -> Cases:
    bandwidth = 1e9 * generator.uniform(10, 100)
    return {
        "no text yet": (RELEASED["gemma-2-2b"], 2, 0, bandwidth),
        "a Gemma 1, all of whose layers are global": (RELEASED["gemma-7b"], 2, 8192, bandwidth),
        "a Gemma 2 in 4 bits, and a text twice as long as its window": (RELEASED["gemma-2-9b"], 0.5, 8192, bandwidth),
        "a Gemma 3": (RELEASED["gemma-3-1b"], 0.5, 32_768, bandwidth),
        "the bundled model": (resolve_config(BUNDLED["shakespeare-1m"]), 4, 100, bandwidth),
    }


DECODE_SPEED = Exercise(
    reference=_decode_speed,
    cases=_decode_speed_cases,
    mistakes={
        "the cache is not counted; all keys and values are read for each token": (
            lambda config, bytes_per_weight, length, bandwidth: _decode_speed(config, bytes_per_weight, 0, bandwidth)
        ),
        "a local layer keeps at most its window; take the smaller one of window and length": (
            lambda config, bytes_per_weight, length, bandwidth: _decode_speed(
                replace(config, layer_types=(GLOBAL,) * config.num_hidden_layers), bytes_per_weight, length, bandwidth
            )
        ),
        "only keys or only values are counted; there are both": (
            lambda config, bytes_per_weight, length, bandwidth: (
                bandwidth / (bytes_per_weight * _count(config) + cache_bytes(config, length) / 2)
            )
        ),
        "keys and values have num_key_value_heads heads, not num_attention_heads": (
            lambda config, bytes_per_weight, length, bandwidth: (
                bandwidth
                / (
                    bytes_per_weight * _count(config)
                    + cache_bytes(config, length) * config.num_attention_heads / config.num_key_value_heads
                )
            )
        ),
        "the embedding is not counted; it is also the head, which is read for every token": (
            lambda config, bytes_per_weight, length, bandwidth: (
                bandwidth
                / (
                    bytes_per_weight * (_count(config) - config.parameter_count()["embedding"])
                    + cache_bytes(config, length)
                )
            )
        ),
        "these are seconds per token; turn the fraction over": (
            lambda config, bytes_per_weight, length, bandwidth: (
                1 / _decode_speed(config, bytes_per_weight, length, bandwidth)
            )
        ),
        "keys and values are float32, 4 bytes each, whatever the weights are": (
            lambda config, bytes_per_weight, length, bandwidth: (
                bandwidth / (bytes_per_weight * (_count(config) + cache_bytes(config, length) / 4))
            )
        ),
    },
)


def _break_even(shape: _Shape, bytes_per_weight: float, peak: float, bandwidth: float) -> float:
    size, ridge = math.prod(shape), peak / bandwidth
    saved = 2 * size - 4 * ridge * sum(shape)
    return ridge * bytes_per_weight * size / saved if saved > 0 else math.inf


def _break_even_cases(generator: np.random.Generator) -> Cases:
    peak, bandwidth = 1e9 * generator.uniform(40, 60), 1e9 * generator.uniform(5, 10)
    return {
        "a weight of the 2B, float32": ((9216, 2304), 4, peak, bandwidth),
        "a weight of the 2B, 4 bits": ((9216, 2304), 0.5, peak, bandwidth),
        "a weight of 64 by 64": ((64, 64), 4, peak, bandwidth),
        "a weight of 8 by 8, for which memory always takes longer": ((8, 8), 4, peak, bandwidth),
    }


def _negative(shape: _Shape, bytes_per_weight: float, peak: float, bandwidth: float) -> float:
    """Solve for T without looking at the sign."""
    size, ridge = math.prod(shape), peak / bandwidth
    return ridge * bytes_per_weight * size / (2 * size - 4 * ridge * sum(shape))


BREAK_EVEN = Exercise(
    reference=_break_even,
    cases=_break_even_cases,
    mistakes={
        "the vectors are not counted: 2 T / b is only the intensity of few vectors; solve the whole equation": (
            lambda shape, bytes_per_weight, peak, bandwidth: peak / bandwidth * bytes_per_weight / 2
        ),
        "a negative number of vectors means that the times are never equal; return math.inf": _negative,
        "this is the intensity where the two lines meet, peak / bandwidth; how many vectors have it?": (
            lambda shape, bytes_per_weight, peak, bandwidth: peak / bandwidth
        ),
        "peak and bandwidth are swapped": lambda shape, bytes_per_weight, peak, bandwidth: _break_even(
            shape, bytes_per_weight, bandwidth, peak
        ),
        "a multiplication and an addition are two flops; multiply by 2": (
            lambda shape, bytes_per_weight, peak, bandwidth: _break_even(shape, bytes_per_weight, 2 * peak, bandwidth)
        ),
    },
)
