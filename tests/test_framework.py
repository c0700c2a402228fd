"""Live against the framework: random models against transformers in float32, single operations against torch in
float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model.attention import attention
from gemma_np.model.attention_mask import attention_mask, masked_softmax
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.feed_forward import gelu
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.rope import rope, rope_cos_sin
from gemma_np.model.soft_cap import soft_cap
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.scope import Record, Scope
from tests.support.strategies import configs, lengths, normal, random_ids, random_weights, seeds, sizes, splits
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.framework


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


@pytest.fixture(scope="module")
def framework(torch):
    from tests.support import framework

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    yield framework
    torch.set_num_threads(threads)


def logits(ids, weights, config, chunks=None):
    cache, pieces, start = KVCache(config, batch=ids.shape[:-1]) if chunks else None, [], 0
    for size in chunks or [ids.shape[-1]]:
        x = transformer(ids[..., start : start + size], weights, config, cache)
        pieces.append(lm_head(x, weights, config))
        start += size
    return np.concatenate(pieces, axis=-2)


# Whole models


@given(config=configs(), B=st.integers(1, 3), T=st.integers(1, 20), seed=seeds)
def test_logits_of_random_models(framework, config, B, T, seed):
    """Texts of one token up to several times the window, alone and in a batch."""
    weights, ids = random_weights(config, seed), random_ids(config, seed, B, T)
    expected = framework.framework_logits(framework.framework_model(config, weights), ids)
    assert_close(logits(ids, weights, config), expected, "framework")


@given(data=st.data(), config=configs(), B=st.integers(1, 2), T=st.integers(2, 12), seed=seeds)
def test_logits_read_piece_by_piece(framework, data, config, B, T, seed):
    """Both with their own cache, and each cutting the text in its own way."""
    weights, ids = random_weights(config, seed), random_ids(config, seed, B, T)
    model = framework.framework_model(config, weights)
    expected = framework.framework_logits(model, ids, chunks=data.draw(splits(T)))
    assert_close(logits(ids, weights, config, chunks=data.draw(splits(T))), expected, "framework")


# Single operations


@given(size=sizes, seed=seeds)
def test_gelu(torch, size, seed):
    x = np.append(3 * normal(seed, size), 1.0)  # far to the left, 1 + tanh has no digits to compare
    expected = torch.nn.functional.gelu(torch.tensor(x), approximate="tanh")
    assert_close(gelu(x), expected, "operation")


@given(size=sizes, cap=st.sampled_from([2.0, 50.0]), seed=seeds)
def test_soft_cap(torch, size, cap, seed):
    x = 3 * cap * normal(seed, size, 4)
    assert_close(soft_cap(x, cap), cap * torch.tanh(torch.tensor(x) / cap), "operation")


@given(T=lengths, D=sizes, eps=st.sampled_from([1e-6, 0.1]), seed=seeds)
def test_rms_norm(torch, T, D, eps, seed):
    x, weight = normal(seed, T, D), normal(seed + 1, D)
    expected = torch.nn.functional.rms_norm(torch.tensor(x), (D,), 1 + torch.tensor(weight), eps)
    assert_close(rms_norm(x, weight, eps), expected, "operation")


@given(T=lengths, half=st.integers(1, 4), start=st.integers(0, 100), divisor=st.sampled_from([1.0, 8.0]), seed=seeds)
def test_rope(torch, T, half, start, divisor, seed):
    """Channels i and i + h/2 as a complex number, multiplied by one of length 1."""
    x, positions = normal(seed, 2, T, 2 * half), range(start, start + T)
    frequencies = 1 / 10_000.0 ** (torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.tensor(positions, dtype=torch.float64) / divisor, frequencies)
    parts = torch.complex(torch.tensor(x[..., :half]), torch.tensor(x[..., half:]))
    turned = parts * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    assert_close(rope(x, *rope_cos_sin(positions, 2 * half, 10_000.0, divisor, np.float64)), expected, "operation")


@given(T=lengths, start=st.integers(0, 4), window=st.none() | st.integers(1, 5), seed=seeds)
def test_masked_softmax(torch, T, start, window, seed):
    scores, mask = normal(seed, 2, T, start + T), attention_mask(range(start, start + T), range(start + T), window)
    hidden = torch.tensor(scores).masked_fill(~torch.tensor(mask), -torch.inf)
    assert_close(masked_softmax(scores, mask), torch.softmax(hidden, dim=-1), "operation")


@given(T=lengths, V=sizes, D=sizes, seed=seeds)
def test_embedding_and_head(torch, T, V, D, seed):
    embedding, x = normal(seed, V, D), normal(seed + 1, T, D)
    ids = np.random.default_rng(seed).integers(0, V, T)
    rows = torch.nn.functional.embedding(torch.tensor(ids), torch.tensor(embedding))
    assert_close(embed(ids, embedding), rows * D**0.5, "operation")
    expected = torch.nn.functional.linear(torch.tensor(x), torch.tensor(embedding))
    assert_close(unembed(x, embedding), expected, "operation")


@given(config=configs("gemma3_text"), layer=st.integers(0, 3), T=st.integers(1, 8), seed=seeds)
def test_grouped_query_attention(torch, config, layer, T, seed):
    """From the rotated queries and keys to the mixed values; no cap, which torch's attention does not have."""
    weights = Scope(random_weights(config, seed, np.float64)) / f"model.layers.{layer}.self_attn"
    record = Record()
    attention(normal(seed, T, config.hidden_size), weights, config, layer, tape=record)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(record[name]) for name in ("q_rope", "k_rope", "v")),
        attn_mask=torch.tensor(attention_mask(range(T), range(T), config.window(layer))),
        scale=config.query_pre_attn_scalar**-0.5,
        enable_gqa=True,
    )
    assert_close(record["context"], expected.transpose(0, 1).reshape(T, -1), "operation")
