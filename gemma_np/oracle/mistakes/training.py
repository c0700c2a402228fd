"""Mistakes in a training step: in the loss, and in the backward pass of what is right forward."""

from collections.abc import Callable, MutableMapping

import numpy as np

from gemma_np.model.attention import grouped_matmul_backward
from gemma_np.model.attention_mask import masked_softmax_backward
from gemma_np.model.embedding import embed_backward
from gemma_np.model.feed_forward import gelu_and_slope
from gemma_np.model.rms_norm import rms_norm_backward
from gemma_np.model.rope import rope, rope_backward
from gemma_np.model.soft_cap import soft_cap_backward
from gemma_np.model.transformer import lm_head_backward
from gemma_np.oracle.mistakes.mistake import mistake
from gemma_np.training.losses import cross_entropy, masked_mean

_NORMS = ("model.block.rms_norm_backward", "oracle.gradients.rms_norm_backward", "model.attention.rms_norm_backward")
_FIRST = ("*.q_norm.weight", "*.q_proj.weight")  # after the scores
_EMBEDDING = "model.embed_tokens.weight"

Backward = Callable[..., np.ndarray]


@mistake(
    fix="count the targets that are text only: sum(loss * mask) / sum(mask)",
    right=masked_mean,
    replaces="oracle.gradients.masked_mean",
    shows="loss",
)
def loss_over_padding(losses: np.ndarray, dlogits: np.ndarray, mask: np.ndarray | None = None) -> tuple:
    """The loss counts padding.

    losses [..., T], dlogits [..., T, V], mask bool [..., T] -> nats, dlogits [..., T, V]
    """
    return masked_mean(losses, dlogits)


@mistake(
    fix="divide the sum of all losses by the number of all targets: texts of different lengths have different weights",
    right=masked_mean,
    replaces="oracle.gradients.masked_mean",
    shows="loss",
)
def mean_of_means(losses: np.ndarray, dlogits: np.ndarray, mask: np.ndarray | None = None) -> tuple:
    """The loss is averaged within each text, then over the texts.

    losses [..., T], dlogits [..., T, V], mask bool [..., T] -> nats, dlogits [..., T, V]
    """
    mask = np.ones(losses.shape, bool) if mask is None else mask
    weights = mask / mask.sum(axis=-1, keepdims=True) / len(losses)
    return float((losses * weights).sum()), dlogits * weights[..., None]


@mistake(
    fix="shift once: the logits at position t predict token t + 1; leave it to the framework or do it yourself",
    right=cross_entropy,
    replaces="training.task.cross_entropy",
    shows="loss",
)
def targets_shifted_twice(logits: np.ndarray, targets: np.ndarray) -> tuple:
    """The targets are shifted twice: the logits at position t predict token t + 2.

    logits [..., T, V], targets [..., T] -> losses [..., T], dlogits [..., T, V]
    """
    return cross_entropy(logits, np.concatenate([targets[..., 1:], targets[..., -1:]], axis=-1))


@mistake(
    fix="the target of position t is token t + 1",
    right=cross_entropy,
    replaces="training.task.cross_entropy",
    shows="loss",
)
def targets_not_shifted(logits: np.ndarray, targets: np.ndarray) -> tuple:
    """The targets are not shifted: every token predicts itself, but for the first.

    logits [..., T, V], targets [..., T] -> losses [..., T], dlogits [..., T, V]
    """
    return cross_entropy(logits, np.concatenate([targets[..., :1], targets[..., :-1]], axis=-1))


@mistake(
    fix="add the gradient of the head to that of the embedding: they are one matrix",
    right=lm_head_backward,
    replaces="oracle.gradients.lm_head_backward",
    shows=_EMBEDDING,
)
def head_gradient_missing(*arguments: object, original: Backward) -> np.ndarray:
    """The gradient of the embedding has only the part of the lookup; that of the tied head is missing.

    Return dx [..., T, D].
    """
    dx = original(*arguments)
    of_weights: MutableMapping[str, np.ndarray] = arguments[-1]  # type: ignore[assignment]
    of_weights[_EMBEDDING] = np.zeros_like(of_weights[_EMBEDDING])
    return dx


@mistake(
    fix="add the gradient of the lookup to that of the head: they are one matrix",
    right=embed_backward,
    replaces="oracle.gradients.embed_backward",
    shows=_EMBEDDING,
)
def lookup_gradient_missing(dx: np.ndarray, ids: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """The gradient of the embedding has only the part of the tied head; that of the lookup is missing.

    dx [..., T, D], ids [..., T], embedding [V, D] -> dembedding [V, D]
    """
    return np.zeros_like(embedding)


@mistake(
    fix="multiply by sqrt(hidden_size) in the backward pass, too",
    right=embed_backward,
    replaces="oracle.gradients.embed_backward",
    shows=_EMBEDDING,
)
def embed_scale_not_in_gradient(dx: np.ndarray, ids: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """The gradient of the lookup lacks the factor sqrt(hidden_size).

    dx [..., T, D], ids [..., T], embedding [V, D] -> dembedding [V, D]
    """
    return embed_backward(dx, ids, embedding) / np.sqrt(embedding.shape[1])


@mistake(
    fix="add the gradients of all occurrences of a token (numpy.add.at, index_add_, segment_sum)",
    right=embed_backward,
    replaces="oracle.gradients.embed_backward",
    shows=_EMBEDDING,
)
def repeated_tokens_not_summed(dx: np.ndarray, ids: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """A token that occurs several times has the gradient of its last occurrence only.

    dx [..., T, D], ids [..., T], embedding [V, D] -> dembedding [V, D]
    """
    gradient = np.zeros_like(embedding)
    gradient[ids] = dx * np.sqrt(embedding.shape[1])
    return gradient


@mistake(
    fix="multiply by 1 - (y / cap)^2, where y is the capped score",
    right=soft_cap_backward,
    replaces="model.attention.soft_cap_backward",
    shows=_FIRST,
    models=("gemma2",),
)
def attncap_not_in_gradient(dy: np.ndarray, y: np.ndarray, cap: float) -> np.ndarray:
    """The backward pass of attention passes over the soft cap.

    dy and y [...] -> dx [...]
    """
    return dy


@mistake(
    fix="multiply by 1 - (y / cap)^2, where y is the capped logit",
    right=soft_cap_backward,
    replaces="model.transformer.soft_cap_backward",
    shows="grad.norm",
    models=("gemma2",),
)
def finalcap_not_in_gradient(dy: np.ndarray, y: np.ndarray, cap: float) -> np.ndarray:
    """The backward pass of the head passes over the final soft cap.

    dy and y [...] -> dx [...]
    """
    return dy


@mistake(
    fix="dscores = probs * (dprobs - sum(probs * dprobs))",
    right=masked_softmax_backward,
    replaces="model.attention.masked_softmax_backward",
    shows=_FIRST,
)
def softmax_sum_not_in_gradient(dprobs: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """The backward pass of the softmax lacks the sum: dscores is probs * dprobs.

    dprobs and probs [..., T, S] -> dscores [..., T, S]
    """
    return dprobs * probs


@mistake(
    fix="sum the gradients of keys and values over the query heads of each group",
    right=grouped_matmul_backward,
    replaces="model.attention.grouped_matmul_backward",
    shows=("*.k_norm.weight", "*.k_proj.weight"),
)
def group_not_summed(left: np.ndarray, right: np.ndarray, kv_heads: int) -> np.ndarray:
    """The gradients of keys and values come from the first query head of each group only.

    left [..., H, T, S], right [..., H, T, h] -> [..., K, S, h]
    """
    group = left.shape[-3] // kv_heads
    return grouped_matmul_backward(left[..., ::group, :, :], right[..., ::group, :, :], kv_heads)


@mistake(
    fix="sum the gradients of keys and values over the query heads of each group, do not average them",
    right=grouped_matmul_backward,
    replaces="model.attention.grouped_matmul_backward",
    shows=("*.k_norm.weight", "*.k_proj.weight"),
)
def group_averaged(left: np.ndarray, right: np.ndarray, kv_heads: int) -> np.ndarray:
    """The gradients of keys and values are averaged over the query heads of each group.

    left [..., H, T, S], right [..., H, T, h] -> [..., K, S, h]
    """
    return grouped_matmul_backward(left, right, kv_heads) * kv_heads / left.shape[-3]


@mistake(
    fix="rotate by the opposite angle in the backward pass: sin has the other sign",
    right=rope_backward,
    replaces="model.attention.rope_backward",
    shows=_FIRST,
)
def rope_forward_in_gradient(dy: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """The backward pass of RoPE rotates forward.

    dy [..., T, h], cos and sin [T, h/2] -> dx [..., T, h]
    """
    return rope(dy, cos, sin)


@mistake(
    fix="x changes the root of the mean square, too: subtract n * mean(dn * n) before dividing by it",
    right=rms_norm_backward,
    replaces=_NORMS,
    shows="grad.layers.*.resid_post",
)
def rms_constant_in_gradient(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple:
    """The backward pass of RMSNorm treats the root of the mean square as a constant.

    dy and x [..., D], weight [D] -> dx [..., D], dweight [D]
    """
    _, dweight = rms_norm_backward(dy, x, weight, eps)
    return dy * (1 + weight) / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps), dweight


@mistake(
    fix="multiply by 1 + weight in the backward pass, too",
    right=rms_norm_backward,
    replaces=_NORMS,
    shows="grad.layers.*.resid_post",
)
def norm_no_plus1_in_gradient(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple:
    """The backward pass of RMSNorm multiplies by weight, not by 1 + weight.

    dy and x [..., D], weight [D] -> dx [..., D], dweight [D]
    """
    return rms_norm_backward(dy, x, weight - 1, eps)


@mistake(
    fix="use the slope of GELU in its tanh form",
    right=gelu_and_slope,
    replaces="model.feed_forward.gelu_and_slope",
    shows="*.gate_proj.weight",
)
def silu_slope(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The backward pass of the gate has the slope of SiLU.

    x [...] -> the activation and its slope, [...] each
    """
    sigmoid = 1 / (1 + np.exp(-x))
    return gelu_and_slope(x)[0], sigmoid * (1 + x * (1 - sigmoid))


TRAINING_CATALOGUE = (
    loss_over_padding,
    mean_of_means,
    targets_shifted_twice,
    targets_not_shifted,
    head_gradient_missing,
    lookup_gradient_missing,
    embed_scale_not_in_gradient,
    repeated_tokens_not_summed,
    attncap_not_in_gradient,
    finalcap_not_in_gradient,
    softmax_sum_not_in_gradient,
    group_not_summed,
    group_averaged,
    rope_forward_in_gradient,
    rms_constant_in_gradient,
    norm_no_plus1_in_gradient,
    silu_slope,
)
"""Known mistakes in a training step, from the loss down."""
