"""A small model with random weights, to train from."""

from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.config import GENERATIONS
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.memory import check_memory
from gemma_np.text.tokenizer import Tokenizer, read_tokenizer
from gemma_np.training.trainer import initial_weights

SMALL_SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 512,
    "sliding_window": 64,
    "max_position_embeddings": 256,
}


def new_model(
    tokenizer: Tokenizer | str | Path,
    *,
    seed: int = 0,
    generation: int = 2,
    vocab_size: int | None = None,
    **shape: int,
) -> Gemma:
    """Return a Gemma 1, 2 or 3 with random weights; shape: sizes of `GemmaConfig` that differ from `SMALL_SHAPE`.

    vocab_size: by default that of the tokenizer. Raises GemmaError for an unknown generation, for an invalid shape, and
    when training the model would not fit in memory.
    """
    if generation not in GENERATIONS:
        raise GemmaError(f"generation: {generation}, expected 1, 2 or 3")
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else read_tokenizer(tokenizer)
    sizes: dict[str, Any] = SMALL_SHAPE | shape
    sizes["query_pre_attn_scalar"] = sizes["head_dim"]
    if generation == 1:
        del sizes["sliding_window"]  # its layers are all global
    config = GENERATIONS[generation](vocab_size=vocab_size or len(tokenizer), **sizes)
    # Weights, gradients and two moments, in float32.
    check_memory(4 * 4 * sum(config.parameter_count().values()), np.dtype(np.float32))
    return Gemma(config, initial_weights(config, np.random.default_rng(seed)), tokenizer)
