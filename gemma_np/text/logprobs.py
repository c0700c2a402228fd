"""The log-probabilities of the tokens that were generated, and of the most likely ones in their places.

The names are those of OpenAI's API. The probabilities are the model's own, before temperature, penalty and truncation.
"""

from typing import NamedTuple

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.model.log_probs import log_softmax
from gemma_np.text.tokenizer import Tokenizer


class TokenLogprob(NamedTuple):
    """A token, its log-probability in nats, and the most likely tokens in its place, most likely first."""

    id: int
    token: str  # its piece, where a space is written as U+2581
    logprob: float
    top_logprobs: "list[TokenLogprob]"  # their own lists are empty


class Completion(NamedTuple):
    """A generated text, and the log-probability of each of its tokens."""

    text: str
    logprobs: list[TokenLogprob]


def token_logprob(id: int, logits: np.ndarray, count: int, tokenizer: Tokenizer) -> TokenLogprob:
    """Return the log-probability of a token in nats, and those of the `count` most likely ones: logits [V].

    Raises GemmaError when `count` is negative.
    """
    if count < 0:
        raise GemmaError(f"logprobs: {count}, expected 0 or more")
    log_probs = log_softmax(logits.astype(np.float64))
    likely = np.argsort(-logits, kind="stable")[:count].tolist()

    def entry(id: int, top: list[TokenLogprob]) -> TokenLogprob:
        piece = tokenizer.piece(id) if id < len(tokenizer) else ""  # the rows for images have none
        return TokenLogprob(id, piece, float(log_probs[id]), top)

    return entry(id, [entry(other, []) for other in likely])
