"""What learners wrote: right answers of any container and dtype pass, and wrong ones are told what is wrong."""

import math

import numpy as np
import pytest
from support import check
from support.exercise import Exercise
from support.exercises import (
    attention,
    backward_by_hand,
    cache_and_generation,
    embedding_and_head,
    geglu_and_the_block,
    local_and_global_layers,
    positions_and_rope,
    rms_norm,
    soft_capping,
    the_whole_model,
)

from gemma_np.model import attention as package_attention
from gemma_np.model import rms_norm as package_norm
from gemma_np.model.feed_forward import feed_forward
from gemma_np.model.rope import rope


def norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * (1 + weight)


def angles(positions, head_dim, base, divisor):
    return np.outer(positions / divisor, base ** (-2 * np.arange(head_dim // 2) / head_dim))


def sees(query_positions, key_positions, window):
    return [
        [0 <= query - key < (math.inf if window is None else window) for key in key_positions]
        for query in query_positions
    ]


def slots(length, slots):
    return tuple(max(p for p in range(length) if p % slots == slot) for slot in range(slots))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def nucleus(logits, temperature, top_p):
    probs = np.exp((logits - logits.max()) / temperature)
    probs /= probs.sum()
    return probs, np.argsort(-probs), top_p


def kept(logits, temperature, top_p):
    probs, order, top_p = nucleus(logits, temperature, top_p)
    before = np.cumsum(probs[order]) - probs[order]
    return np.where(np.isin(np.arange(len(probs)), order[before < top_p]), probs, 0)


def one_by_one(q, k):
    return np.stack([q[..., i, :, :] @ k[..., i * k.shape[-3] // q.shape[-3], :, :].mT for i in range(q.shape[-3])], -3)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        (geglu_and_the_block.GELU, gelu),
        (rms_norm.NORM, lambda *args: norm(*(np.asarray(arg, np.float64) for arg in args))),
        (rms_norm.NORM, lambda x, weight, eps: norm(x, weight, eps).tolist()),
        (rms_norm.NORM, lambda x, weight, eps: x / np.sqrt(np.einsum("...i,...i", x, x)[..., None] / len(weight) + eps)
         * (1 + weight)),
        (positions_and_rope.ANGLES, lambda *args: [np.cos(angles(*args)), np.sin(angles(*args))]),
        (positions_and_rope.ANGLES, lambda *args: np.stack([np.cos(angles(*args)), np.sin(angles(*args))])),
        (positions_and_rope.ROPE, lambda x, cos, sin: rope(x.astype(np.float64), cos, sin)),
        (local_and_global_layers.VISIBLE, sees),
        (local_and_global_layers.SLOT_POSITIONS, slots),
        (local_and_global_layers.SLOT_POSITIONS, lambda *args: list(slots(*args))),
        (attention.SCORES, lambda q, k, s: np.einsum("th,sh->ts", q, k) / s**0.5),
        (attention.GROUPED_SCORES, one_by_one),
        (soft_capping.SOFT_CAP, lambda x, cap: [cap * np.tanh(row / np.float64(cap)) for row in x]),
        (soft_capping.SOFT_CAP, lambda x, cap: np.vectorize(lambda number: cap * math.tanh(number / cap))(x)),
    ],
)  # fmt: skip
def test_a_right_answer_passes_in_whatever_form(exercise, answer):
    for seed in range(3):
        verdict = check(answer, exercise, seed)
        assert verdict.right, verdict


@pytest.mark.parametrize("form", [float, np.float32, np.array, np.float64, lambda n: np.array(n, np.float32)])
def test_a_number_may_be_a_float_or_an_array_without_axes(form):
    third = Exercise(lambda n: n / 3, lambda generator: {"one": (1.0,)}, {})
    assert check(lambda n: form(n / 3), third).right
    assert not check(lambda n: form(n / 2), third).right


def test_the_tolerance_is_that_of_the_narrower_dtype():
    exact = Exercise(lambda: np.array([1.0]), lambda generator: {"one": ()}, {})
    assert check(lambda: np.array([1 + 1e-5], np.float32), exact).right
    assert not check(lambda: np.array([1 + 1e-3], np.float32), exact).right
    assert not check(lambda: [1 + 1e-5], exact).right


def test_a_dtype_that_the_stub_asks_for_is_asked_for_in_words():
    said = check(lambda ids, E: E[ids] * np.sqrt(E.shape[1]), embedding_and_head.EMBED)
    assert not said.right
    assert said.message.startswith("right numbers, but float64 from an E of float32; np.sqrt(D) is a float64")


def layer(first, second):
    """A block from its two halves, each (part, norm before, norm after, x) -> x."""

    def one_layer(x, weights, config, layer):
        def norm(name):
            return lambda y: package_norm.rms_norm(y, weights[f"{name}.weight"], config.rms_norm_eps)

        def attend(y):
            return package_attention.attention(y, weights / "self_attn", config, layer)

        x = first(attend, norm("input_layernorm"), norm("post_attention_layernorm"), x)
        return second(
            lambda y: feed_forward(y, weights / "mlp"),
            norm("pre_feedforward_layernorm"),
            norm("post_feedforward_layernorm"),
            x,
        )

    return one_layer


def right(part, pre, post, x):
    return x + post(part(pre(x)))


def sum_normalized(part, pre, post, x):
    return post(x + part(pre(x)))


def as_in_2017(part, pre, post, x):
    return post(x + part(x))


def replaced(part, pre, post, x):
    x = pre(x)
    return x + post(part(x))


def not_normalized(part, pre, post, x):
    return x + post(part(x))


def no_residual(part, pre, post, x):
    return post(part(pre(x)))


def without_the_last_or_a_sum(logits, temperature, top_p):
    probs, order, top_p = nucleus(logits, temperature, top_p)
    probs[order[np.cumsum(probs[order]) > top_p]] = 0
    return probs


def both_minus(x, cos, sin):
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos - a * sin], axis=-1)


@pytest.mark.parametrize(
    ("exercise", "answer", "said"),
    [
        (geglu_and_the_block.BLOCK, layer(sum_normalized, sum_normalized), "both halves normalize the sum, as the or"),
        (geglu_and_the_block.BLOCK, layer(as_in_2017, as_in_2017), "normalize the sum and not their input"),
        (geglu_and_the_block.BLOCK, layer(replaced, replaced), "replaced by its norm in both halves"),
        (geglu_and_the_block.BLOCK, layer(replaced, right), "replaced by its norm before attention"),
        (geglu_and_the_block.BLOCK, layer(right, replaced), "replaced by its norm before the feed-forward"),
        (geglu_and_the_block.BLOCK, layer(right, not_normalized), "the feed-forward reads the stream as it is"),
        (geglu_and_the_block.BLOCK, layer(no_residual, right), "the output of attention replaces the stream"),
        (geglu_and_the_block.BLOCK, layer(right, no_residual), "the output of the feed-forward replaces the stream"),
        (rms_norm.NORM, lambda x, w, eps: x / np.sqrt(np.var(x, -1, keepdims=True) + eps) * (1 + w), "np.var measures"),
        (rms_norm.NORM, lambda x, w, eps: x / np.sqrt((x**2).sum(-1)[..., None] + eps) * (1 + w), "squares are summed"),
        (rms_norm.NORM, lambda x, w, eps: x / np.linalg.norm(x, axis=-1, keepdims=True) * (1 + w), "by its length"),
        (geglu_and_the_block.FEED_FORWARD, lambda x, g, u, d: x + (gelu(x @ g.T) * (x @ u.T)) @ d.T, "x is added to"),
        (cache_and_generation.TOP_P, kept, "the kept probabilities do not sum to 1; divide them by their sum"),
        (cache_and_generation.TOP_P, without_the_last_or_a_sum, "crosses top_p is dropped, and the kept probabilities"),
        (backward_by_hand.SOFTMAX, lambda d, p: p * (d - d.mean(-1, keepdims=True)), "the plain mean of dprobs is"),
        (positions_and_rope.ROPE, both_minus, "both sums have a minus; a rotation has a plus in the second"),
        (attention.GROUPED_SCORES, lambda q, k: q @ np.repeat(k, q.shape[-3] // k.shape[-3], axis=0).mT,
         "right for one head, as many key-value heads as query heads, 2 query heads for one key-value head, 4 query "
         "heads for 2 key-value heads; wrong for a batch of texts: axis 0 is repeated, which is the batch here"),
        (attention.GROUPED_SCORES, lambda q, k: q @ k.mT[..., :1, 0], "raises ValueError: matmul"),
        (soft_capping.CAPPED_PROBS, lambda scores, mask, cap: soft_capping.masked_softmax(scores, mask),
         "the scores are not capped; cap them"),
    ],
)  # fmt: skip
def test_a_wrong_answer_gets_a_sentence(exercise, answer, said):
    for seed in range(3):
        verdict = check(answer, exercise, seed)
        assert not verdict.right
        assert said in verdict.message


def test_no_hint_on_caps_has_a_number_where_the_cap_is_an_argument():
    for exercise in (soft_capping.SOFT_CAP, soft_capping.CAP_GRADIENT, soft_capping.CAPPED_PROBS):
        assert not [hint for hint in exercise.mistakes if "50" in hint and "argument" not in hint]


def test_a_way_through_the_answer_without_a_return_is_noticed():
    def without_head(name, value, layer, head, head_dim):
        if name == f"layers.{layer}.self_attn.context":
            value = value.copy()
            value[..., head * head_dim : (head + 1) * head_dim] = 0
            return value

    assert check(without_head, the_whole_model.WITHOUT_HEAD).message == (
        "right for the head's own record, the first head; wrong for another record: it returns nothing here: each way "
        "through it needs a `return`"
    )


def test_an_answer_that_raises_an_error_gets_only_the_hint_of_that_error():
    def raises(error):
        def answer(n):
            raise error

        return answer

    exercise = Exercise(lambda n: n, lambda generator: {"one": (1,)}, {"seven": raises(ValueError("7"))})
    assert check(raises(ValueError("7")), exercise).message == "wrong for one: seven"
    for other in (ValueError("8"), KeyError("7")):
        assert check(raises(other), exercise).message.startswith(f"wrong for one: raises {type(other).__name__}: ")
