"""The exercises on decoding with a cache, on sampling, and on the ring."""

from collections.abc import Sequence
from functools import cache
from unittest.mock import patch

import numpy as np

import gemma_np
from gemma_np.config import GemmaConfig
from gemma_np.gemma import Gemma
from gemma_np.model.embedding import embed
from gemma_np.model.kv_cache import KVCache, LayerCache
from gemma_np.model.log_probs import log_softmax
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.text.generation import generate_ids
from gemma_np.text.sampling import Sampling
from gemma_np.weights.formats import Weights
from support.exercise import Answer, Cases, Exercise

_OPENINGS = ("The king", "My lord", "Good night", "I pray you", "O my brother", "To be, or not to be")


@cache
def _model() -> Gemma:
    return gemma_np.load()


def _decode_cases(generator: np.random.Generator) -> Cases:
    model = _model()
    assert model.tokenizer
    text = str(generator.choice(_OPENINGS))
    ids = model.tokenizer.encode(text)
    long = model.tokenizer.encode(f"{text}, ".replace("\n", " ") * 20)[:70]
    rest = (model.weights, model.config)
    return {
        "one new token": (ids, 1, *rest),
        "six new tokens": (ids, 6, *rest),
        "a prompt of one token": (ids[:1], 4, *rest),
        "a prompt longer than the local window": (long, 2, *rest),
    }


def _greedy(ids: Sequence[int], count: int, weights: Weights, config: GemmaConfig) -> list[int]:
    return list(generate_ids(list(ids), weights, config, lambda logits: int(logits.argmax()), count))


def _first_position(ids: Sequence[int], count: int, weights: Weights, config: GemmaConfig) -> list[int]:
    kept, unread, new = KVCache(config), list(ids), list[int]()
    for _ in range(count):
        x = transformer(unread, weights, config, kept)
        unread = [int(lm_head(x[0], weights, config).argmax())]
        new += unread
    return new


def _no_cache(ids: Sequence[int], count: int, weights: Weights, config: GemmaConfig) -> list[int]:
    unread, new = list(ids), list[int]()
    for _ in range(count):
        x = transformer(unread, weights, config)
        unread = [int(lm_head(x[-1], weights, config).argmax())]
        new += unread
    return new


def _everything_again(ids: Sequence[int], count: int, weights: Weights, config: GemmaConfig) -> list[int]:
    kept, text = KVCache(config), list(ids)
    for _ in range(count):
        x = transformer(text, weights, config, kept)
        text = [*text, int(lm_head(x[-1], weights, config).argmax())]
    return text[len(ids) :]


def _last_twice(ids: Sequence[int], count: int, weights: Weights, config: GemmaConfig) -> list[int]:
    return _greedy([*ids, ids[-1]], count, weights, config)


def _second_first(ids: Sequence[int], count: int, weights: Weights, config: GemmaConfig) -> list[int]:
    return _greedy(ids, count + 1, weights, config)[1:]


def _reads_again(answer: Answer, cases: Cases) -> str | None:
    """Return a remark when an answer embeds more ids than those of the prompt and the new tokens, each once."""
    looked_up: list[int] = []

    def counting(ids: np.ndarray, E: np.ndarray) -> np.ndarray:
        looked_up.extend(ids.flat)
        return embed(ids, E)

    for ids, count, weights, config in cases.values():
        looked_up.clear()
        with patch.dict(transformer.__globals__, embed=counting):
            answer(list(ids), count, weights, config)
        if len(looked_up) > len(ids) + count:
            return "right text, but every step reads everything again; read only the new token, the cache has the rest"
    return None


DECODE = Exercise(
    reference=_greedy,
    cases=_decode_cases,
    mistakes={
        "the token is chosen from the first position; the last one predicts what follows the prompt": _first_position,
        "each new token is read without the cache, so it sees nothing before itself; pass the same cache "
        "to every call": _no_cache,
        "the whole text is read into the cache again at every step; read only the newest token": _everything_again,
        "the last token of the prompt is read twice; its output predicts the first new token": _last_twice,
        "the first new token is left out; the last row of the prefill predicts it": _second_first,
        "the prompt is returned as well; return only the new tokens": lambda ids, count, weights, config: (
            [*ids, *_greedy(ids, count, weights, config)]
        ),
    },
    remark=_reads_again,
)


def _top_p_cases(generator: np.random.Generator) -> Cases:
    def draw(size: int) -> np.ndarray:
        return 2 * generator.standard_normal(size)

    sure = draw(6)
    sure[2] += 20
    return {
        "top_p 0.6 of few tokens": (np.log([0.1, 0.35, 0.05, 0.3, 0.2]) + draw(1), 1.0, 0.6),
        "everything kept (top_p 1)": (draw(6), 1.0, 1.0),
        "a temperature below 1": (draw(6), 0.5, 1.0),
        "one token that is enough by itself": (sure, 1.0, 0.5),
        "top_p 0.9 and a temperature of 1.5, many tokens": (draw(200), 1.5, 0.9),
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def _kept(probs: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Keep only these tokens, with probabilities that sum to 1."""
    result = np.zeros_like(probs)
    result[ids] = probs[ids] / probs[ids].sum()
    return result


def _top_p(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    ids, kept = Sampling(temperature, top_p=top_p).distribution(logits)
    probs = np.zeros(logits.shape)
    probs[ids] = kept
    return probs


def _not_renormalized(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    return np.where(_top_p(logits, temperature, top_p) > 0, _softmax(logits / temperature), 0)


def _without_the_last(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    probs = _softmax(logits / temperature)
    order = np.argsort(-probs)
    kept = order[np.cumsum(probs[order]) <= top_p + 1e-12]
    return _kept(probs, kept if len(kept) else order[:1])


def _neither_the_last_nor_renormalized(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    return np.where(_without_the_last(logits, temperature, top_p) > 0, _softmax(logits / temperature), 0)


def _unsorted(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    probs = _softmax(logits / temperature)
    return _kept(probs, np.flatnonzero(np.cumsum(probs) - probs < top_p))


def _smallest_first(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    probs = _softmax(logits / temperature)
    order = np.argsort(probs)
    return _kept(probs, order[np.cumsum(probs[order]) - probs[order] < top_p])


def _temperature_last(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    return _softmax(np.where(_top_p(logits, 1.0, top_p) > 0, logits / temperature, -np.inf))


TOP_P = Exercise(
    reference=_top_p,
    cases=_top_p_cases,
    mistakes={
        "the kept probabilities do not sum to 1; divide them by their sum": _not_renormalized,
        "the token that crosses top_p is dropped; keep a token while those before it "
        "add up to less than top_p": _without_the_last,
        "the token that crosses top_p is dropped, and the kept probabilities do not sum to 1": (
            _neither_the_last_nor_renormalized
        ),
        "the probabilities are added up in the order of the vocabulary; sort them first, the largest first": _unsorted,
        "the result is in sorted order; put each probability back at the index of its token": (
            lambda logits, temperature, top_p: np.sort(_top_p(logits, temperature, top_p))[::-1]
        ),
        "the least likely tokens are kept; sort the largest first": _smallest_first,
        "the temperature is not used; divide the logits by it": lambda logits, temperature, top_p: _top_p(
            logits, 1.0, top_p
        ),
        "the logits are multiplied by the temperature; divide them": lambda logits, temperature, top_p: _top_p(
            logits, 1 / temperature, top_p
        ),
        "tokens are dropped before the temperature is applied; divide the logits by it first": _temperature_last,
    },
)


def _append_cases(generator: np.random.Generator) -> Cases:
    def case(slots: int, length: int, count: int) -> tuple[np.ndarray, int, np.ndarray]:
        ring, keys = np.zeros((slots, 2)), generator.standard_normal((length + count, 2))
        for position in range(length):
            ring[position % slots] = keys[position]
        return ring, length, keys[length:]

    later = int(generator.integers(5, 10)) * 4
    return {
        "an empty ring": case(4, 0, 3),
        "a ring that is not full": case(4, 2, 2),
        "one token in a full ring": case(4, later + 2, 1),
        "several tokens that wrap around": case(4, later + 2, 3),
        "a ring that fills and wraps": case(5, 3, 4),
        "more tokens than slots": case(4, later + 1, 6),
    }


Appended = tuple[np.ndarray, np.ndarray]
"""The keys that the new tokens see, [S, h], and the ring after them, [slots, h]."""


def _append(ring: np.ndarray, length: int, new: np.ndarray) -> Appended:
    """Append to the ring of the package, and keep the keys that some new token sees, in order."""
    layer = LayerCache((1, *ring.shape), ring.dtype)
    layer.keys[0], layer.length, layer.furthest = ring, length, length
    keys, _, positions = layer.append(new[None], new[None])
    order = np.argsort(positions)
    return keys[0, order[positions[order] > length - len(ring)]], layer.keys[0]


def _before(ring: np.ndarray, length: int, first: int) -> np.ndarray:
    """Return the keys in the ring from a position on, in order."""
    return ring[np.arange(max(0, first), length) % len(ring)]


def _written_first(ring: np.ndarray, length: int, new: np.ndarray) -> Appended:
    end = length + len(new)
    after = _append(ring, length, new)[1]
    return _before(after, end, end - len(ring)), after


def _in_slot_order(ring: np.ndarray, length: int, new: np.ndarray) -> Appended:
    slots = np.sort(np.arange(max(0, length + 1 - len(ring)), length) % len(ring))
    return np.concatenate([ring[slots], new]), _append(ring, length, new)[1]


def _one_too_many(ring: np.ndarray, length: int, new: np.ndarray) -> Appended:
    return np.concatenate([_before(ring, length, length - len(ring)), new]), _append(ring, length, new)[1]


def _shifted(ring: np.ndarray, length: int, new: np.ndarray) -> Appended:
    seen, after = _append(ring, length, new)
    everything = np.concatenate([_before(ring, length, length - len(ring)), new])[-len(ring) :]
    return seen, np.concatenate([everything, np.zeros_like(after)])[: len(after)]


def _from_slot_0(ring: np.ndarray, length: int, new: np.ndarray) -> Appended:
    after = ring.copy()
    after[np.arange(len(new)) % len(ring)] = new
    return _append(ring, length, new)[0], after


def _first_kept(ring: np.ndarray, length: int, new: np.ndarray) -> Appended:
    return _append(ring, length, new)[0], _append(ring, length, new[: len(ring)])[1]


APPEND = Exercise(
    reference=_append,
    cases=_append_cases,
    mistakes={
        "the new keys are written before the old ones are read, over keys that the first new tokens still see; "
        "collect what is seen first": _written_first,
        "the keys that are seen are in the order of the slots; put them into that of their positions": _in_slot_order,
        "one key too many is seen: that at position length - slots has left the window of the first new token": (
            _one_too_many
        ),
        "only the new keys are seen; the new tokens also see those in the ring": lambda ring, length, new: (
            new.copy(),
            _append(ring, length, new)[1],
        ),
        "the ring is in the order of positions; position p stays in slot p % slots": _shifted,
        "the new keys are written from slot 0 on; the first of them has position `length`": _from_slot_0,
        "more tokens than slots: the first keys stay in the ring, and the last should": _first_kept,
        "the ring after the new tokens is that before them; write their keys into a copy": lambda ring, length, new: (
            _append(ring, length, new)[0],
            ring.copy(),
        ),
        "the ring grows; it keeps its number of slots": lambda ring, length, new: (
            _append(ring, length, new)[0],
            np.concatenate([ring, new]),
        ),
    },
)
