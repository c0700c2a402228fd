"""The block formats of GGUF: their values are those of the gguf library, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.checkpoints.gguf_blocks import read_blocks
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import dequantize, embedding_rows
from tests.support.stored_weights import random_blocks
from tests.support.strategies import seeds

gguf = pytest.importorskip("gguf")


def test_every_format_has_the_size_that_the_library_knows():
    for name, block in BLOCK_FORMATS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (block.channels, block.bytes)


@given(st.sampled_from([*BLOCK_FORMATS]), st.integers(1, 20), st.integers(1, 3), seeds)
def test_the_values_are_those_of_the_library_bit_for_bit(name, rows, blocks, seed):
    """For any integers and finite factors, also negative and tiny ones."""
    block = BLOCK_FORMATS[name]
    stored = np.random.default_rng(seed).integers(0, 256, (rows, blocks, block.bytes)).astype(np.uint8)
    start = block.integers if block.factors_last else 0
    stored[..., start + 1 : start + 2 * block.factors : 2] &= 0xBF  # without the highest bit of the exponent
    stored = stored.reshape(rows, -1)
    expected = gguf.dequantize(stored, gguf.GGMLQuantizationType[name])
    found = dequantize(read_blocks(name, expected.shape, lambda start, stop: stored[start:stop]))
    assert found.shape == expected.shape
    assert (found.view(np.uint32) == expected.view(np.uint32)).all()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_large_ones_too(name):
    """More rows than are transposed at once, and more weights than are dequantized at once."""
    block = BLOCK_FORMATS[name]
    rows, blocks = 9000, 2048 // block.channels
    stored = np.random.default_rng(0).integers(0, 120, (rows, blocks * block.bytes)).astype(np.uint8)
    weight = read_blocks(name, (rows, 2048), lambda start, stop: stored[start:stop])
    expected = gguf.dequantize(stored, gguf.GGMLQuantizationType[name])
    assert (dequantize(weight) == expected).all()
    for ids in (np.array([[8999, 0], [5000, 5000]]), np.arange(7, 8000, 500).reshape(2, -1)):
        assert (embedding_rows(weight, ids) == expected[ids]).all()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_rows_and_columns(name):
    weight, channels = random_blocks(name, 7, 4, 0), BLOCK_FORMATS[name].channels
    floats = dequantize(weight)
    assert (dequantize(weight[2:5]) == floats[2:5]).all()
    part = slice(channels, 3 * channels)
    assert (dequantize(weight.columns(part)) == floats[:, part]).all()
