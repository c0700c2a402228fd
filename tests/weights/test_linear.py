"""The product with a weight, however it is stored."""

import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gemma_np.weights.linear
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import Int8, dequantize
from gemma_np.weights.linear import integer_product, integer_sums, linear, round_to_int8, tile_bytes
from tests.support import naive
from tests.support.stored_weights import KINDS, random_blocks, random_weight
from tests.support.strategies import batches, normal, seeds, sizes
from tests.support.tolerances import assert_close

WIDENED = [kind for kind in KINDS if kind != "w8a8"]


@given(batches, sizes, sizes, seeds)
def test_linear_against_loops(batch, size_in, size_out, seed):
    x, weight = normal(seed, *batch, size_in), normal(seed + 1, size_out, size_in)
    expected = [naive.linear(vector, weight) for vector in x.reshape(-1, size_in)]
    assert_close(linear(x, weight), np.reshape(expected, (*batch, size_out)), "operation")


@given(st.integers(1, 10), st.integers(1, 60), st.integers(1, 20), st.integers(1, 300), st.integers(1, 30), seeds)
def test_a_few_vectors_are_multiplied_by_a_few_rows_at_a_time(vectors, rows, columns, product, result, seed):
    """Tiles of any size, on any number of threads, and none that is lost."""
    x, weight = normal(seed, vectors, columns), normal(seed + 1, rows, columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemma_np.weights.linear, "_AVX512", True)
        patch.setattr(gemma_np.weights.linear, "_SMALL_PRODUCT", product)
        patch.setattr(gemma_np.weights.linear, "_SMALL_RESULT", result)
        patch.setattr(gemma_np.weights.linear, "_ONE_CORE", 500)
        assert_close(linear(x, weight), x @ weight.T, "operation")


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 8, 9, 16])
@pytest.mark.parametrize("shape", [(2048, 640), (640, 2048), (2304, 9216)])
def test_a_few_vectors_by_the_matrices_of_released_models(shape, vectors, avx512, monkeypatch):
    monkeypatch.setattr(gemma_np.weights.linear, "_AVX512", avx512)
    weight, x = normal(0, *shape, dtype=np.float32), normal(1, vectors, shape[1], dtype=np.float32)
    for wide, tall in ((weight, x), (np.asfortranarray(weight), x), (weight, np.asfortranarray(x))):
        found = linear(tall, wide)
        assert found.dtype == np.float32
        assert_close(found, x.astype(np.float64) @ weight.T, "model")


def test_linear_takes_what_is_not_contiguous():
    x, weight = normal(0, 4, 3, 5), normal(1, 7, 5)
    assert_close(linear(x.swapaxes(0, 1), weight), linear(x, weight).swapaxes(0, 1), "operation")


@given(st.sampled_from(WIDENED), st.integers(1, 20), st.integers(1, 30), st.integers(1, 60), seeds)
def test_a_stored_weight_multiplies_as_what_it_stands_for(kind, vectors, rows, tile, seed):
    """Tiles of any size, on any number of threads, and none that is lost or counted twice."""
    weight, x = random_weight(kind, rows, 3, 4, seed), normal(seed, vectors, 12, dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemma_np.weights.linear, "_TILE", tile)
        patch.setattr(gemma_np.weights.linear, "_DEQUANTIZED", 3 * tile)
        patch.setattr(gemma_np.weights.linear, "_ONE_CORE", 100)
        assert_close(linear(x, weight), x.astype(np.float64) @ dequantize(weight).T, "model")


@given(st.sampled_from([*BLOCK_FORMATS]), st.integers(1, 8), st.integers(1, 40), st.integers(1, 2000), seeds)
def test_a_block_format_multiplies_as_what_it_stands_for(format, vectors, rows, tile, seed):
    weight = random_blocks(format, rows, 3, seed)
    x = normal(seed, vectors, weight.shape[1], dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemma_np.weights.linear, "_TILE", tile)
        patch.setattr(gemma_np.weights.linear, "_DEQUANTIZED", 3 * tile)
        patch.setattr(gemma_np.weights.linear, "_ROWS", 16)
        patch.setattr(gemma_np.weights.linear, "_ONE_CORE", 1000)
        assert_close(linear(x, weight), x.astype(np.float64) @ dequantize(weight).T, "model")


@pytest.mark.parametrize("kind", WIDENED)
@pytest.mark.parametrize("vectors", [1, 2, 4, 20])
@pytest.mark.parametrize("avx512", [False, True])
def test_a_large_one_too_and_in_float32(kind, vectors, avx512, monkeypatch):
    monkeypatch.setattr(gemma_np.weights.linear, "_AVX512", avx512)
    weight, x = random_weight(kind, 3000, 4, 64, 0), normal(0, vectors, 256, dtype=np.float32)
    found = linear(x, weight)
    assert found.dtype == np.float32
    assert_close(found, x.astype(np.float64) @ dequantize(weight).T, "model")
    exact = linear(x.astype(np.float64), weight)
    assert exact.dtype == np.float64
    assert_close(found, exact, "model")


@pytest.mark.parametrize("kind", WIDENED)
def test_the_widened_matrix_is_never_held(kind):
    weight, x = random_weight(kind, 20_000, 4, 128, 0), normal(0, 1, 512, dtype=np.float32)
    linear(x, weight)
    tracemalloc.start()
    linear(x, weight)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.25 * 4 * 20_000 * 512


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 70), seeds)
def test_sums_of_whole_numbers_are_exact(vectors, rows, columns, seed):
    generator = np.random.default_rng(seed)
    x, weight = (generator.integers(-127, 128, (n, columns)).astype(np.int8) for n in (vectors, rows))
    found = integer_sums(x, weight)
    assert found.dtype == np.int32
    assert (found == x.astype(np.int64) @ weight.T.astype(np.int64)).all()


def test_sums_are_exact_at_their_largest():
    x = np.full((1, 100_001), 127, np.int8)
    assert integer_sums(x, -x) == -100_001 * 127 * 127


@given(st.integers(1, 4), st.integers(1, 20), seeds)
def test_activations_are_rounded_to_half_a_step(vectors, size, seed):
    x = normal(seed, vectors, size)
    integers, steps = round_to_int8(x)
    assert (np.abs(integers * steps - x) <= steps / 2 * (1 + 1e-9)).all()
    assert (np.abs(integers).max(axis=-1) == 127).all()
    with np.errstate(all="raise"):
        assert (round_to_int8(0 * x)[0] == 0).all()


def test_a_product_of_whole_numbers_is_that_of_the_rounded_sides():
    weight, x = random_weight("w8a8", 40, 1, 64, 0), normal(0, 3, 64, dtype=np.float32)
    integers, steps = round_to_int8(x)
    assert_close(linear(x, weight), (integers * steps).astype(np.float64) @ dequantize(weight).T, "model")
    assert (linear(x, weight) == integer_product(x, Int8(weight.integers, weight.scales))).all()


@pytest.mark.parametrize(("cores", "tiles"), [(None, 1), (1, 1), (2, 2), (8, 8)])
def test_every_core_has_one_tile_of_4_mb_beside_16_mb_of_dequantized_rows(cores, tiles, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert tile_bytes() == 2**24 + tiles * 2**22
