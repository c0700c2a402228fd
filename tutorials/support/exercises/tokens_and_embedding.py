"""The exercises on tokens and the embedding."""

import math
from functools import cache
from itertools import pairwise

import numpy as np

from gemma_np.gemma import BUNDLED
from gemma_np.model.embedding import embed, unembed
from gemma_np.text.tokenizer import Tokenizer
from support.exercise import Answer, Cases, Exercise, known

WORDS = ("▁absence", "▁answers", "▁asked", "▁becomes", "▁lighthouse", "▁look", "▁outrageous", "▁serves", "▁which")


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer((BUNDLED["shakespeare-1m"] / "tokenizer.model").read_bytes())


@cache
def vocabulary() -> dict[str, int]:
    """Return the trained pieces of the bundled tokenizer, {piece: id}: all but the control pieces and the bytes."""
    tokenizer = _tokenizer()
    return {tokenizer.piece(id): id for id in range(tokenizer.id("<0xFF>") + 1, len(tokenizer))}


def _merge_cases(generator: np.random.Generator) -> Cases:
    texts = {
        "two characters": "he",
        "three characters": "her",
        "a word": "▁question",
        "a word that is not split into its longest pieces": "▁later",
        "many words": "".join(generator.permutation(WORDS)),
    }
    return {case: (text, vocabulary()) for case, text in texts.items()}


def _merged(text: str, ids: dict[str, int]) -> list[int]:
    return _tokenizer().encode(text.replace("▁", " "), bos=False)


def _longest_first(text: str, ids: dict[str, int]) -> list[int]:
    found = []
    while text:
        piece = next(text[:end] for end in range(len(text), 0, -1) if text[:end] in ids)
        found.append(ids[piece])
        text = text[len(piece) :]
    return found


def _merged_by(text: str, ids: dict[str, int], sign: int, most: int = 10_000) -> list[int]:
    """Merge, at most `most` times, the pair with the lowest sign * id; with a sign of 0, the leftmost pair."""
    pieces = list(text)
    for _ in range(most):
        pairs = [(sign * ids[a + b], n) for n, (a, b) in enumerate(pairwise(pieces)) if a + b in ids]
        if not pairs:
            break
        _, n = min(pairs)
        pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]
    return [ids[piece] for piece in pieces]


MERGE = Exercise(
    reference=_merged,
    cases=_merge_cases,
    mistakes={
        "the longest matching piece is taken from the left; merge neighbours, lowest id first": _longest_first,
        "the first pair from the left is merged; merge the pair whose piece has the lowest id": lambda text, ids: (
            _merged_by(text, ids, sign=0)
        ),
        "the pair whose piece has the highest id is merged; merge the one with the lowest": lambda text, ids: (
            _merged_by(text, ids, sign=-1)
        ),
        "it stops after one merge; continue until no pair of neighbours is a piece": lambda text, ids: _merged_by(
            text, ids, sign=1, most=1
        ),
        "it returns the pieces; return their ids, ids[piece]": lambda text, ids: [
            _tokenizer().piece(id) for id in _merged(text, ids)
        ],
        "nothing is merged; merge neighbours until no pair of them is a piece": lambda text, ids: [
            ids[character] for character in text
        ],
    },
)


def _embed_cases(generator: np.random.Generator) -> Cases:
    E = generator.standard_normal((9, 6))
    return {
        "one token": (np.array([3]), E),
        "several tokens, one of them twice": (np.array([3, 0, 8, 3]), E),
        "a batch of texts": (generator.integers(9, size=(2, 4)), E),
        "float32": (np.array([3, 0, 8]), E.astype(np.float32)),
    }


def _another_dtype(answer: Answer, cases: Cases) -> str | None:
    """Return a remark when an answer returns another dtype than that of E."""
    for ids, E in cases.values():
        found = np.asarray(answer(ids, E)).dtype
        if found != E.dtype:
            return (
                f"right numbers, but {found} from an E of {E.dtype}; np.sqrt(D) is a float64 and makes the product "
                "float64 as well, math.sqrt(D) keeps the dtype"
            )
    return None


EMBED = Exercise(
    reference=embed,
    cases=_embed_cases,
    mistakes={
        known("embed-scale-absent"): lambda ids, E: E[ids],
        known("embed-scale-twice"): lambda ids, E: embed(ids, E) * math.sqrt(E.shape[1]),
        "the rows are multiplied by sqrt(V), the number of tokens; take sqrt(D), E.shape[1]": lambda ids, E: (
            E[ids] * math.sqrt(E.shape[0])
        ),
        "the rows are divided by sqrt(D); multiply them": lambda ids, E: E[ids] / math.sqrt(E.shape[1]),
    },
    remark=_another_dtype,
)


def _logits_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one token": (draw((1, 6)), draw((9, 6))),
        "several tokens": (draw((4, 6)), draw((9, 6))),
        "a batch of texts": (draw((2, 4, 6)), draw((9, 6))),
    }


LOGITS = Exercise(
    reference=unembed,
    cases=_logits_cases,
    mistakes={
        known("head-transposed"): lambda x, E: x @ E.reshape(E.shape[::-1]),
        "the logits are multiplied by sqrt(D) like the embedding; the head has no scale": lambda x, E: (
            unembed(x, E) * math.sqrt(E.shape[1])
        ),
        "the logits are divided by sqrt(D) like the scores of attention; the head has no scale": lambda x, E: (
            unembed(x, E) / math.sqrt(E.shape[1])
        ),
        "the rows of E are normalized to length 1; use them as they are": lambda x, E: unembed(
            x, E / np.linalg.norm(E, axis=1, keepdims=True)
        ),
    },
)
