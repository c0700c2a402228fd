"""Generate tokens: read the prompt, choose the next token, read it, and repeat."""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.memory import PREFILL_CHUNK
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer, validate_token_ids
from gemma_np.progress import progress_bar
from gemma_np.scope import Tape, no_tape
from gemma_np.weights.formats import Weights

OnToken = Callable[[int, np.ndarray], None]
"""Is called with a new token and the logits [V] that it was chosen from."""


def generate_ids(
    prompt: Sequence[int],
    weights: Weights,
    config: GemmaConfig,
    choose: Callable[[np.ndarray], int],
    max_new_tokens: int,
    *,
    stop: Collection[int] = (),
    int8_cache: bool = False,
    on_token: OnToken | None = None,
    tape: Tape = no_tape,
) -> Iterator[int]:
    """Generate up to `max_new_tokens` ids after the prompt; stop before the first id in `stop`.

    choose: logits [V] -> id. int8_cache: keep keys and values in 8 bits. on_token: is called with each new id and the
    logits [V] that it was chosen from. tape: sees, and may replace, the intermediates of every pass: those over the
    prompt, then one for each new token.

    Raises GemmaError when the prompt is not a list of token ids, when `max_new_tokens` is less than 1, and when prompt
    and new tokens together exceed the model's context length; during generation, when the logits are not finite.
    """
    length = total_length(prompt, max_new_tokens, config)
    cache = KVCache(config, length, dtype=weights["model.norm.weight"].dtype, int8=int8_cache)

    def generate() -> Iterator[int]:
        unread = prompt
        for _ in range(max_new_tokens):
            logits = next_logits(unread, weights, config, cache, tape)
            token = choose(logits)
            if token in stop:
                return
            if on_token:
                on_token(token, logits)
            yield token
            unread = [token]

    return generate()


def total_length(prompt: Sequence[int], max_new_tokens: int, config: GemmaConfig) -> int:
    """Return the length of a prompt and the new tokens together. Raises GemmaError as `generate_ids` describes."""
    if max_new_tokens < 1:
        raise GemmaError(f"max_new_tokens: {max_new_tokens}, expected 1 or more")
    validate_token_ids(prompt, config)
    length, limit = len(prompt) + max_new_tokens, config.max_position_embeddings
    if length > limit:
        raise GemmaError(
            f"prompt of {len(prompt)} tokens and {max_new_tokens} new ones: {length}, expected at most {limit} "
            f"(max_position_embeddings)"
        )
    return length


def next_logits(
    ids: Sequence[int], weights: Weights, config: GemmaConfig, cache: KVCache, tape: Tape = no_tape
) -> np.ndarray:
    """Read ids into the cache, and return the logits of the token after them: [V].

    Raises GemmaError when they are not finite.
    """
    logits = lm_head(prefill(ids, weights, config, cache, tape), weights, config, tape)
    check_logits(logits, cache)
    return logits


def check_logits(logits: np.ndarray, cache: KVCache) -> None:
    """Check that logits [..., V] are finite. Raises GemmaError when they are not."""
    if not np.isfinite(logits.max()):
        raise GemmaError(f"logits: {logits.max()} after {cache.length} tokens, expected finite numbers")


def prefill(
    ids: Sequence[int], weights: Weights, config: GemmaConfig, cache: KVCache, tape: Tape = no_tape
) -> np.ndarray:
    """Read ids into the cache, one chunk at a time, and return the model's output at the last of them: [D]."""
    if len(ids) <= PREFILL_CHUNK:
        return transformer(ids, weights, config, cache, tape)[-1]

    with progress_bar(total=len(ids), desc="reading", unit="tokens") as progress:
        for start in range(0, len(ids), PREFILL_CHUNK):
            x = transformer(ids[start : start + PREFILL_CHUNK], weights, config, cache, tape)
            progress.update(x.shape[0])
    return x[-1]
