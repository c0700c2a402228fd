"""Choose the next token from its logits: the most likely one, or a sample from a truncated distribution.

Source: top-k: Fan et al., arXiv 1805.04833; top-p (nucleus): Holtzman et al., arXiv 1904.09751.
"""

import math
from dataclasses import dataclass

import numpy as np

from gemma_np.errors import GemmaError


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    Temperature 0 is greedy decoding. Otherwise the logits are divided by the temperature, and a token is sampled from
    the `top_k` most likely ones, or of these from the fewest whose probabilities add up to `top_p`.

    Raises GemmaError for values out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise GemmaError(f"temperature: {self.temperature}, expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise GemmaError(f"top_k: {self.top_k}, expected 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise GemmaError(f"top_p: {self.top_p}, expected more than 0 and at most 1")

    def choose(self, logits: np.ndarray, generator: np.random.Generator) -> int:
        """Choose the next token from its logits [V]; return its id."""
        if self.temperature == 0:
            return int(logits.argmax())
        ids, probs = self.distribution(logits)
        return int(generator.choice(ids, p=probs))

    def probs(self, logits: np.ndarray) -> np.ndarray:
        """Return the probability with which `choose` returns each token: logits [V] -> float64 [V]."""
        probs = np.zeros(logits.size)
        if self.temperature == 0:
            probs[logits.argmax()] = 1
        else:
            ids, likely = self.distribution(logits)
            probs[ids] = likely
        return probs

    def distribution(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that may be sampled, most likely first, and their probabilities in float64.

        logits [V] -> ids [n], probs [n]; temperature above 0.
        """
        if self.top_k and self.top_k < logits.size:
            ids = np.argpartition(-logits, self.top_k)[: self.top_k]  # unsorted, which is cheaper than sorting all
            ids = ids[np.argsort(-logits[ids], kind="stable")]
        else:
            ids = np.argsort(-logits, kind="stable")
        below = logits[ids].astype(np.float64) - float(logits[ids[0]])  # so no temperature is too low to divide by
        with np.errstate(over="ignore"):
            probs = np.exp(below / self.temperature)
        probs /= probs.sum()
        if self.top_p is not None:
            before = np.cumsum(probs) - probs  # the total probability of all more likely tokens
            ids, probs = ids[before < self.top_p], probs[before < self.top_p]
            probs /= probs.sum()
        return ids, probs


def draw(probs: np.ndarray, generator: np.random.Generator) -> int:
    """Draw a token from a distribution, probs float64 [V]; return its id."""
    return int(generator.choice(probs.size, p=probs))
