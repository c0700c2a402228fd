"""Collect what a model does with one text: attention, residual stream, logit lens, next tokens.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020), on reading the residual stream through the head.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.log_probs import log_softmax
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.scope import Record

LONGEST = 256
"""Tokens; every layer and head has a T by T map, and larger ones are unreadable."""

LENS_TOKENS, NEXT_TOKENS = 5, 10


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the page shows about one text and one model of L layers."""

    ids: list[int]  # [T]
    tokens: list[str]  # [T], their pieces, with U+2581 for a space
    attention: np.ndarray  # [L, H, T, T], probabilities
    residual: np.ndarray  # [L + 1, T], RMS of the residual stream: the embedding, then after each layer
    lens_tokens: np.ndarray  # [L, T, 5], pieces that the residual stream after each layer predicts
    lens_probs: np.ndarray  # [L, T, 5]
    next_tokens: np.ndarray  # [T, 10], pieces of the most likely next tokens
    next_logits: np.ndarray  # [T, 10], before the final cap
    next_uncapped: np.ndarray  # [T, 10], probabilities without the final cap
    next_probs: np.ndarray  # [T, 10], probabilities
    entropy: np.ndarray  # [T], bits, of the next token's distribution
    surprise: np.ndarray  # [T - 1], bits, -log2 P of each token from the second on


class _PageRecord(Record):
    """A tape that keeps only what the page shows."""

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        return super().__call__(name, value) if name.endswith(("embedding", "probs", "resid_post")) else value


def inspect_text(model: Gemma, text: str, progress: Callable[[list], Iterable] = list) -> Inspection:
    """Read a text and collect what the page shows; progress: wraps the layers of the logit lens, as tqdm does.

    Raises GemmaError for an empty text, a text of more than 256 tokens, and a model without a tokenizer.
    """
    tokenizer, layers = model.require_tokenizer(), range(model.config.num_hidden_layers)
    if not text:
        raise GemmaError("text: empty, expected some text")
    ids = tokenizer.encode(text)
    if len(ids) > LONGEST:
        raise GemmaError(f"text: {len(ids)} tokens, expected at most {LONGEST}")

    record = _PageRecord()
    transformer(ids, model.weights, model.config, tape=record)
    streams = [record["embedding"], *(record[f"layers.{layer}.resid_post"] for layer in layers)]  # each [T, D]
    logits, log_probs = _output(model, streams[-1])  # [T, V] each
    next_ids, next_probs = _likeliest(log_probs, NEXT_TOKENS)
    lenses = [_likeliest(_output(model, x)[1], LENS_TOKENS) for x in progress(streams[1:-1])]
    lenses.append((next_ids[:, :LENS_TOKENS], next_probs[:, :LENS_TOKENS]))
    pieces = np.vectorize(tokenizer.piece, otypes=[object])
    return Inspection(
        ids=ids,
        tokens=[tokenizer.piece(id) for id in ids],
        attention=np.stack([record[f"layers.{layer}.self_attn.probs"] for layer in layers]),
        residual=np.stack([np.sqrt(np.mean(x * x, axis=-1)) for x in streams]),
        lens_tokens=pieces(np.stack([ids for ids, _ in lenses])),
        lens_probs=np.stack([probs for _, probs in lenses]),
        next_tokens=pieces(next_ids),
        next_logits=np.take_along_axis(logits, next_ids, axis=-1),
        next_uncapped=np.exp(np.take_along_axis(log_softmax(logits), next_ids, axis=-1)),
        next_probs=next_probs,
        entropy=-(np.exp(log_probs) * log_probs).sum(axis=-1) / math.log(2),
        surprise=-log_probs[np.arange(len(ids) - 1), ids[1:]] / math.log(2),
    )


def _output(model: Gemma, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply the final norm and the head to a residual stream: x [T, D] -> logits [T, V] before the final cap, and
    log-probabilities after it [T, V]."""
    record = Record()
    normed = rms_norm(x, model.weights["model.norm.weight"], model.config.rms_norm_eps)
    after = lm_head(normed, model.weights, model.config, record)
    return record["logits"], log_softmax(after)


def _likeliest(log_probs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most likely tokens of each row and their probabilities: log_probs [T, V] -> [T, k], [T, k]."""
    ids = np.argpartition(log_probs, -k, axis=-1)[:, -k:]
    order = np.argsort(-np.take_along_axis(log_probs, ids, axis=-1), axis=-1)
    ids = np.take_along_axis(ids, order, axis=-1)
    return ids, np.exp(np.take_along_axis(log_probs, ids, axis=-1))
