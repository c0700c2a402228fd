"""Choose the next token from its logits: the most likely one, or a sample from a truncated distribution.

Source: top-k: Fan et al., arXiv 1805.04833; top-p (nucleus): Holtzman et al., arXiv 1904.09751; min-p: Nguyen et al.,
arXiv 2407.01082; repetition penalty: Keskar et al., arXiv 1909.05858, section 4.1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gemma_np.errors import GemmaError


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    First, `repetition_penalty` divides the positive logits of the tokens that the text already has, prompt included,
    and multiplies their negative ones: above 1 they become less likely, at 1 nothing changes.

    Temperature 0 is greedy decoding. Otherwise the logits are divided by the temperature, and a token is sampled from
    the `top_k` most likely ones, of these from the fewest whose probabilities add up to `top_p`, and of these from the
    ones with at least `min_p` times the probability of the most likely one.

    Names, meanings and order are those of transformers.

    Raises GemmaError for values out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise GemmaError(f"temperature: {self.temperature}, expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise GemmaError(f"top_k: {self.top_k}, expected 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise GemmaError(f"top_p: {self.top_p}, expected more than 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise GemmaError(f"min_p: {self.min_p}, expected 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise GemmaError(f"repetition_penalty: {self.repetition_penalty}, expected more than 0 (1 changes nothing)")

    def chooser(self, prompt: Sequence[int], seed: int | None = None) -> Callable[[np.ndarray], int]:
        """Return a function that chooses the tokens after a prompt, one after the other: logits [V] -> id."""
        text, generator = list(prompt), np.random.default_rng(seed)

        def choose(logits: np.ndarray) -> int:
            text.append(self.choose(logits, generator, text))
            return text[-1]

        return choose

    def choose(self, logits: np.ndarray, generator: np.random.Generator, text: Sequence[int] = ()) -> int:
        """Choose the next token after a text from its logits [V]; return its id."""
        if self.temperature == 0:
            return int(self.penalized(logits, text).argmax())
        ids, probs = self.distribution(logits, text)
        return int(generator.choice(ids, p=probs))

    def probs(self, logits: np.ndarray, text: Sequence[int] = ()) -> np.ndarray:
        """Return the probability with which `choose` returns each token: logits [V] -> float64 [V]."""
        probs = np.zeros(logits.size)
        if self.temperature == 0:
            probs[self.penalized(logits, text).argmax()] = 1
        else:
            ids, likely = self.distribution(logits, text)
            probs[ids] = likely
        return probs

    def penalized(self, logits: np.ndarray, text: Sequence[int]) -> np.ndarray:
        """Return the logits after the repetition penalty: [V] -> [V]."""
        if self.repetition_penalty == 1:
            return logits
        logits, ids = logits.copy(), list(set(text))
        repeated = logits[ids]
        logits[ids] = np.where(repeated > 0, repeated / self.repetition_penalty, repeated * self.repetition_penalty)
        return logits

    def distribution(self, logits: np.ndarray, text: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that may be sampled, most likely first, and their probabilities in float64.

        logits [V] -> ids [n], probs [n]; temperature above 0.
        """
        logits = self.penalized(logits, text)
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
        if self.min_p is not None:
            likely = probs >= self.min_p * probs[0]
            ids, probs = ids[likely], probs[likely]
            probs /= probs.sum()
        return ids, probs


def draw(probs: np.ndarray, generator: np.random.Generator) -> int:
    """Draw a token from a distribution, probs float64 [V]; return its id."""
    return int(generator.choice(probs.size, p=probs))
