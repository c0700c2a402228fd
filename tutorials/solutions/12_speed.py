"""Solutions of tutorial 12."""

import math

from gemma_np.config import GemmaConfig


def least_seconds(T: int, shape: tuple[int, int], bytes_per_weight: float, peak: float, bandwidth: float) -> float:
    numbers = shape[0] * shape[1]
    flops = 2 * T * numbers
    moved = bytes_per_weight * numbers + 4 * T * sum(shape)
    return max(flops / peak, moved / bandwidth)


def decode_speed(config: GemmaConfig, bytes_per_weight: float, length: int, bandwidth: float) -> float:
    weights = bytes_per_weight * sum(config.parameter_count().values())
    kept = sum(min(length, config.window(layer) or length) for layer in range(config.num_hidden_layers))
    return bandwidth / (weights + kept * 2 * config.num_key_value_heads * config.head_dim * 4)


def break_even(shape: tuple[int, int], bytes_per_weight: float, peak: float, bandwidth: float) -> float:
    numbers = shape[0] * shape[1]
    each_vector = 2 * numbers / peak - 4 * sum(shape) / bandwidth  # seconds that arithmetic gains on memory
    return bytes_per_weight * numbers / bandwidth / each_vector if each_vector > 0 else math.inf
