"""Embedding and output head."""

import numpy as np
from hypothesis import given

from gemma_np.model.embedding import embed, unembed
from tests.support import naive
from tests.support.strategies import batches, lengths, normal, seeds, sizes
from tests.support.tolerances import assert_close


@given(batches, lengths, sizes, sizes, seeds)
def test_embed_against_loops(batch, T, V, D, seed):
    embedding = normal(seed, V, D)
    ids = np.random.default_rng(seed).integers(0, V, (*batch, T))
    expected = [naive.embed(token, embedding) for token in ids.ravel()]
    assert_close(embed(ids, embedding), np.reshape(expected, (*batch, T, D)), "operation")


@given(batches, lengths, sizes, sizes, seeds)
def test_unembed_against_loops(batch, T, V, D, seed):
    x, embedding = normal(seed, *batch, T, D), normal(seed + 1, V, D)
    expected = [naive.linear(vector, embedding) for vector in x.reshape(-1, D)]
    assert_close(unembed(x, embedding), np.reshape(expected, (*batch, T, V)), "operation")


def test_the_head_is_the_embedding_without_its_scale():
    embedding = normal(0, 7, 4)
    assert_close(unembed(embed(np.arange(7), embedding), embedding), 2 * embedding @ embedding.T, "operation")
