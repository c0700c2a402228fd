"""The exercises on speculative decoding: the rejection step, a chain of proposals, and the speed."""

from collections.abc import Callable, Sequence

import numpy as np

from gemma_np.text.speculation import acceptance_probability, residual
from support.exercise import Cases, Exercise

Step = tuple[float, np.ndarray]
Replacement = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _distribution(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.dirichlet(np.ones(shape[-1]), shape[:-1])


def _rejection_cases(generator: np.random.Generator) -> Cases:
    p, q = _distribution(generator, 2, 50)
    never = np.array([0.0, 0.4, 0.6])
    return {
        "a token that the draft proposes too often": (1, np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.7, 0.1])),
        "a token that it proposes too rarely": (0, np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.7, 0.1])),
        "a token that the model never chooses": (0, never, np.array([0.5, 0.1, 0.4])),
        "a copied token, where q is 1": (2, np.array([0.3, 0.1, 0.4, 0.2]), np.array([0.0, 0.0, 1.0, 0.0])),
        "a vocabulary of 50": (int(np.argmax(q)), p, q),
    }


def _rejection_step(token: int, p: np.ndarray, q: np.ndarray) -> Step:
    return acceptance_probability(p[token], q[token]), residual(p, q)


def _replaced(replacement: Replacement) -> Callable[[int, np.ndarray, np.ndarray], Step]:
    """Return the step with another distribution of the replacement."""
    return lambda token, p, q: (_rejection_step(token, p, q)[0], replacement(p, q))


def _accepted(probability: Callable[[int, np.ndarray, np.ndarray], float]) -> Callable[..., Step]:
    """Return the step with another probability of accepting the proposal."""
    return lambda token, p, q: (probability(token, p, q), residual(p, q))


def _without_the_token(token: int, p: np.ndarray, q: np.ndarray) -> Step:
    others = np.where(np.arange(len(p)) == token, 0, p)
    return _rejection_step(token, p, q)[0], others / others.sum()


REJECTION = Exercise(
    reference=_rejection_step,
    cases=_rejection_cases,
    mistakes={
        "the ratio is upside down: q / p accepts what the draft proposes too often; take p / q": _accepted(
            lambda token, p, q: min(1.0, q[token] / p[token])
        ),
        "the probability is p alone; the draft has already chosen the token with probability q, so divide by it": (
            _accepted(lambda token, p, q: p[token])
        ),
        "p / q exceeds 1 where the draft proposes a token too rarely; a probability is at most 1: min(1, p / q)": (
            _accepted(lambda token, p, q: p[token] / q[token])
        ),
        "the sum of min(p, q) is how often a proposal is accepted on average; "
        "for this one it is min(1, p / q) at the token": _accepted(lambda token, p, q: np.minimum(p, q).sum()),
        "the residual is that of q - p, the tokens that came too often; take p - q": _replaced(
            lambda p, q: residual(q, p)
        ),
        "the residual is not normalized; divide it by its sum": _replaced(lambda p, q: np.maximum(p - q, 0)),
        "the residual is p, of which the accepted proposals have supplied a part; subtract q, and normalize": (
            _replaced(lambda p, q: p.copy())
        ),
        "the residual is p without the rejected token; it is max(p - q, 0), normalized": _without_the_token,
        "the residual has negative numbers; where the draft proposes a token too often, nothing is missing: "
        "max(p - q, 0)": _replaced(lambda p, q: p - q),
        "p - q sums to zero, so it cannot be normalized; take max(p - q, 0) first": _replaced(
            lambda p, q: (p - q) / (p - q).sum()
        ),
        "the residual is |p - q|, which adds to what came too often; take max(p - q, 0)": _replaced(
            lambda p, q: np.abs(p - q) / np.abs(p - q).sum()
        ),
    },
)


Chain = tuple[int, np.ndarray]
Accepts = Callable[[float, float, float], bool]
Following = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def _chain_cases(generator: np.random.Generator) -> Cases:
    q = _distribution(generator, 4, 6)
    ids = q.argmax(axis=-1).tolist()
    p = _distribution(generator, 5, 6)
    for row, token, draft in zip(p, ids, q, strict=False):
        row[token] = 0
        row *= (1 - draft[token] / 2) / row.sum()
        row[token] = draft[token] / 2  # so each proposal is accepted with probability 1/2
    accepted, rejected = 0.48, 0.8
    return {
        "one proposal, accepted": (ids[:1], p[:2], q[:1], np.array([accepted])),
        "one proposal, rejected": (ids[:1], p[:2], q[:1], np.array([rejected])),
        "the second of four rejected": (ids, p, q, np.array([accepted, rejected, accepted, accepted])),
        "all four accepted": (ids, p, q, np.full(4, accepted)),
        "no proposals": ([], p[:1], q[:0], np.zeros(0)),
    }


def _accepts(u: float, p: float, q: float) -> bool:
    return u < acceptance_probability(p, q)


def _residual_at(k: int, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return residual(p[k], q[k])


def _chain(
    accepts: Accepts = _accepts, replacement: Following = _residual_at, more: int = 0
) -> Callable[[Sequence[int], np.ndarray, np.ndarray, np.ndarray], Chain]:
    """Return a verification that may be wrong: whether it accepts, what follows a rejection, and what it counts."""

    def verify_chain(ids: Sequence[int], p: np.ndarray, q: np.ndarray, uniforms: np.ndarray) -> Chain:
        for k, (token, u) in enumerate(zip(ids, uniforms, strict=True)):
            if not accepts(u, p[k, token], q[k, token]):
                return k + more, replacement(k, p, q)
        return len(ids) + more, p[-1]

    return verify_chain


def _counted_to_the_end(ids: Sequence[int], p: np.ndarray, q: np.ndarray, uniforms: np.ndarray) -> Chain:
    each = [_accepts(u, p[k, token], q[k, token]) for k, (token, u) in enumerate(zip(ids, uniforms, strict=True))]
    return sum(each), p[-1] if all(each) else _residual_at(each.index(False), p, q)


def _row_before(ids: Sequence[int], p: np.ndarray, q: np.ndarray, uniforms: np.ndarray) -> Chain:
    count, probs = _chain()(ids, p, q, uniforms)
    return count, p[max(count - 1, 0)] if count == len(ids) else probs


CHAIN = Exercise(
    reference=_chain(),
    cases=_chain_cases,
    mistakes={
        "a proposal is accepted where it should be rejected, and the reverse; "
        "accept if the random number is less than the probability": _chain(lambda u, p, q: not _accepts(u, p, q)),
        "proposals are accepted with probability p alone; it is min(1, p / q)": _chain(lambda u, p, q: u < p),
        "the ratio is upside down; it is p / q": _chain(lambda u, p, q: _accepts(u, q, p)),
        "no token corrects the rejected one: the last row predicts what follows all proposals; "
        "return the residual at the rejected one": _chain(replacement=lambda k, p, q: p[-1]),
        "the correction is drawn from p; draw it from the residual": _chain(replacement=lambda k, p, q: p[k]),
        "the residual is not normalized; divide it by its sum": _chain(
            replacement=lambda k, p, q: np.maximum(p[k] - q[k], 0)
        ),
        "the residual is that of q - p; take p - q": _chain(replacement=lambda k, p, q: residual(q[k], p[k])),
        "the token that follows is counted, too; return the number of accepted proposals": _chain(more=1),
        "proposals after the rejected one are accepted, but they continue a text that is not there; "
        "stop at the first rejection": _counted_to_the_end,
        "when all are accepted, the distribution is one row too early; p[n] comes after all of them": _row_before,
    },
)


def _speed_cases(generator: np.random.Generator) -> Cases:
    a, c = generator.uniform(0.3, 0.9, 2).tolist()
    return {
        "one proposal": (a, 1, c, 1.4),
        "four proposals": (a, 4, c, 2.2),
        "a draft that is never right": (0.0, 4, c, 2.2),
        "a perfect draft": (1.0, 8, c, 1.1),
        "lookup, which costs nothing": (a, 8, 0.0, 3.0),
    }


def _tokens(a: float, n: int) -> float:
    return sum(a**i for i in range(n + 1))


def _speed(a: float, n: int, c: float, v: float) -> float:
    return _tokens(a, n) / (n * c + v)


SPEED = Exercise(
    reference=_speed,
    cases=_speed_cases,
    mistakes={
        "the draft takes one step for each proposal; count n steps": lambda a, n, c, v: _tokens(a, n) / (c + v),
        "verifying is not free, and not as cheap as one token; the pass costs v": lambda a, n, c, v: (
            _tokens(a, n) / (n * c + 1)
        ),
        "one token is missing; a pass yields one token besides the accepted ones": lambda a, n, c, v: (
            (_tokens(a, n) - 1) / (n * c + v)
        ),
        "the sum ends one power too early; the last one is a to the power of n": lambda a, n, c, v: (
            _tokens(a, n - 1) / (n * c + v)
        ),
        "proposals after a rejected one are counted; the i-th one needs all before it, so it counts a to the power of "
        "i": lambda a, n, c, v: (1 + n * a) / (n * c + v),
        "it is upside down: tokens divided by time": lambda a, n, c, v: (n * c + v) / _tokens(a, n),
        "only the time is counted; a pass yields more than one token": lambda a, n, c, v: 1 / (n * c + v),
    },
)
