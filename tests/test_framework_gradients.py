"""The backward pass of single operations and of the losses against torch's autograd, in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model import attention, attention_mask, embedding, feed_forward, rms_norm, rope, soft_cap
from gemma_np.scope import Record, Scope
from gemma_np.training import losses
from gemma_np.weights.linear import linear_backward
from tests.support.strategies import batches, configs, lengths, normal, random_weights, seeds, sizes
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.framework


@pytest.fixture(scope="module")
def torch():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def autograd(torch, function, dy, *arrays):
    """The gradients that torch finds for (function(*arrays) * dy).sum()."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    (function(*tensors) * torch.tensor(dy)).sum().backward()
    return [tensor.grad.numpy() for tensor in tensors]


def check(found, expected):
    for a, b in zip(found, expected, strict=True):
        if np.abs(b).max() < 1e-13:  # a single key: its probability is 1, whatever its score
            assert np.abs(a).max() < 1e-12
        else:
            assert_close(a, b, "gradient")


@given(batches, sizes, sizes, seeds)
def test_linear(torch, batch, n_in, n_out, seed):
    x, weight, dy = normal(seed, *batch, 3, n_in), normal(seed + 1, n_out, n_in), normal(seed + 2, *batch, 3, n_out)
    check(linear_backward(dy, x, weight), autograd(torch, torch.nn.functional.linear, dy, x, weight))


@given(T=lengths, V=sizes, D=sizes, seed=seeds)
def test_embedding_and_its_tied_head(torch, T, V, D, seed):
    E, ids = normal(seed, V, D), np.random.default_rng(seed).integers(0, V, T)
    dx, dlogits = normal(seed + 1, T, D), normal(seed + 2, T, V)

    def both(E):
        x = torch.nn.functional.embedding(torch.tensor(ids), E) * D**0.5
        return torch.cat([x, x @ E.T], dim=-1)

    x = embedding.embed(ids, E)
    dx_head, dE = linear_backward(dlogits, x, E)
    dE += embedding.embed_backward(dx + dx_head, ids, E)
    check([dE], autograd(torch, both, np.concatenate([dx, dlogits], axis=-1), E))


@given(T=lengths, D=sizes, eps=st.sampled_from([1e-6, 0.1]), seed=seeds)
def test_rms_norm(torch, T, D, eps, seed):
    x, weight, dy = normal(seed, T, D), normal(seed + 1, D), normal(seed + 2, T, D)

    def theirs(x, weight):
        return torch.nn.functional.rms_norm(x, (D,), 1 + weight, eps)

    check(rms_norm.rms_norm_backward(dy, x, weight, eps), autograd(torch, theirs, dy, x, weight))


@given(T=lengths, half=st.integers(1, 4), start=st.integers(0, 100), seed=seeds)
def test_rope(torch, T, half, start, seed):
    x, dy = normal(seed, 2, T, 2 * half), normal(seed + 1, 2, T, 2 * half)
    cos, sin = rope.rope_cos_sin(range(start, start + T), 2 * half, 10_000.0, 1.0, np.float64)
    rotation = torch.complex(torch.tensor(cos), torch.tensor(sin))[..., :half]

    def theirs(x):
        rotated = torch.complex(x[..., :half], x[..., half:]) * rotation
        return torch.cat([rotated.real, rotated.imag], dim=-1)

    check([rope.rope_backward(dy, cos, sin)], autograd(torch, theirs, dy, x))


@given(size=sizes, cap=st.sampled_from([2.0, 50.0]), seed=seeds)
def test_soft_cap(torch, size, cap, seed):
    x, dy = cap * normal(seed, size, 4), normal(seed + 1, size, 4)
    y = soft_cap.soft_cap(x, cap)
    check([soft_cap.soft_cap_backward(dy, y, cap)], autograd(torch, lambda x: cap * torch.tanh(x / cap), dy, x))


@given(T=lengths, window=st.none() | st.integers(1, 5), seed=seeds)
def test_masked_softmax(torch, T, window, seed):
    scores, dy, mask = (
        normal(seed, 2, T, T),
        normal(seed + 1, 2, T, T),
        attention_mask.attention_mask(range(T), range(T), window),
    )

    def theirs(scores):
        return torch.softmax(scores.masked_fill(~torch.tensor(mask), -torch.inf), dim=-1)

    probs = attention_mask.masked_softmax(scores, mask)
    check([attention_mask.masked_softmax_backward(dy, probs)], autograd(torch, theirs, dy, scores))


@given(T=lengths, D=sizes, F=sizes, seed=seeds)
def test_feed_forward(torch, T, D, F, seed):
    names = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    x, dy = normal(seed, T, D), normal(seed + 1, T, D)
    arrays = [normal(seed + 2, F, D), normal(seed + 3, F, D), normal(seed + 4, D, F)]

    def theirs(x, gate, up, down):
        return (torch.nn.functional.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)) @ down.T

    weights, record, gradients = Scope(dict(zip(names, arrays, strict=True))), Record(), {}
    feed_forward.feed_forward(x, weights, record)
    dx = feed_forward.feed_forward_backward(dy, x, weights, Scope(record), Scope(gradients))
    check([dx, *(gradients[name] for name in names)], autograd(torch, theirs, dy, x, *arrays))


@given(config=configs(), layer=st.integers(0, 3), T=lengths, seed=seeds)
def test_attention(torch, config, layer, T, seed):
    """Local and global layers, with and without a cap, with and without the norms of queries and keys."""
    H, K, h = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    prefix = f"model.layers.{layer}.self_attn."
    weights = random_weights(config, seed, np.float64)
    named = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    x, dy = normal(seed, T, config.hidden_size), normal(seed + 1, T, config.hidden_size)
    cos, sin = rope.rope_cos_sin(range(T), h, *config.rope(layer), np.float64)
    rotation = torch.complex(torch.tensor(cos), torch.tensor(sin))[..., : h // 2]
    mask = torch.tensor(attention_mask.attention_mask(range(T), range(T), config.window(layer)))

    def heads(x, weight, count, norm):
        y = (x @ weight.T).reshape(T, count, h).transpose(0, 1)
        if norm is not None:
            y = torch.nn.functional.rms_norm(y, (h,), 1 + norm, config.rms_norm_eps)
        return y

    def rotated(y):
        y = torch.complex(y[..., : h // 2], y[..., h // 2 :]) * rotation
        return torch.cat([y.real, y.imag], dim=-1)

    def theirs(x, *values):
        w = dict(zip(named, values, strict=True))
        q = rotated(heads(x, w["q_proj.weight"], H, w.get("q_norm.weight")))
        k = rotated(heads(x, w["k_proj.weight"], K, w.get("k_norm.weight"))).repeat_interleave(H // K, dim=0)
        v = heads(x, w["v_proj.weight"], K, None).repeat_interleave(H // K, dim=0)
        scores = q @ k.transpose(1, 2) * config.query_pre_attn_scalar**-0.5
        if cap := config.attn_logit_softcapping:
            scores = cap * torch.tanh(scores / cap)
        context = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ v
        return context.transpose(0, 1).reshape(T, H * h) @ w["o_proj.weight"].T

    record, gradients = Record(), {}
    attention.attention(x, Scope(named), config, layer, tape=record)
    dx = attention.attention_backward(
        dy, x, Scope(named), config, layer, record=Scope(record), gradients=Scope(gradients)
    )
    check([dx, *(gradients[name] for name in named)], autograd(torch, theirs, dy, x, *named.values()))


def by_definition(torch, name):
    """Each loss by its textbook formula, from log P_S and log P_T."""

    def jensen_shannon(s, t):
        mixture = 0.3 * t.exp() + 0.7 * s.exp()
        return 0.3 * (t.exp() * (t - mixture.log())).sum(-1) + 0.7 * (s.exp() * (s - mixture.log())).sum(-1)

    return {
        "soft_cross_entropy": lambda s, t: -(t.exp() * s).sum(-1),
        "forward_kl": lambda s, t: torch.nn.functional.kl_div(s, t, log_target=True, reduction="none").sum(-1),
        "reverse_kl": lambda s, t: torch.nn.functional.kl_div(t, s, log_target=True, reduction="none").sum(-1),
        "jensen_shannon": jensen_shannon,
    }[name]


@pytest.mark.parametrize("name", ["soft_cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon"])
@given(T=lengths, V=sizes, seed=seeds)
def test_losses_against_a_teacher(torch, name, T, V, seed):
    logits, teacher = 2 * normal(seed, T, V), 2 * normal(seed + 1, T, V)
    definition = by_definition(torch, name)

    def theirs(logits):
        return definition(torch.log_softmax(logits, -1), torch.log_softmax(torch.tensor(teacher), -1))

    ours = {"jensen_shannon": lambda a, b: losses.jensen_shannon(a, b, beta=0.3)}.get(name, getattr(losses, name))
    found, dlogits = ours(logits, teacher)
    assert_close(found, theirs(torch.tensor(logits)), "gradient")
    check([dlogits], autograd(torch, theirs, np.ones(T), logits))


@given(T=lengths, V=sizes, seed=seeds)
def test_cross_entropy(torch, T, V, seed):
    logits, targets = 2 * normal(seed, T, V), np.random.default_rng(seed).integers(0, V, T)

    def theirs(logits):
        return torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="none")

    found, dlogits = losses.cross_entropy(logits, targets)
    assert_close(found, theirs(torch.tensor(logits)), "gradient")
    check([dlogits], autograd(torch, theirs, np.ones(T), logits))
