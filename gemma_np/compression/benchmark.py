"""Measure the size, speed and quality of compressed models."""

import math
import time
from dataclasses import dataclass

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.log_probs import log_softmax
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.progress import progress_bar
from gemma_np.text.generation import generate_ids
from gemma_np.weights.formats import stored_bytes

_TEXTS, _PROMPT_TOKENS, _NEW_TOKENS = 8, 32, 32
_ROWS = 128  # positions at once; their logits take 134 MB at V = 262,144, and there are several copies


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The measurements of a compressed model, one row of the table."""

    step: str
    parameters: int
    bytes: int
    perplexity: float
    kl: float  # nats per token, KL(original || this model)
    agreement: float  # fraction of the original's greedy tokens that this model would also choose
    tokens_per_second: float  # decoding after a short prompt


def measure(step: str, model: Gemma, original: Gemma, texts: np.ndarray) -> Measurement:
    """Compare a model with the original on texts, ids [N, T]. Raises GemmaError when its loss is not finite."""
    loss = divergence = 0.0
    for text in progress_bar(texts, desc=f"measuring: {step}", unit="texts"):
        streams = [transformer(text[:-1], gemma.weights, gemma.config) for gemma in (model, original)]
        for start in range(0, len(text) - 1, _ROWS):
            rows = slice(start, start + _ROWS)
            own, theirs = (
                log_softmax(lm_head(x[rows], gemma.weights, gemma.config))
                for x, gemma in zip(streams, (model, original), strict=True)
            )
            loss -= np.take_along_axis(own, text[1:][rows, None], axis=-1).sum(dtype=np.float64)
            divergence += float(np.vecdot(np.exp(theirs), theirs - own).sum(dtype=np.float64))
    if not math.isfinite(loss):
        raise GemmaError(f"{step}: a loss of {loss}, expected a finite number (are the weights damaged?)")
    return Measurement(
        step=step,
        parameters=sum(math.prod(shape) for _, shape in model.config.weight_shapes()),
        bytes=sum(stored_bytes(weight) for weight in model.weights.values()),
        perplexity=math.exp(loss / texts[:, 1:].size),
        kl=divergence / texts[:, 1:].size,
        agreement=greedy_agreement(model, original, texts),
        tokens_per_second=decoding_speed(model, texts[0]),
    )


def greedy_agreement(model: Gemma, original: Gemma, texts: np.ndarray) -> float:
    """Return the fraction of the original's greedy tokens that this model would also choose after the same tokens.

    texts [N, T]; the original continues the beginning of each.
    """
    agreed = []
    for text in texts[:_TEXTS]:
        prompt = text[: min(_PROMPT_TOKENS, len(text) // 2)].tolist()
        new = min(_NEW_TOKENS, original.config.max_position_embeddings - len(prompt))
        written = list(generate_ids(prompt, original.weights, original.config, np.argmax, new))
        choices = model.logits(prompt + written[:-1])[len(prompt) - 1 :].argmax(axis=-1)
        agreed.append(np.mean(choices == written))
    return float(np.mean(agreed))


def decoding_speed(model: Gemma, text: np.ndarray) -> float:
    """Return the speed of decoding one token at a time, in tokens per second, after the beginning of a text [T]."""
    prompt = text[: min(_PROMPT_TOKENS, len(text) // 2, model.config.max_position_embeddings // 2)]
    cache = KVCache(model.config, 2 * len(prompt), dtype=model.weights["model.norm.weight"].dtype)
    transformer(prompt, model.weights, model.config, cache)
    started = time.perf_counter()
    for token in prompt:
        lm_head(transformer([token], model.weights, model.config, cache)[-1], model.weights, model.config)
    return len(prompt) / (time.perf_counter() - started)


def table(rows: list[Measurement], *, head: bool = True) -> str:
    """Format the rows as text, with or without a heading."""
    names = f"{'':12}{'parameters':>15}{'MB':>10}{'perplexity':>12}{'KL':>9}{'agreement':>11}{'tokens/s':>10}"
    lines = [
        f"{row.step:12}{row.parameters:>15,}{row.bytes / 1e6:>10,.1f}{row.perplexity:>12.3f}{row.kl:>9.4f}"
        f"{row.agreement:>11.1%}{row.tokens_per_second:>10.1f}"
        for row in rows
    ]
    return "\n".join([names, *lines] if head else lines)
