"""The exercises on the embedding and the head."""

import math

import numpy as np

from gemma_np.model.embedding import embed, unembed
from support.exercise import Answer, Cases, Exercise, known


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
