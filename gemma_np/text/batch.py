"""Generate after several prompts at once: each pass of the model reads one token of every text.

A pass takes about as long for a few texts as for one, since most of its time goes into reading the weights. Each text
has its own cache, so that the texts may have any lengths. A text that is complete leaves the batch, and the next one
takes its place.

Source: Yu et al., Orca, OSDI 2022 (iteration-level scheduling).
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.batch_cache import BatchCache
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.text.generation import check_logits, prefill, total_length
from gemma_np.weights.formats import Weights
from gemma_np.weights.linear import FEW_VECTORS


@dataclass
class Text:
    """A text that is being generated.

    x: the model's output at its last token, [D]; extend: logits [V] -> the next token to read, or None when the text is
    complete.
    """

    x: np.ndarray
    cache: KVCache
    extend: Callable[[np.ndarray], int | None]


def extend_all(texts: Iterable[Text], weights: Weights, config: GemmaConfig) -> None:
    """Extend each text until it is complete, up to `FEW_VECTORS` of them side by side.

    Raises GemmaError when logits are not finite.
    """
    waiting, batch = iter(texts), list[Text]()
    while batch := [*batch, *islice(waiting, FEW_VECTORS - len(batch))]:
        logits = lm_head(np.stack([text.x for text in batch]), weights, config)  # [B, V]
        tokens = []
        for text, row in zip(batch, logits, strict=True):
            check_logits(row, text.cache)
            tokens.append(text.extend(row))
        batch = [text for text, token in zip(batch, tokens, strict=True) if token is not None]
        ids = [[token] for token in tokens if token is not None]
        if batch:
            x = transformer(ids, weights, config, BatchCache([text.cache for text in batch]))  # [B, 1, D]
            for text, of_text in zip(batch, x, strict=True):
                text.x = of_text[-1]


def generate_batch(
    prompts: Sequence[Sequence[int]],
    weights: Weights,
    config: GemmaConfig,
    choose: Sequence[Callable[[np.ndarray], int]],
    max_new_tokens: int,
    *,
    stop: Collection[int] = (),
    int8_cache: bool = False,
    on_token: Callable[[int, int, np.ndarray], None] | None = None,
    complete: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Generate after each prompt what `generate_ids` generates after it alone; return the new ids of each.

    choose: one function for each prompt. In float64 the logits are to the bit those of the prompt alone; in float32
    they differ by rounding, so a text may take another course where two tokens are almost equally likely.

    on_token: is called with the number of the prompt, each new id, and the logits [V] that it was chosen from.
    complete: whether a text ends after these new ids.

    Raises GemmaError as `generate_ids` does.
    """
    lengths = [total_length(prompt, max_new_tokens, config) for prompt in prompts]
    new = [list[int]() for _ in prompts]

    def read(number: int) -> Text:
        def extend(logits: np.ndarray) -> int | None:
            token, ids = choose[number](logits), new[number]
            if token in stop:
                return None
            if on_token:
                on_token(number, token, logits)
            ids.append(token)
            return None if len(ids) == max_new_tokens or (complete and complete(ids)) else token

        cache = KVCache(config, lengths[number], dtype=weights["model.norm.weight"].dtype, int8=int8_cache)
        return Text(prefill(prompts[number], weights, config, cache), cache, extend)

    extend_all(map(read, range(len(prompts))), weights, config)
    return new
