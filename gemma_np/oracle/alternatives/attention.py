"""Wrong scores, caps and weighted sums."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.attention import grouped_matmul, merge_heads
from gemma_np.model.rope import rope
from gemma_np.model.soft_cap import soft_cap
from gemma_np.oracle.alternatives.alternative import HALVES, Alternative, Family, alternatives, near, rounded
from gemma_np.oracle.alternatives.embedding import CAPPED_EARLY
from gemma_np.oracle.alternatives.rope import angles
from gemma_np.oracle.operation import Operation

Map = Callable[[int, int], np.ndarray]

KV_HEADS: dict[str, Map] = {
    "query head i reads key-value head i % K": lambda H, K: np.arange(H) % K,
    "all query heads read key-value head 0": lambda H, K: np.zeros(H, int),
    "query heads read the key-value heads backwards": lambda H, K: K - 1 - np.arange(H) // (H // K),
}


def _with_heads_of(heads: np.ndarray, shared: np.ndarray, kv_heads: Map) -> np.ndarray:
    """Multiply the matrix of each query head by that of a key-value head: [H, T, a], [K, a, b] -> [H, T, b]."""
    return heads @ shared[kv_heads(len(heads), len(shared))]


@alternatives("layers.*.self_attn.scores")
def other_scores(operation: Operation) -> Iterator[Alternative | Family]:
    """Yield other scales, other key-value heads, and queries and keys that are not rotated."""
    yield Family(
        _says_scale,
        partial(_scores, kv_heads=None),
        np.logspace(-2, 6, 33).tolist(),
        _known_scale,
        lambda op: list(_names_of_scale(op.config).values()),
    )
    H, K = operation.config.num_attention_heads, operation.config.num_key_value_heads
    own = operation.config.query_pre_attn_scalar
    if 1 < K < H:
        for what, kv_heads in KV_HEADS.items():
            known = "gqa-tile" if "%" in what else ""
            yield Alternative(what, partial(_scores, value=own, kv_heads=kv_heads), known)
            yield Family(
                partial(_says_heads_and_scale, what),
                partial(_scores, kv_heads=kv_heads),
                np.logspace(-2, 6, 33).tolist(),
                partial(_known_heads_and_scale, known),
            )
    for q, k in (("q", "k_rope"), ("q_rope", "k"), ("q", "k")):
        names = " and ".join(name for name in (q, k) if not name.endswith("rope"))
        yield Alternative(f"it reads {names} before the rotation", partial(_unrotated, q=q, k=k))
    for name, dtype in HALVES.items():
        yield Alternative(f"they are computed in {name}", partial(_scores_in, dtype=dtype))
    if len(operation.reference.passes) > 1:
        yield Alternative("the keys of earlier passes are not rotated", _unrotated_cache)


def _says_heads_and_scale(what: str, op: Operation, value: float) -> str:
    return f"{what}, and {_says_scale(op, value)}"


def _known_heads_and_scale(known: str, op: Operation, value: float) -> str:
    scale = _known_scale(op, value)
    return f"{known} {scale}" if known and scale else ""


def _scores_in(op: Operation, dtype: type) -> np.ndarray:
    q, k = (rounded(op[f"self_attn.{name}_rope"], dtype) for name in "qk")
    scores = grouped_matmul(q / math.sqrt(op.config.query_pre_attn_scalar), k.swapaxes(-1, -2))
    return rounded(scores, dtype)


def _unrotated_cache(op: Operation) -> np.ndarray:
    """Return the scores if the keys of earlier passes were kept before their rotation."""
    starts = op.reference.pass_starts
    is_earlier = np.arange(len(starts)) < starts[:, None]  # [N, N]
    return np.where(is_earlier, _unrotated(op, "q_rope", "k"), op.right)


def _scores(op: Operation, value: float, kv_heads: Map | None) -> np.ndarray:
    q, keys = op["self_attn.q_rope"] / math.sqrt(value), op["self_attn.k_rope"].swapaxes(-1, -2)
    return _with_heads_of(q, keys, kv_heads) if kv_heads else grouped_matmul(q, keys)


def _unrotated(op: Operation, q: str, k: str) -> np.ndarray:
    norm = "_norm" if op.config.has_qk_norm else ""
    queries, keys = (op[f"self_attn.{name}" if name.endswith("rope") else f"self_attn.{name}{norm}"] for name in (q, k))
    return grouped_matmul(queries / math.sqrt(op.config.query_pre_attn_scalar), keys.swapaxes(-1, -2))


def _names_of_scale(config: GemmaConfig) -> dict[str, float]:
    h = config.head_dim
    return {
        "hidden_size / num_attention_heads": config.hidden_size / config.num_attention_heads,
        "head_dim": h,
        "hidden_size": config.hidden_size,
        "head_dim squared": h * h,
        "query_pre_attn_scalar squared": config.query_pre_attn_scalar**2,
        "1: no scale": 1.0,
    }


def _says_scale(op: Operation, value: float) -> str:
    names = (name for name, number in _names_of_scale(op.config).items() if near(value, number))
    is_named = next((f"; {value:.6g} is {name}" for name in names), "")
    return f"scores are divided by sqrt({value:.6g}), expected sqrt({op.config.query_pre_attn_scalar:g}){is_named}"


def _known_scale(op: Operation, value: float) -> str:
    names = _names_of_scale(op.config)
    if near(value, names["head_dim"]):
        return "qscale-head-dim"
    return "qscale-hidden-over-heads" if near(value, names["hidden_size / num_attention_heads"]) else ""


@alternatives("layers.*.self_attn.scores_capped", "logits_capped")
def other_caps(operation: Operation) -> Iterator[Alternative | Family]:
    """Yield other formulas and other caps."""
    final = operation.layer is None
    formulas: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
        "is not capped": lambda x, cap: x,
        "is x * tanh(x / cap)": lambda x, cap: x * np.tanh(x / cap),
        "is tanh(x / cap)": lambda x, cap: np.tanh(x / cap),
        "is cap * tanh(x)": lambda x, cap: cap * np.tanh(x),
        "is clipped to -cap and cap": lambda x, cap: np.clip(x, -cap, cap),
        "is capped twice": lambda x, cap: soft_cap(soft_cap(x, cap), cap),
        "is cap * x / (cap + |x|)": lambda x, cap: cap * x / (cap + np.abs(x)),
        "is cap * (2 * sigmoid(x / cap) - 1)": lambda x, cap: cap * np.tanh(x / cap / 2),
        "is cap * atan(x / cap)": lambda x, cap: cap * np.arctan(x / cap),
    }
    for what, formula in formulas.items():
        known = "cap-formula" if what == "is x * tanh(x / cap)" else ""
        if what == "is not capped":
            known = "finalcap-missing" if final else "attncap-missing"
        together = (CAPPED_EARLY,) if known == "finalcap-missing" else ()
        yield Alternative(what, partial(_capped, formula=formula), known, together=together)
    yield Family(
        lambda op, value: f"the cap is {value:.6g}, expected {_cap(op):g}",
        lambda op, value: soft_cap(_uncapped(op), value),
        np.logspace(-1, 3, 41).tolist(),
        lambda op, value: (
            "finalcap-50" if op.layer is None and near(value, op.config.attn_logit_softcapping or 0) else ""
        ),
        lambda op: [op.config.attn_logit_softcapping or 50.0, op.config.final_logit_softcapping or 30.0],
    )


def _cap(op: Operation) -> float:
    cap = op.config.final_logit_softcapping if op.layer is None else op.config.attn_logit_softcapping
    assert cap is not None
    return cap


def _uncapped(op: Operation) -> np.ndarray:
    return op[op.part.removesuffix("_capped")]


def _capped(op: Operation, formula: Callable[[np.ndarray, float], np.ndarray]) -> np.ndarray:
    return formula(_uncapped(op), _cap(op))


@alternatives("layers.*.self_attn.context")
def other_contexts(operation: Operation) -> Iterator[Alternative]:
    """Yield other values, other key-value heads, and heads that are merged in another way."""
    H, K = operation.config.num_attention_heads, operation.config.num_key_value_heads
    if 1 < K < H:
        for what, kv_heads in KV_HEADS.items():
            yield Alternative(what, partial(_context, kv_heads=kv_heads), "gqa-tile" if "%" in what else "")
    yield Alternative(
        "the heads are merged without a transpose",
        lambda op: _heads(op).reshape(len(op.reference.ids), -1),
        looks_ahead=True,
    )
    yield Alternative(
        "the heads are merged channel by channel",
        lambda op: _heads(op).transpose(1, 2, 0).reshape(len(op.reference.ids), -1),
    )
    yield Alternative("the values are rotated", lambda op: _context(op, _rotated_values(op)))
    yield Alternative("it reads keys in place of values", lambda op: _context(op, op["self_attn.k_rope"]))
    yield Alternative(
        "it reads keys before the rotation in place of values", lambda op: _context(op, op["self_attn.k"])
    )
    yield Alternative(
        "the probabilities are transposed",
        lambda op: merge_heads(grouped_matmul(op["self_attn.probs"].swapaxes(-1, -2), op["self_attn.v"])),
        looks_ahead=True,
    )
    yield Alternative(
        "it reads the values of the token before", lambda op: _context(op, np.roll(op["self_attn.v"], 1, axis=-2))
    )


def _heads(op: Operation) -> np.ndarray:
    return grouped_matmul(op["self_attn.probs"], op["self_attn.v"])


def _context(op: Operation, values: np.ndarray | None = None, kv_heads: Map | None = None) -> np.ndarray:
    values = op["self_attn.v"] if values is None else values
    probs = op["self_attn.probs"]
    return merge_heads(_with_heads_of(probs, values, kv_heads) if kv_heads else grouped_matmul(probs, values))


def _rotated_values(op: Operation) -> np.ndarray:
    turn = angles(op)
    return rope(op["self_attn.v"], np.cos(turn), np.sin(turn))
