"""Weights as they are stored: what they stand for, by their definitions."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import (
    FORMATS,
    NF4_BLOCK,
    NF4_VALUES,
    BFloat16,
    Float8,
    Float16,
    Int4,
    Int8,
    Nf4,
    check_finite,
    dequantize,
    embedding_rows,
    matrix_bytes,
    pack,
    stored_bytes,
    unpack,
)
from tests.support.stored_weights import KINDS, random_blocks, random_weight
from tests.support.strategies import seeds


@st.composite
def weights(draw):
    kind = draw(st.sampled_from(KINDS))
    return random_weight(
        kind, draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.sampled_from([2, 4, 6])), draw(seeds)
    )


def meaning(weight):
    """What a weight stands for, number by number."""
    rows, columns = weight.shape
    wide = np.empty((rows, columns), np.float32)
    for r in range(rows):
        for c in range(columns):
            if isinstance(weight, BFloat16 | Float16):
                wide[r, c] = float(weight.numbers[r, c])
                continue
            group = c * weight.scales.shape[1] // columns
            scale = np.float32(weight.scales[r, group])
            if isinstance(weight, Int4):
                half = columns // 2
                byte = int(weight.packed[r, c % half])
                number = byte & 15 if c < half else byte >> 4
                number -= 8 if weight.zeros is None else int(weight.zeros[r, group])
            elif isinstance(weight, Nf4):
                byte = int(weight.packed[r, c // 2])
                number = NF4_VALUES[byte & 15 if c % 2 else byte >> 4]
            else:
                number = float((weight.integers if isinstance(weight, Int8) else weight.numbers)[r, c])
            wide[r, c] = np.float32(number) * scale
    return wide


@given(weights())
def test_dequantize_is_the_definition(weight):
    found = dequantize(weight)
    assert found.dtype == np.float32
    assert found.shape == weight.shape
    assert (found == meaning(weight)).all()


@given(weights(), st.data())
def test_rows_of_a_weight_are_rows_of_what_it_stands_for(weight, data):
    start = data.draw(st.integers(0, weight.shape[0] - 1))
    assert type(weight[start:]) is type(weight)
    assert (dequantize(weight[start:]) == dequantize(weight)[start:]).all()
    rows = np.array(data.draw(st.lists(st.integers(0, weight.shape[0] - 1), min_size=1, max_size=6)))
    for index in (rows, rows[None, :, None]):
        assert (embedding_rows(weight, index) == dequantize(weight)[index]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_alone_can_be_looked_up(kind):
    weight = random_weight(kind, 5, 2, 4, 0)
    assert (embedding_rows(weight, np.array(3)) == dequantize(weight)[3]).all()


def test_an_array_is_what_it_is():
    array = np.ones((2, 3))
    assert dequantize(array) is array


@pytest.mark.parametrize("name", FORMATS)
def test_matrix_bytes_is_what_a_matrix_takes(name):
    matrix = np.random.default_rng(0).standard_normal((6, 512))
    if name in BLOCK_FORMATS:
        stored = random_blocks(name, 6, 512 // BLOCK_FORMATS[name].channels, 0)
    elif name == "nf4":
        stored = random_weight(name, 6, 512 // NF4_BLOCK, NF4_BLOCK, 0)
    elif FORMATS[name].stored_as in (np.ndarray, Float16):
        stored = matrix.astype(name)
    else:
        stored = quantize(matrix, Scheme(name, FORMATS[name].group_size))
    assert matrix_bytes((6, 512), name) == stored_bytes(stored)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("bfloat16", 2.0),
        ("float16", 2.0),
        ("int8", 1 + 4 / 128),
        ("int4", 0.5 + 4 / 32),
        ("int4 with zeros", 0.5 + 5 / 32),
        ("float8", 1 + 4 / 128),
    ],
)
def test_what_a_weight_takes(kind, size):
    assert stored_bytes(random_weight(kind, 10, 4, 32, 0)) == size * 10 * 128
    assert stored_bytes(np.ones((10, 128), np.float32)) == 4 * 10 * 128


@given(st.integers(1, 5), st.integers(1, 9), seeds)
def test_packing_is_undone_by_unpacking(rows, pairs, seed):
    numbers = np.random.default_rng(seed).integers(0, 16, (rows, 2 * pairs)).astype(np.uint8)
    assert (unpack(pack(numbers)) == numbers).all()
    assert pack(numbers).nbytes * 2 == numbers.nbytes


def test_every_float8_is_what_it_is():
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)[None]
    found = dequantize(Float8(every, np.ones((1, 1), np.float32)))
    np.testing.assert_array_equal(found, every.astype(np.float32))


@pytest.mark.parametrize("rows", [1, 4096, 5000])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.astype(np.float16),
        lambda x: BFloat16(x.astype(ml_dtypes.bfloat16)),
        lambda x: Int8(np.ones(x.shape, np.int8), x[:, :1]),
        lambda x: Int4(np.ones(x.shape, np.uint8), x[:, :2], np.ones((len(x), 2), np.uint8)),
        lambda x: Float8(np.ones(x.shape).astype(ml_dtypes.float8_e4m3fn), x[:, :1]),
    ],
)
def test_a_weight_that_is_not_finite_is_found_in_any_row(make, wrong, rows):
    x = np.ones((rows, 4), np.float32)
    check_finite("w", make(x))
    for row in {0, rows // 2, rows - 1}:
        x[:] = 1
        x[row, 0] = wrong
        with pytest.raises(GemmaError, match=r"^w: NaN or infinity among its .*float.* numbers, expected finite ones$"):
            check_finite("w", make(x))


def test_a_float8_number_that_is_none_is_found():
    numbers = np.ones((3, 4)).astype(ml_dtypes.float8_e4m3fn)
    numbers[1, 2] = np.nan
    with pytest.raises(GemmaError, match="w: NaN or infinity among its float8_e4m3fn numbers"):
        check_finite("w", Float8(numbers, np.ones((3, 1), np.float32)))
