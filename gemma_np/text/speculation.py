"""Speculative decoding: a draft proposes some tokens, and the model verifies all of them in one pass.

Rejection sampling keeps the distribution of the model exactly, whatever the draft: a proposal x, drawn from the draft's
distribution q, is accepted with probability min(1, p(x) / q(x)), where p is the model's; in place of the first one that
is rejected, a token is drawn from max(p - q, 0), normalized. A token y then comes out with probability

    q(y) min(1, p(y) / q(y)) + P(rejected) max(p(y) - q(y), 0) / P(rejected) = p(y).

With temperature 0, p and q have one token each: a proposal is accepted if the model would have chosen it.

Source: Leviathan et al., arXiv 2211.17192, section 2 and appendix A.1.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.text.drafts import Draft, Drafter, LookupDrafter, ModelDrafter, Proposals
from gemma_np.text.generation import OnToken, check_logits, next_logits, total_length
from gemma_np.text.sampling import Sampling, draw
from gemma_np.weights.formats import Weights

MODEL_TOKENS, LOOKUP_TOKENS = 2, 8
"""Tokens that a model, or a lookup, proposes at once by default: the fastest of 2, 4 and 8 in the benchmarks."""


@dataclass
class Acceptance:
    """How many tokens were proposed, and how many of these were accepted."""

    proposed: int = 0
    accepted: int = 0

    def __str__(self) -> str:
        rate = f", {self.accepted / self.proposed:.0%}" if self.proposed else ""
        return f"{self.accepted} of {self.proposed} proposed tokens accepted{rate}"


def speculative_ids(
    prompt: Sequence[int],
    weights: Weights,
    config: GemmaConfig,
    draft: Draft,
    max_new_tokens: int,
    *,
    sampling: Sampling,
    generator: np.random.Generator,
    draft_tokens: int | None = None,
    stop: Collection[int] = (),
    int8_cache: bool = False,
    on_token: OnToken | None = None,
    acceptance: Acceptance | None = None,
) -> Iterator[int]:
    """Generate as `generate_ids` does, from the same distribution, but several tokens in each pass of the model.

    draft: what proposes `draft_tokens` tokens for each pass (default: `MODEL_TOKENS` or `LOOKUP_TOKENS`); acceptance:
    counts the proposals.

    Raises GemmaError as `generate_ids` does, and when `draft_tokens` is less than 1.
    """
    if draft_tokens is None:
        draft_tokens = LOOKUP_TOKENS if draft == "lookup" else MODEL_TOKENS
    if draft_tokens < 1:
        raise GemmaError(f"draft_tokens: {draft_tokens}, expected 1 or more")
    length, counts = total_length(prompt, max_new_tokens, config), acceptance or Acceptance()
    dtype = weights["model.norm.weight"].dtype
    # A pass of up to `draft_tokens` + 1 tokens does not overwrite what its first token sees, and can be rewound.
    cache = KVCache(config, length, dtype=dtype, int8=int8_cache, spare=draft_tokens)
    drafter: Drafter = LookupDrafter(config.vocab_size)
    if draft != "lookup":
        drafter = ModelDrafter(draft, sampling, generator, length=length, most=draft_tokens, int8_cache=int8_cache)

    def generate() -> Iterator[int]:
        text = list(prompt)
        logits = next_logits(prompt, weights, config, cache)[None]
        tokens = [sampling.choose(logits[0], generator, text)]
        while True:
            for token, row in zip(tokens, logits, strict=False):  # no row is left over but those after a rejected token
                if token in stop:
                    return
                if on_token:
                    on_token(token, row)
                text.append(token)
                yield token
            if len(text) == length:
                return
            cache.rewind(len(text) - 1)  # the last token is unread, and the rejected ones are not in the text
            proposals = drafter.propose(text, min(draft_tokens, length - len(text) - 1))
            logits = lm_head(transformer([text[-1], *proposals.ids], weights, config, cache), weights, config)
            check_logits(logits, cache)
            tokens = verify(proposals, logits, sampling, generator, text)
            counts.proposed += len(proposals.ids)
            counts.accepted += len(tokens) - 1

    return generate()


def verify(
    proposals: Proposals,
    logits: np.ndarray,
    sampling: Sampling,
    generator: np.random.Generator,
    text: Sequence[int] = (),
) -> list[int]:
    """Return the proposals up to the first that is rejected, and one more token: in place of that one, or after all.

    logits [n + 1, V]: the model's own at each of n proposals and after the last; text: the ids before the proposals
    """
    tokens = list[int]()
    for token, q, row in zip(*proposals, logits, strict=False):
        p = sampling.probs(row, [*text, *tokens])
        if generator.random() >= acceptance_probability(p[token], q[token]):
            return [*tokens, draw(residual(p, q), generator)]
        tokens.append(token)
    return [*tokens, sampling.choose(logits[-1], generator, [*text, *tokens])]


def acceptance_probability(p: float, q: float) -> float:
    """Return the probability of accepting a token that has probability p in the model and q > 0 in the draft."""
    return min(1.0, p / q)


def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the distribution of the token that replaces a rejected one.

    p [V], q of the draft [V], or fewer if it lacks the last tokens of the vocabulary -> [V]
    """
    more = p.copy()
    more[: q.size] -= q
    np.maximum(more, 0, out=more)
    return more / more.sum() if more.any() else p  # p and q differ less than float64 can tell
