"""What compression costs and saves: one row of a table for each model."""

import math
import time
from dataclasses import dataclass

import numpy as np

from gemma_np.gemma import Gemma
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.text.generation import generate_ids
from gemma_np.training.losses import log_softmax
from gemma_np.weights.formats import stored_bytes

_PROMPTS, _PROMPT, _NEW = 8, 32, 32  # texts, tokens of each prompt, tokens that are written
_ROWS = 128  # logits of V numbers a row, in several copies: 134 MB each at V = 262,144


@dataclass(frozen=True)
class Measurement:
    """A model, measured against the one that it was made from."""

    step: str
    parameters: int
    bytes: int
    perplexity: float
    kl: float  # nats a token, from the original's distribution to this one's
    agreement: float  # share of the original's greedy tokens that this model would write in their place
    tokens_per_second: float  # of decoding, after a short prompt


def measure(step: str, model: Gemma, original: Gemma, texts: np.ndarray) -> Measurement:
    """Read texts, ids [N, T], with both models, and write some more."""
    from tqdm import tqdm

    loss = divergence = 0.0
    for text in tqdm(texts, desc=f"measuring: {step}", unit=" texts", delay=2, leave=False):
        streams = [transformer(text[:-1], gemma.weights, gemma.config) for gemma in (model, original)]
        for start in range(0, len(text) - 1, _ROWS):
            rows = slice(start, start + _ROWS)
            own, theirs = (
                log_softmax(lm_head(x[rows], gemma.weights, gemma.config))
                for x, gemma in zip(streams, (model, original), strict=True)
            )
            loss -= np.take_along_axis(own, text[1:][rows, None], axis=-1).sum(dtype=np.float64)
            divergence += float(np.vecdot(np.exp(theirs), theirs - own).sum(dtype=np.float64))
    return Measurement(
        step,
        sum(math.prod(shape) for _, shape in model.config.weight_shapes()),
        sum(stored_bytes(weight) for weight in model.weights.values()),
        math.exp(loss / texts[:, 1:].size),
        divergence / texts[:, 1:].size,
        greedy_agreement(model, original, texts),
        decoding_speed(model, texts[0]),
    )


def greedy_agreement(model: Gemma, original: Gemma, texts: np.ndarray) -> float:
    """The share of the tokens that the original writes greedily after each text's beginning which this model, reading
    the same, would write, too: texts [N, T]."""
    agreed = []
    for text in texts[:_PROMPTS]:
        prompt = text[: min(_PROMPT, len(text) // 2)].tolist()
        new = min(_NEW, original.config.max_position_embeddings - len(prompt))
        written = list(generate_ids(prompt, original.weights, original.config, np.argmax, new))
        choices = model.logits(prompt + written[:-1])[len(prompt) - 1 :].argmax(axis=-1)
        agreed.append(np.mean(choices == written))
    return float(np.mean(agreed))


def decoding_speed(model: Gemma, text: np.ndarray) -> float:
    """Tokens a second, one after another, after the beginning of a text [T]."""
    prompt = text[: min(_PROMPT, len(text) // 2)]
    cache = KVCache(model.config, 2 * len(prompt) + 1, dtype=model.weights["model.norm.weight"].dtype)
    transformer(prompt, model.weights, model.config, cache)
    started = time.perf_counter()
    for token in prompt:
        lm_head(transformer([token], model.weights, model.config, cache)[-1], model.weights, model.config)
    return len(prompt) / (time.perf_counter() - started)


def table(rows: list[Measurement], head: bool = True) -> str:
    """The rows as text."""
    names = f"{'':12}{'parameters':>15}{'MB':>10}{'perplexity':>12}{'KL':>9}{'agreement':>11}{'tokens/s':>10}"
    lines = [
        f"{row.step:12}{row.parameters:>15,}{row.bytes / 1e6:>10,.1f}{row.perplexity:>12.3f}{row.kl:>9.4f}"
        f"{row.agreement:>11.1%}{row.tokens_per_second:>10.1f}"
        for row in rows
    ]
    return "\n".join([names, *lines] if head else lines)
